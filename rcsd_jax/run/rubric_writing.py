"""Between the stages: a model writes a rubric for every question, once; texts are cached as they come.

A rejected text is sampled again; after the last try the question gets the generic rubric or is dropped, and is counted.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.rubrics.cache import RubricCache, Written, key_of
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.sampling.many import Completion

# (prompts, seeds) -> batches of (indexes into prompts, completions), as `rcsd_jax.sampling.many.complete` yields them.
Writer = Callable[[Sequence[np.ndarray], Sequence[int]], Iterable[tuple[list[int], list[Completion]]]]


def write_rubrics(
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    *,
    write: Writer,
    decode: Callable[[np.ndarray], str],
    cache: RubricCache,
    checkpoint: str,
    settings: Mapping[str, Any],
    resample: int,
    fallback: Rubric | None,
    min_criteria: int,
    max_criteria: int,
    seed: int,
) -> tuple[list[Example], dict[str, int]]:
    """Examples with written rubrics, and counts of what happened.

    A text is a function of (checkpoint, prompt, settings, seed, attempt) alone, so a run that was killed continues with
    the texts that it has, and ends with the same rubrics as one that was not.

    Args:
      examples: the questions, in order.
      prompts: each one's encoded prompt to the writer.
      write: samples completions for prompts.
      decode: token ids to text.
      cache: where texts are kept.
      checkpoint: what identifies the writer's weights.
      settings: sampling settings, part of the cache's key.
      resample: tries after the first.
      fallback: the rubric of a question whose every text was rejected; None drops the question.
      min_criteria, max_criteria: what a valid rubric has.
      seed: of the run.

    Returns:
      (examples, counts): counts of "strict", "salvaged", "fallback", "dropped", "rejected" (texts), "cut", "cached".
    """
    counts: collections.Counter[str] = collections.Counter()
    rubrics: dict[int, Rubric] = {}
    for attempt in range(resample + 1):
        pending = [i for i in range(len(examples)) if i not in rubrics]
        keys = {
            i: key_of(checkpoint=checkpoint, prompt=prompts[i], sampling=settings, attempt=attempt, seed=seed)
            for i in pending
        }
        missing = [i for i in pending if keys[i] not in cache]
        counts["cached"] += len(pending) - len(missing)
        seeds = [int(keys[i][:8], 16) for i in missing]
        for chosen, completions in write([prompts[i] for i in missing], seeds):
            texts = [decode(completion.tokens) for completion in completions]
            parsed = [parse(text, min_criteria=min_criteria, max_criteria=max_criteria) for text in texts]
            cache.put_many(Written(keys[missing[i]], t, p) for i, t, p in zip(chosen, texts, parsed, strict=True))
            counts["cut"] += sum(completion.cut for completion in completions)
        for i in pending:
            written = cache.get(keys[i])
            assert written is not None, "what was missing has been written"
            counts[written.parsed.status] += 1
            if written.parsed.rubric is not None:
                rubrics[i] = written.parsed.rubric
    counts["fallback" if fallback is not None else "dropped"] += len(examples) - len(rubrics)
    with_rubrics = [dataclasses.replace(e, rubric=rubrics.get(i, fallback)) for i, e in enumerate(examples)]
    return [e for e in with_rubrics if e.rubric is not None], dict(counts)
