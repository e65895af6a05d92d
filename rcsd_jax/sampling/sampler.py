"""The interface for sampling on the host: a `Sampler` writes completions of many prompts.

Evaluation, rubric writing and a judge on this machine use one. `decoder_sampler.DecoderSampler` is the one for our own decoder. A
server that holds the weights is another value with the same three functions. Training samples inside its jitted step, with
`decoding.generate` or `slots.generate_queue`; on the host, `completions_of` turns its samples into the same completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from rcsd_jax.sampling.decoding import Samples, SamplingConfig
from rcsd_jax.sampling.token_form import TokenForm


class Completion(NamedTuple):
    """A completion of one prompt: token ids without the end token, and whether the length limit cut it."""

    tokens: np.ndarray  # [n] int32
    cut: bool


Batches = Iterator[tuple[list[int], list[Completion]]]
"""Batches of (indexes into the prompts, their completions), in any order; every prompt once."""


class Sampler(Protocol):
    """A model that writes. All processes call it with the same arguments, and all get the same results."""

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        form: TokenForm | None = None,
    ) -> Batches:
        """Samples a completion of every prompt. It depends only on its prompt, its seed and the settings.

        Args:
          prompts: token ids [P] int32 of each.
          seeds: one for each prompt, 0 to 2^32 - 1.
          sampling: the settings.
          form: if given, all completions are texts of it; see `DecoderSampler` for a sampler that can do so.
        """
        ...

    def log_probs(
        self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], *, temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Log-probabilities [n] float32 of the tokens of given completions, under the tempered, unfiltered distribution.

        Args:
          prompts: token ids [P] int32 of each.
          completions: token ids [n] int32 of each, with the end token if that counts; at least one.
          temperature: divides the logits.
        """
        ...

    def with_weights(self, variables: Any) -> Self:
        """The sampler with other weights of the same model ("params", and "lora" for adapters in use)."""
        ...


def completions_of(samples: Samples, eos_ids: Sequence[int]) -> list[Completion]:
    """The rows of samples that are on this machine, as completions."""
    tokens, mask, cut = (np.asarray(x) for x in (samples.tokens, samples.mask, samples.cut))
    rows = (row[keep] for row, keep in zip(tokens, mask, strict=True))
    return [Completion(row[~np.isin(row, eos_ids)], bool(c)) for row, c in zip(rows, cut, strict=True)]
