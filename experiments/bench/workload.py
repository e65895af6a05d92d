"""A workload of real lengths, as numbers of tokens: prompts of both roles, completions that end early, and what padding adds.

Prompts are those of the planner's `--lengths=rar_science`: 399 rows of RaR-Science, the teacher's with their rubric, counted with
Qwen3's tokenizer. Completions are lognormal, as there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcsd_jax.plan.lengths import Drawn, Lognormal, read, within
from rcsd_jax.plan.planned import Queue
from rcsd_jax.plan.work import queued
from rcsd_jax.run.batch import padded_length

HISTOGRAM = read("rar_science")
assert isinstance(HISTOGRAM.completions, Lognormal), "the one that ships"
COMPLETIONS = HISTOGRAM.completions
LIMITS = 2048, 4096
"""The longest prompts of student and teacher: the settings' defaults."""


class Rows(NamedTuple):
    """A batch: its lengths, and each row's prompts as token ids."""

    lengths: Drawn
    student: list[np.ndarray]  # [P] int32 each
    teacher: list[np.ndarray]  # [Q] int32 each, which begin with the student's


class Tokens(NamedTuple):
    """Tokens of a batch: those that are real, or those that a step computes."""

    student_prompts: int
    teacher_prompts: int
    learning: int  # prompts and completions of both roles


@dataclasses.dataclass(frozen=True)
class Workload:
    """The distribution of lengths, with every length divided by `shrink`.

    Attributes:
      shrink: 1 for the real lengths.
      median: of the completions' real lengths.
    """

    shrink: int = 16
    median: int = round(COMPLETIONS.median)

    @property
    def limit(self) -> int:
        """The longest completion: longer ones are cut."""
        return 4096 // self.shrink

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Prompt lengths of student and teacher of all rows, [399] int each. They do not depend on a seed."""
        kept = within(HISTOGRAM, student=LIMITS[0], teacher=LIMITS[1])
        return self._shrunk(np.repeat(kept.student, kept.rows)), self._shrunk(np.repeat(kept.teacher, kept.rows))

    def batches(self, size: int, count: int) -> list[Drawn]:
        """The first `count` batches of `size` rows. Rows come in random order, each once before any comes again."""
        rng = np.random.default_rng(1)
        student, teacher = self.rows()
        passes = -(-size * count // len(student))
        order = np.concatenate([rng.permutation(len(student)) for _ in range(passes)])
        drawn = np.minimum(
            rng.lognormal(np.log(self.median), COMPLETIONS.sigma, size * count), self.limit * self.shrink
        )
        completions = self._shrunk(drawn)
        parts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return [Drawn(student[order[part]], teacher[order[part]], completions[part]) for part in parts]

    def padded_prompts(self, lengths: Drawn) -> tuple[int, int]:
        """The lengths that the trainer pads the prompts of student and teacher to, by the settings' defaults."""
        student, teacher = self.rows()
        pad_to = 128 // self.shrink
        return (
            padded_length(lengths.student.tolist(), int(student.max()), pad_to, LIMITS[0] // self.shrink),
            padded_length(lengths.teacher.tolist(), int(teacher.max()), pad_to, LIMITS[1] // self.shrink),
        )

    def _shrunk(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(np.rint(lengths / self.shrink), 1).astype(int)


def with_tokens(lengths: Drawn, vocab_size: int) -> Rows:
    """A batch with random prompts. The first eight ids are left out: peers' tokenizers keep them for special tokens."""
    rng = np.random.default_rng(0)
    teacher = [rng.integers(8, vocab_size, n).astype(np.int32) for n in lengths.teacher]
    return Rows(lengths, [row[:n] for row, n in zip(teacher, lengths.student, strict=True)], teacher)


def real(lengths: Drawn) -> Tokens:
    """The real tokens of a batch."""
    return _tokens(lengths.student.sum(), lengths.teacher.sum(), lengths.completion.sum())


def padded(lengths: Drawn, student: int, teacher: int, completion: int) -> Tokens:
    """The tokens of a batch whose rows are all padded to the same lengths."""
    rows = len(lengths.student)
    return _tokens(rows * student, rows * teacher, rows * completion)


def padded_to_limit(workload: Workload, lengths: Drawn) -> Tokens:
    """The tokens of the trainer's padded step: prompts padded to few lengths, completions to the longest there may be."""
    return padded(lengths, *workload.padded_prompts(lengths), workload.limit)


def padded_to_longest(workload: Workload, lengths: Drawn) -> Tokens:
    """The tokens of a batch that is padded to its own longest prompts and completion."""
    del workload
    return padded(lengths, *(int(x.max()) for x in lengths))


def decode_steps(completions: Sequence[int], slots: int) -> int:
    """Decode steps of completions in order, if the next takes the slot of the first that ends.

    Examples:
      >>> decode_steps([4, 1, 2], slots=3), decode_steps([4, 1, 2], slots=2), decode_steps([4, 1, 2], slots=1)
      (4, 4, 7)
    """
    return queued(completions, Queue(slots=slots, refill=1, shards=1, group=1))[0]


def _tokens(student: int, teacher: int, completion: int) -> Tokens:
    return Tokens(int(student), int(teacher), int(student + teacher + 2 * completion))
