"""Completions of an evaluation that is under way: what a run had sampled when it was stopped is not sampled again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rcsd_jax.host import multihost
from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.keyed_log import Codec, KeyedLog, key_of
from rcsd_jax.sampling.decoding import SamplingConfig
from rcsd_jax.sampling.many import Completion

Complete = Callable[[Sequence[np.ndarray], Sequence[int]], Iterator[tuple[list[int], list[Completion]]]]

_COMPLETIONS = Codec[Completion](
    noun="a completion",
    remedy="remove the file, to have these completions sampled again",
    to_record=lambda one: {"tokens": one.tokens.tolist(), "cut": one.cut},
    from_record=lambda record: Completion(np.asarray(record["tokens"], np.int32), bool(record["cut"])),
)


def resumable(complete: Complete, path: AnyPath, sampling: SamplingConfig) -> Complete:
    """The same as `complete`, which samples with these settings, but what `path` holds comes first, and the rest goes there.

    It serves one model: what it holds is known by prompt, seed and settings alone.
    """

    def complete_all(
        prompts: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[tuple[list[int], list[Completion]]]:
        settings = dataclasses.asdict(sampling)
        keys = [key_of("", prompt, settings, 0, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        with multihost.held_by_all(lambda path: KeyedLog(path, _COMPLETIONS), path) as log:
            held = {i: one for i, key in enumerate(keys) if (one := log.get(key)) is not None}
            if held:
                yield list(held), list(held.values())
            missing = [i for i in range(len(keys)) if i not in held]
            if not missing:
                return
            for chosen, completions in complete([prompts[i] for i in missing], [seeds[i] for i in missing]):
                indexes = [missing[i] for i in chosen]
                log.put_batch((keys[i], one) for i, one in zip(indexes, completions, strict=True))
                yield indexes, completions

    return complete_all
