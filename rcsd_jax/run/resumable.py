"""Completions of an evaluation that is under way: what a run had sampled when it was stopped is not sampled again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, append, whole_lines
from rcsd_jax.rubrics.cache import key_of
from rcsd_jax.sampling.decoding import SamplingConfig
from rcsd_jax.sampling.many import Completion

Complete = Callable[[Sequence[np.ndarray], Sequence[int]], Iterator[tuple[list[int], list[Completion]]]]


def resumable(complete: Complete, path: AnyPath, sampling: SamplingConfig) -> Complete:
    """The same as `complete`, which samples with these settings, but what `path` holds comes first, and the rest goes there.

    Process 0 keeps the file. It serves one model: what it holds is known by prompt, seed and settings alone.
    """

    def complete_all(
        prompts: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[tuple[list[int], list[Completion]]]:
        settings = dataclasses.asdict(sampling)
        keys = [
            key_of(checkpoint="", prompt=prompt, sampling=settings, attempt=0, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        held = multihost.from_main(lambda: _read(path))
        done = [i for i, key in enumerate(keys) if key in held]
        if done:
            yield done, [held[keys[i]] for i in done]
        missing = [i for i, key in enumerate(keys) if key not in held]
        if not missing:
            return
        for chosen, completions in complete([prompts[i] for i in missing], [seeds[i] for i in missing]):
            indexes = [missing[i] for i in chosen]
            if multihost.is_main():
                lines = (_to_line(keys[i], completion) for i, completion in zip(indexes, completions, strict=True))
                append(path, "".join(lines).encode())
            yield indexes, completions

    return complete_all


def _to_line(key: str, completion: Completion) -> str:
    return json.dumps({"key": key, "tokens": completion.tokens.tolist(), "cut": completion.cut}) + "\n"


def _read(path: AnyPath) -> dict[str, Completion]:
    held: dict[str, Completion] = {}
    if not path.exists():
        return held
    for row, line in enumerate(whole_lines(path)[0], start=1):
        try:
            record = json.loads(line)
            held[record["key"]] = Completion(np.asarray(record["tokens"], np.int32), bool(record["cut"]))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            remedy = "remove the file, to have these completions sampled again"
            raise UserError(f"not a completion ({error})", file=path, row=row, remedy=remedy) from error
    return held
