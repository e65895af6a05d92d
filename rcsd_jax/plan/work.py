"""From the lengths of a batch to the work of its step: which program runs how often, and at which padded lengths.

`padded_step` is the step as it is: prompts padded as `run/batch.py` pads them, completions to the longest that there may be. Another way
to fill shapes is another function from `Drawn` to `Work`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcsd_jax.models.kernels import paged
from rcsd_jax.plan.lengths import Drawn
from rcsd_jax.plan.programs import Queue
from rcsd_jax.run.batch import padded_length


class Run(NamedTuple):
    """A program of `programs.NAMES` at padded prompt lengths; None where it does not depend on a role's prompts."""

    program: str
    student_prompt: int | None = None
    teacher_prompt: int | None = None


class Work(NamedTuple):
    """The work of one step.

    Attributes:
      runs: how often each program runs.
      decoded: tokens of completions.
      places: tokens that decoding had room for: its steps times its slots.
      cache_read: the share of the cache that a decode step reads, if it reads the blocks in use; 0 without decoding.
      real: tokens that student and teacher score, prompts and completions.
      padded: the same with padding.
    """

    runs: dict[Run, int]
    decoded: int
    places: int
    cache_read: float
    real: int
    padded: int


class Padding(NamedTuple):
    """What decides how a step pads.

    Attributes:
      pad_to: `data.pad_to`.
      student, teacher: (longest prompt of the data, limit) of each role.
      completion: tokens that every completion is padded to.
      microbatches: parts of a batch.
      samples: completions are sampled, not taken from the data.
      queue: how they are sampled; None: all rows of the batch at once.
      scores: a teacher scores them.
      guided: it also scores them without its context, after the student's prompt.
    """

    pad_to: int
    student: tuple[int, int]
    teacher: tuple[int, int]
    completion: int
    microbatches: int
    samples: bool = True
    queue: Queue | None = None
    scores: bool = True
    guided: bool = False


def padded_step(drawn: Drawn, how: Padding) -> Work:
    """The work of a step on a batch with these lengths."""
    rows, completions = len(drawn.completion), int(drawn.completion.sum())
    student = padded_length(drawn.student.tolist(), how.student[0], how.pad_to, how.student[1])
    teacher = padded_length(drawn.teacher.tolist(), how.teacher[0], how.pad_to, how.teacher[1])
    runs = {Run("student forward+backward", student): how.microbatches, Run("update"): 1}
    real, padded = int(drawn.student.sum()) + completions, rows * (student + how.completion)
    places, cache_read = 0, 0.0
    if how.samples:
        slots = how.queue.slots if how.queue else rows
        longest = int(drawn.completion.max())
        steps, prefills = queued(drawn.completion.tolist(), how.queue) if how.queue else (longest, 1)
        runs |= {Run("prefill", student): prefills, Run("decode", student): steps}
        places = steps * slots
        cache = -(-(student + how.completion) // paged.PAGE) * paged.PAGE
        block = paged.block(cache)
        # In a batch, ended rows go on until the longest ends; in a queue, free slots begin again.
        tokens = drawn.completion if how.queue else np.full(rows, longest)
        read = _read(drawn.student, tokens, block).sum() + (places - tokens.sum()) * block
        cache_read = float(read / (places * cache))
    if how.scores:
        runs[Run("teacher scoring", student if how.guided else None, teacher)] = how.microbatches
        real += int(drawn.teacher.sum()) + completions
        padded += rows * (teacher + how.completion)
        if how.guided:
            real += int(drawn.student.sum()) + completions
            padded += rows * (student + how.completion)
    return Work(runs, completions if how.samples else 0, places, cache_read, real, padded)


def _read(prompt: np.ndarray, tokens: np.ndarray, block: int) -> np.ndarray:
    """Places that rows read for `tokens` tokens after their prompts, each token its own and those before, in whole blocks.

    Examples:
      >>> _read(np.array([3]), np.array([3]), block=4)  # 4 for the first token, 8 for the others
      array([20])
    """

    def up_to(places: np.ndarray) -> np.ndarray:
        """Read by tokens at all these places."""
        whole, rest = np.divmod(places, block)
        return block * (block * whole * (whole + 1) // 2 + rest * (whole + 1))

    return up_to(prompt + tokens) - up_to(prompt)


def queued(completions: Sequence[int], queue: Queue) -> tuple[int, int]:
    """Decode steps and batches of prefilled prompts of `sampling.slots.generate_queue`.

    Args:
      completions: the length of each, in the order of the queue.
      queue: how it samples.

    Examples:
      >>> queued([3, 1, 1, 2], Queue(slots=2, refill=1, shards=1, group=1))  # one slot writes 3 + 0, the other 1 + 1 + 2
      (4, 4)
    """
    parts = np.reshape(completions, (queue.shards, -1))
    samples, slots, refill = parts.shape[1], queue.slots // queue.shards, queue.refill // queue.shards
    shelf = refill if queue.shards == 1 else 2 * refill
    ends = [[0] * slots for _ in parts]  # heaps: the step at which each slot is free
    given, shelved, prefills = [0] * queue.shards, [0] * queue.shards, 0
    every = range(queue.shards)

    def waits(s: int) -> bool:
        return given[s] < samples and ends[s][0] <= now

    def ready(s: int) -> bool:
        return given[s] < min(shelved[s] * queue.group, samples)

    while any(given[s] < samples for s in every):
        now = min(ends[s][0] for s in every if given[s] < samples)
        while any(waits(s) for s in every):
            while any(waits(s) and not ready(s) for s in every):
                prefills += 1
                for s in every:
                    if shelved[s] - given[s] // queue.group <= shelf - refill:
                        shelved[s] += refill
            for s in every:
                if waits(s):
                    heapq.heapreplace(ends[s], now + int(parts[s][given[s]]))
                    given[s] += 1
    return max(max(e) for e in ends), prefills
