"""Many prompts through the sampler in queues of few shapes: for evaluation and for writing rubrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import own_rows, to_mesh
from rcsd_jax.roles.contexts import pad_left
from rcsd_jax.sampling.decoding import Samples, SamplingConfig
from rcsd_jax.sampling.slots import generate_queue


class Completion(NamedTuple):
    """What was written for one prompt: token ids without the end token, and whether the length limit cut it."""

    tokens: np.ndarray  # [n] int32
    cut: bool


GROUP = 4  # batches of a group: more keep slots busier, fewer lose less when a run is killed


@functools.cache
def _sampler(decoder: Decoder, sampling: SamplingConfig, slots: int, pad_id: int) -> Callable[..., Samples]:
    def sample(variables: Any, tokens: jax.Array, mask: jax.Array, seeds: jax.Array, limits: jax.Array) -> Samples:
        keys = jax.vmap(jax.random.key)(seeds)
        bound: dict[str, Any] = dict(slots=slots, limits=limits, pad_id=pad_id)
        return generate_queue(decoder, variables, tokens, mask, keys, sampling, **bound)[0]

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
    """Yields (indexes into `prompts`, their completions) group by group, prompts of similar length together.

    `batch_size` rows are sampled at a time; of a group of several batches a finished row makes room for the next prompt. A
    completion depends on its prompt and its seed alone, not on the group it was sampled in.
    """
    sample = _sampler(decoder, sampling, batch_size, pad_id)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = _group_size(len(prompts), batch_size)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        filled = chosen + [chosen[-1]] * (size - len(chosen))  # one shape: the last group repeats a row
        rows = [prompts[i] for i in filled]
        length = -(-max(len(row) for row in rows) // pad_to) * pad_to
        tokens, mask = pad_left(rows, length, pad_id)
        row_seeds = np.asarray([seeds[i] for i in filled], np.uint32)
        limits = np.where(np.arange(size) < len(chosen), sampling.max_new_tokens, 1).astype(np.int32)
        local = own_rows(size, mesh)
        arrays = to_mesh((tokens[local], mask[local], row_seeds[local], limits[local]), mesh)
        samples = multihost_utils.process_allgather(sample(variables, *arrays), tiled=True)
        yield chosen, [completion_of_row(samples, row, sampling) for row in range(len(chosen))]


def _group_size(count: int, batch_size: int) -> int:
    """Rows of a group: the same for all groups, whole batches, at most GROUP of them."""
    batches = max(-(-count // batch_size), 1)
    groups = -(-batches // GROUP)
    return -(-batches // groups) * batch_size


def completion_of_row(samples: Samples, row: int, sampling: SamplingConfig) -> Completion:
    """One row of samples that lie on this machine."""
    tokens = np.asarray(samples.tokens[row])[np.asarray(samples.mask[row])]
    return Completion(tokens[~np.isin(tokens, sampling.eos_ids)], bool(samples.cut[row]))
