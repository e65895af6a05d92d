"""The sampler of our own decoder: it groups many prompts into few shapes and refills slots."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax import losses
from rcsd_jax.host.padding import pad_left, pad_right
from rcsd_jax.losses.chunks import chunk_size_of, logits_of, scan_chunks
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.models.sharding import own_rows, row_shards, to_mesh
from rcsd_jax.sampling.decoding import Samples, SamplingConfig
from rcsd_jax.sampling.sampler import Batches, completions_of
from rcsd_jax.sampling.slots import generate_queue
from rcsd_jax.sampling.token_form import TokenForm

GROUP = 4  # batches per group: more keep slots busier, fewer lose less if a run is killed
_CHUNK = 256  # positions whose logits are in memory at a time


def _go_on() -> None:
    """The default `stop`: never stops."""


@dataclasses.dataclass(frozen=True)
class DecoderSampler:
    """A `sampler.Sampler`; its functions are called with the mesh set.

    Attributes:
      decoder: the model.
      variables: its variables.
      mesh: the devices.
      batch_size: rows that run at a time; the mesh's shards of rows divide it.
      pad_to: lengths are padded to multiples of this, so that few programs are compiled.
      pad_id: the padding token.
      draft_tokens: that `generate` guesses in every row and checks, see `speculative`; they do not change the completions.
      stop: called between two groups of `generate`; an exception from it ends the sampling.
    """

    decoder: Decoder
    variables: Any
    mesh: jax.sharding.Mesh
    batch_size: int
    pad_to: int
    pad_id: int
    draft_tokens: int = 0
    stop: Callable[[], None] = _go_on

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        form: TokenForm | None = None,
    ) -> Batches:
        """As `Sampler.generate`, group by group, prompts of similar length together.

        `batch_size` rows are sampled at a time. In a group of several batches, the next prompt takes a finished row's slot. A prompt that
        stands several times in a row, for several completions, is prefilled once for them.
        """
        drafts = self.draft_tokens if form is None else 0  # a form rules out what a draft guesses
        sample = _sampling_program(self.decoder, sampling, self.batch_size, drafts, self.pad_id)
        if form is not None:  # every device holds its tables
            form = jax.device_put(form, jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()))
        rows_of_a_shard = self.batch_size // row_shards("train", self.mesh)
        times = math.gcd(times_in_a_row(prompts), rows_of_a_shard)  # the shards of rows divide the prompts, too
        for chosen, filled in _groups([len(row) for row in prompts], _group_size(len(prompts), self.batch_size)):
            shown = [prompts[i] for i in filled[::times]]
            tokens, mask = pad_left(shown, self._padded(prompts, chosen), self.pad_id)
            row_seeds = np.asarray([seeds[i] for i in filled], np.uint32)
            limits = np.where(np.arange(len(filled)) < len(chosen), sampling.max_new_tokens, 1).astype(np.int32)
            samples = self._run(functools.partial(sample, form), tokens, mask, row_seeds, limits)
            yield chosen, completions_of(samples, sampling.eos_ids)[: len(chosen)]
            self.stop()

    def log_probs(
        self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], *, temperature: float = 1.0
    ) -> list[np.ndarray]:
        """As `Sampler.log_probs`, `batch_size` rows at a time."""
        return self._scored(_scoring_program(self.decoder, temperature), prompts, completions)

    def likeliest(self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Whether each token [n] of given completions, as of `log_probs`, is the one that greedy sampling would draw there."""
        return self._scored(_greedy_program(self.decoder), prompts, completions)

    def _scored(
        self, score: Callable[..., jax.Array], prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The results of a program on prompts and completions, for each token [n] of these."""
        found: dict[int, np.ndarray] = {}
        lengths = [len(prompt) + len(row) for prompt, row in zip(prompts, completions, strict=True)]
        for chosen, filled in _groups(lengths, self.batch_size):
            before = pad_left([prompts[i] for i in filled], self._padded(prompts, chosen), self.pad_id)
            after = pad_right([completions[i] for i in filled], self._padded(completions, chosen), self.pad_id)
            rows = self._run(score, *before, *after)
            found |= {i: row[: len(completions[i])] for i, row in zip(chosen, rows, strict=False)}
        return [found[i] for i in range(len(prompts))]

    def with_weights(self, variables: Any) -> Self:
        """See `Sampler.with_weights`."""
        return dataclasses.replace(self, variables=variables)

    def _padded(self, rows: Sequence[np.ndarray], chosen: Sequence[int]) -> int:
        return -(-max(len(rows[i]) for i in chosen) // self.pad_to) * self.pad_to

    def _run(self, program: Callable, *arrays: np.ndarray) -> Any:
        """The results of a program on arrays [B, ...], each with its own B, on the mesh, in every process."""
        own = tuple(array[own_rows(len(array), self.mesh)] for array in arrays)
        return multihost_utils.process_allgather(program(self.variables, *to_mesh(own, self.mesh)), tiled=True)


def times_in_a_row(prompts: Sequence[np.ndarray]) -> int:
    """The largest n such that prompts come n times each, one after the other.

    Examples:
      >>> a, b = np.array([1, 2]), np.array([3])
      >>> times_in_a_row([a, a, b, b]), times_in_a_row([a, a, a, a, b, b]), times_in_a_row([a, b, a, b])
      (2, 2, 1)
    """
    others = (i for i in range(1, len(prompts)) if not np.array_equal(prompts[i - 1], prompts[i]))
    return math.gcd(len(prompts), *others)


def _groups(lengths: Sequence[int], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Groups of `size` indexes of rows of similar length, and the same padded to `size`: the last group repeats a row."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, chosen + [chosen[-1]] * (size - len(chosen))


def _group_size(count: int, batch_size: int) -> int:
    """The rows of a group, equal for all groups: whole batches, at most GROUP of them."""
    batches = max(-(-count // batch_size), 1)
    groups = -(-batches // GROUP)
    return -(-batches // groups) * batch_size


@functools.cache
def _sampling_program(
    decoder: Decoder, sampling: SamplingConfig, slots: int, draft_tokens: int, pad_id: int
) -> Callable[..., Samples]:
    def sample(
        form: TokenForm | None,
        variables: Any,
        tokens: jax.Array,
        mask: jax.Array,
        seeds: jax.Array,
        limits: jax.Array,
    ) -> Samples:
        keys = jax.vmap(jax.random.key)(seeds)
        bound: dict[str, Any] = dict(slots=slots, limits=limits, draft_tokens=draft_tokens, pad_id=pad_id, form=form)
        times = len(seeds) // len(tokens)
        return generate_queue(decoder, variables, tokens, mask, keys, sampling, samples_per_prompt=times, **bound)[0]

    return jax.jit(sample)


@functools.cache
def _scoring_program(decoder: Decoder, temperature: float) -> Callable[..., jax.Array]:
    def score(variables: Any, prompts: jax.Array, seen: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = completion_hidden(decoder, variables, prompts, seen, tokens, mask)
        head = head_matrix(decoder.config, variables["params"])
        bound: dict[str, Any] = dict(chunk_size=_CHUNK, temperature=temperature)
        return losses.token_log_probs_from_hidden(hidden, head, tokens, **bound)[0]

    return jax.jit(score)


@functools.cache
def _greedy_program(decoder: Decoder) -> Callable[..., jax.Array]:
    def score(variables: Any, prompts: jax.Array, seen: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = completion_hidden(decoder, variables, prompts, seen, tokens, mask)
        head = head_matrix(decoder.config, variables["params"])

        def step(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            hidden, tokens = chunk
            return None, logits_of(hidden, head).argmax(axis=-1) == tokens

        return scan_chunks(step, None, (hidden, tokens), chunk_size_of(_CHUNK, hidden))[1]

    return jax.jit(score)
