"""Many prompts through the sampler in batches of few shapes: for evaluation and for writing rubrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.contexts import pad_left
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import own_rows, to_mesh
from rcsd_jax.sampling import Samples, SamplingConfig, generate


class Completion(NamedTuple):
    """What was written for one prompt: token ids without the end token, and whether the length limit cut it."""

    tokens: np.ndarray  # [n] int32
    cut: bool


@functools.cache
def _sampler(decoder: Decoder, sampling: SamplingConfig, pad_id: int) -> Callable[..., Samples]:
    def sample(variables, tokens, mask, seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        return generate(decoder, variables, tokens, mask, keys, sampling, pad_id=pad_id)

    return jax.jit(sample)


def complete(
    decoder: Decoder,
    variables: Any,
    prompts: Sequence[np.ndarray],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    pad_to: int,
    pad_id: int,
) -> Iterator[tuple[list[int], list[Completion]]]:
    """Yields (indexes into `prompts`, their completions) batch by batch, prompts of similar length together.

    A completion depends on its prompt and its seed alone, not on the batch it was sampled in.
    """
    sample = _sampler(decoder, sampling, pad_id)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + [chosen[-1]] * (batch_size - len(chosen))  # one shape: the last batch repeats a row
        rows = [prompts[i] for i in filled]
        length = -(-max(len(row) for row in rows) // pad_to) * pad_to
        tokens, mask = pad_left(rows, length, pad_id)
        row_seeds = np.asarray([seeds[i] for i in filled], np.uint32)
        local = own_rows(batch_size, mesh)
        arrays = to_mesh((tokens[local], mask[local], row_seeds[local]), mesh)
        samples = multihost_utils.process_allgather(sample(variables, *arrays), tiled=True)
        yield chosen, [_completion(samples, row, sampling) for row in range(len(chosen))]


def _completion(samples: Samples, row: int, sampling: SamplingConfig) -> Completion:
    tokens = np.asarray(samples.tokens[row])[np.asarray(samples.mask[row])]
    return Completion(tokens[~np.isin(tokens, sampling.eos_ids)], bool(samples.cut[row]))
