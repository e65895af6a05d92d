"""The rubrics that models wrote, kept on disk so that a killed run resumes where it stopped.

A batch is on disk before `put_many` returns. The file is a `host.keyed_log`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcsd_jax.host import keyed_log
from rcsd_jax.host.files import AnyPath
from rcsd_jax.rubrics import schema
from rcsd_jax.rubrics.parsing import Parsed


@dataclass(frozen=True)
class Written:
    """A text that a model wrote, and its outcome. `key` is the `text_key` of its circumstances."""

    key: str
    text: str
    parsed: Parsed


def text_key(
    *, checkpoint: str, prompt: str | Sequence[int] | np.ndarray, sampling: Mapping[str, Any], attempt: int, seed: int
) -> str:
    """The hash of everything that decides what a model writes.

    Args:
      checkpoint: identifies the weights.
      prompt: the prompt's token ids or text.
      sampling: the sampling settings, JSON values.
      attempt: 0 for the first text for this prompt, then counting resamplings.
      seed: the sampler's seed.

    Examples:
      >>> first = text_key(checkpoint="8b", prompt=[1, 2], sampling={"top_k": 20}, attempt=0, seed=0)
      >>> len(first), first == text_key(checkpoint="8b", prompt=[1, 2], sampling={"top_k": 20}, attempt=1, seed=0)
      (64, False)
    """
    prompt = prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    return keyed_log.key_of(checkpoint, prompt, sampling, int(attempt), int(seed))


key_of = text_key  # its older name


def _to_record(written: Written) -> dict[str, Any]:
    parsed = written.parsed
    return {
        "status": parsed.status,
        "reason": parsed.reason,
        "rubric": None if parsed.rubric is None else json.loads(schema.to_json(parsed.rubric)),
        "text": written.text,
    }


def _from_record(record: dict[str, Any]) -> Written:
    rubric = record["rubric"]
    if rubric is not None:
        rubric = schema.from_records(rubric, min_criteria=1, max_criteria=len(rubric))
    return Written(record["key"], record["text"], Parsed(rubric, record["status"], record["reason"]))


_CODEC = keyed_log.Codec(
    noun="a cached rubric",
    remedy="remove this line, or the file to have all rubrics written again",
    to_record=_to_record,
    from_record=_from_record,
)


class RubricCache(keyed_log.KeyedLog[Written]):
    """Written rubrics by key: all in memory, and on disk unless there is no path."""

    def __init__(self, path: str | AnyPath | None):
        """Opens the cache; makes its folder if it is missing.

        Raises:
          UserError: as `KeyedLog`.
        """
        super().__init__(path, _CODEC)

    @property
    def counts(self) -> Counter[str]:
        """The number of texts that are "strict", "salvaged" and "rejected"."""
        counts = Counter(strict=0, salvaged=0, rejected=0)
        counts.update(written.parsed.status for _, written in self.items())
        return counts

    def held(self) -> list[Written]:
        """All texts, in the order in which they were written."""
        return [written for _, written in self.items()]

    def put_many(self, batch: Iterable[Written]) -> None:
        """Adds a batch and syncs it to disk. A key that exists keeps its text, because equal keys mean equal texts."""
        self.put_batch((written.key, written) for written in batch)
