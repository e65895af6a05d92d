"""What models wrote, kept on disk so that a run that was killed goes on where it stopped.

One JSON line per text, append only. A batch is written, flushed and synced before `put_many` returns, so a kill loses
at most the batch being written, and locally leaves at most one torn line, the last: the next opening cuts it off and counts it.
One process writes a file; others hold what it holds in memory alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, append, as_path, whole_lines
from rcsd_jax.rubrics import schema
from rcsd_jax.rubrics.parsing import Parsed


@dataclass(frozen=True)
class Written:
    """A text that a model wrote, and what became of it. `key` is `key_of` the circumstances."""

    key: str
    text: str
    parsed: Parsed


def key_of(
    *, checkpoint: str, prompt: str | Sequence[int] | np.ndarray, sampling: Mapping[str, Any], attempt: int, seed: int
) -> str:
    """The hash (SHA-256, hexadecimal) of all that decides what is written.

    Args:
      checkpoint: what identifies the weights.
      prompt: the prompt's token ids or text.
      sampling: the sampling settings, JSON values.
      attempt: 0 for the first text for this prompt, then counting resamplings.
      seed: the sampler's seed.

    Examples:
      >>> first = key_of(checkpoint="8b", prompt=[1, 2], sampling={"top_k": 20}, attempt=0, seed=0)
      >>> len(first), first == key_of(checkpoint="8b", prompt=[1, 2], sampling={"top_k": 20}, attempt=1, seed=0)
      (64, False)
    """
    prompt = prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    parts = [checkpoint, prompt, dict(sampling), int(attempt), int(seed)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class RubricCache:
    """Written rubrics by key: all in memory, and on disk unless there is no path.

    Attributes:
      path: the file, or None.
      torn_lines: unfinished lines cut off when the file was opened: 0 or 1.
      counts: how many of the texts held are "strict", "salvaged" and "rejected".
    """

    def __init__(self, path: str | AnyPath | None):
        """Opens the cache, making the file and its folder where absent.

        Raises:
          UserError: a whole line is not one that this class wrote.
        """
        self.path = None if path is None else as_path(path)
        self.torn_lines = 0
        self.counts: Counter[str] = Counter(strict=0, salvaged=0, rejected=0)
        self._held: dict[str, Written] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load(self.path)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def get(self, key: str) -> Written | None:
        """What was written under the key, or None."""
        return self._held.get(key)

    def held(self) -> list[Written]:
        """Everything, in the order in which it was written."""
        return list(self._held.values())

    def put_many(self, batch: Iterable[Written]) -> None:
        """Adds a batch and syncs it to disk. A key held already stays as it is: it stands for the same text."""
        fresh: dict[str, Written] = {}
        for written in batch:
            if written.key not in self._held:
                fresh.setdefault(written.key, written)
        if not fresh:
            return
        if self.path is not None:
            append(self.path, "".join(_to_line(written) for written in fresh.values()).encode())
        for written in fresh.values():
            self._hold(written)

    def _hold(self, written: Written) -> None:
        if written.key not in self._held:
            self._held[written.key] = written
            self.counts[written.parsed.status] += 1

    def _load(self, path: AnyPath) -> None:
        lines, torn = whole_lines(path)
        self.torn_lines = int(torn)
        for row, line in enumerate(lines, start=1):
            try:
                written = _from_line(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"not a cached rubric ({error})",
                    remedy="remove this line, or the file to have all rubrics written again",
                    file=path,
                    row=row,
                ) from error
            self._hold(written)


def _to_line(written: Written) -> str:
    parsed = written.parsed
    record = {
        "key": written.key,
        "status": parsed.status,
        "reason": parsed.reason,
        "rubric": None if parsed.rubric is None else json.loads(schema.to_json(parsed.rubric)),
        "text": written.text,
    }
    return json.dumps(record) + "\n"


def _from_line(line: bytes) -> Written:
    record = json.loads(line)
    rubric = record["rubric"]
    if rubric is not None:
        rubric = schema.from_records(rubric, min_criteria=1, max_criteria=len(rubric))
    return Written(record["key"], record["text"], Parsed(rubric, record["status"], record["reason"]))
