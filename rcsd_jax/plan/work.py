"""From the lengths of batches to the work of an update: which program runs how often, and at which lengths.

A rollout samples the completions of some batches, which are then learned from one by one. `rollout` is the work of sampling;
`padded_step` and `packed_step` are two ways to learn from a batch. Another way to fill shapes is another function from `Drawn` to `Work`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rcsd_jax.methods.packing import largest_trip, row_lengths
from rcsd_jax.models.kernels import paged, splash
from rcsd_jax.plan.lengths import Drawn
from rcsd_jax.plan.packing import blocks_computed, deal, length_of, rows_of, trips_of
from rcsd_jax.plan.planned import Queue
from rcsd_jax.plan.windows import GLOBAL, Windows, mean
from rcsd_jax.run.batch import padded_length
from rcsd_jax.sampling import short_prefill


class Run(NamedTuple):
    """A program of `planned.NAMES`, and the lengths that it is compiled for: None where it does not depend on them.

    Attributes:
      program: its name.
      student_prompt, teacher_prompt: padded prompts.
      row: tokens of a packed row.
      rows: packed rows of one run, of all shards.
    """

    program: str
    student_prompt: int | None = None
    teacher_prompt: int | None = None
    row: int | None = None
    rows: int | None = None


class Work(NamedTuple):
    """Some work.

    Attributes:
      runs: how often each program runs.
      decoded: tokens of completions.
      places: tokens that decoding had room for: its steps times its slots.
      read: places of the cache that decoding reads, if it reads the blocks in use; the mean over layers.
      cache: places that it would read if it read all of the cache.
      real: tokens that student and teacher score, prompts and completions.
      padded: the same with padding.
      attended: of packed rows, the pairs of blocks that attention computes, over those of rows that are one sequence without windows;
        summed over the runs.
    """

    runs: Mapping[Run, float]
    decoded: float = 0
    places: float = 0
    read: float = 0
    cache: float = 0
    real: float = 0
    padded: float = 0
    attended: Mapping[Run, float] = {}


class Sampling(NamedTuple):
    """What decides the work of a rollout.

    Attributes:
      queue: how its completions are sampled; None: all at once.
      completion: the longest completion.
      windows: of the model that samples.
    """

    queue: Queue | None
    completion: int
    windows: Windows = GLOBAL


class Learning(NamedTuple):
    """What decides the work of a step.

    Attributes:
      completion: tokens that every completion is padded to.
      microbatches: parts of a batch.
      scores: a teacher scores the completions.
      guided: it also scores them without its context, after the student's prompt.
      shards: of rows on the mesh; packing deals a batch to them.
      row_lengths: how many static lengths a packed row can have; 0: rows are not packed.
      parts: devices of a shard that share its packed rows.
      windows, teacher_windows: of the two roles.
    """

    completion: int
    microbatches: int
    scores: bool = True
    guided: bool = False
    shards: int = 1
    row_lengths: int = 0
    parts: int = 1
    windows: Windows = GLOBAL
    teacher_windows: Windows = GLOBAL


class Prompts(NamedTuple):
    """How the prompts of a rollout are padded.

    Attributes:
      pad_to: `data.pad_to`.
      student, teacher: (longest prompt of the data, limit) of each role.
    """

    pad_to: int
    student: tuple[int, int]
    teacher: tuple[int, int]

    def padded(self, batches: Sequence[Drawn]) -> tuple[int, int]:
        """The lengths that the prompts of student and teacher are padded to."""
        student = [length for batch in batches for length in batch.student.tolist()]
        teacher = [length for batch in batches for length in batch.teacher.tolist()]
        return (
            padded_length(student, self.student[0], self.pad_to, self.student[1]),
            padded_length(teacher, self.teacher[0], self.pad_to, self.teacher[1]),
        )


class How(NamedTuple):
    """What decides the work of an update.

    Attributes:
      prompts: how they are padded.
      sampling: how completions are sampled; None: they are the data's.
      learning: how a batch is learned from.
      passes: how often each batch of a rollout is learned from.
    """

    prompts: Prompts
    sampling: Sampling | None
    learning: Learning
    passes: int = 1


def update(batches: Sequence[Drawn], how: How) -> Work:
    """The work of an update, on average over those that a rollout of these batches serves."""
    prompts = how.prompts.padded(batches)
    learn = packed_step if how.learning.row_lengths else padded_step
    parts = [learn(batch, prompts, how.learning) for batch in batches] * how.passes
    if how.sampling:
        parts.append(rollout(batches, prompts[0], how.sampling))
    return _sum(parts, 1 / (len(batches) * how.passes))


def _sum(works: Iterable[Work], factor: float) -> Work:
    """The sum of works, times a factor."""
    works = list(works)

    def added(name: str) -> dict[Run, float]:
        total: dict[Run, float] = defaultdict(float)
        for work in works:
            for run, count in getattr(work, name).items():
                total[run] += factor * count
        return dict(total)

    numbers = {name: factor * sum(getattr(work, name) for work in works) for name in Work._fields[1:-1]}
    return Work(added("runs"), **numbers, attended=added("attended"))


# --- sampling --------------------------------------------------------------------------------------------------------


def rollout(batches: Sequence[Drawn], prompt: int, how: Sampling) -> Work:
    """The work of sampling the completions of some batches.

    Args:
      batches: their lengths.
      prompt: tokens that prompts are padded to.
      how: they are sampled.
    """
    student, completion = (np.concatenate([getattr(b, name) for b in batches]) for name in ("student", "completion"))
    rows, longest = len(completion), int(completion.max())
    slots, steps = rows, longest
    runs: dict[Run, float] = defaultdict(float)
    if how.queue:
        slots = how.queue.slots
        steps, groups = _through_slots(completion.tolist(), how.queue)
        for length in _prefilled(student, groups, how.queue, prompt):
            runs[Run("prefill", length)] += 1
    else:
        runs[Run("prefill", prompt)] = 1
    runs[Run("decode")] = steps
    places = steps * slots
    cache = cache_places(prompt, how.completion)
    block = paged.block(cache)
    # All at once, ended rows go on until the longest ends; in a queue, free slots begin again.
    tokens = completion if how.queue else np.full(rows, longest)
    read = mean(how.windows, lambda window: float(_read(student, tokens, block, window).sum()))
    read += float(places - tokens.sum()) * block
    return Work(dict(runs), decoded=int(completion.sum()), places=places, read=read, cache=places * cache)


def cache_places(prompt: int, completion: int) -> int:
    """Places of a row in the cache: whole pages of `models.kernels.paged`."""
    return -(-(prompt + completion) // paged.PAGE) * paged.PAGE


def _read(prompt: np.ndarray, tokens: np.ndarray, block: int, window: int | None = None) -> np.ndarray:
    """The sum of `windows.places_read` of `tokens` tokens after each prompt.

    Examples:
      >>> _read(np.array([3]), np.array([3]), block=4)  # 4 for the first token, 8 for the others
      array([20])
      >>> _read(np.array([3]), np.array([3]), block=4, window=2)  # the third sees nothing of the first block
      array([16])
    """

    def before(places: np.ndarray) -> np.ndarray:
        """The sum over these places of what lies in earlier blocks than each."""
        whole, rest = np.divmod(np.maximum(places, 0), block)
        return block * (block * whole * (whole - 1) // 2 + rest * whole)

    read = before(prompt + tokens) - before(prompt) + block * tokens
    if window is None:
        return read
    return read - before(prompt + tokens + 1 - window) + before(prompt + 1 - window)


def queued(completions: Sequence[int], queue: Queue) -> tuple[int, int]:
    """Decode steps and batches of prefilled prompts of `sampling.slots.generate_queue`.

    Args:
      completions: the length of each, in the order of the queue.
      queue: how it samples.

    Examples:
      >>> queued([3, 1, 1, 2], Queue(slots=2, refill=1, shards=1, group=1))  # one slot writes 3 + 0, the other 1 + 1 + 2
      (4, 4)
    """
    steps, groups = _through_slots(completions, queue)
    return steps, len(groups)


def _through_slots(completions: Sequence[int], queue: Queue) -> tuple[int, list[list[int]]]:
    """Decode steps, and for each batch of prefilled prompts how many prompts of each shard were prefilled before."""
    # Prompts are dealt to the shards in turn.
    parts = np.reshape(completions, (-1, queue.shards, queue.group)).swapaxes(0, 1).reshape(queue.shards, -1)
    samples, slots, refill = parts.shape[1], queue.slots // queue.shards, queue.refill // queue.shards
    shelf = refill if queue.shards == 1 else 2 * refill
    ends = [[0] * slots for _ in parts]  # heaps: the step at which each slot is free
    given, shelved = [0] * queue.shards, [0] * queue.shards
    groups: list[list[int]] = []
    every = range(queue.shards)

    def waits(s: int) -> bool:
        return given[s] < samples and ends[s][0] <= now

    def ready(s: int) -> bool:
        return given[s] < min(shelved[s] * queue.group, samples)

    while any(given[s] < samples for s in every):
        now = min(ends[s][0] for s in every if given[s] < samples)
        while any(waits(s) for s in every):
            while any(waits(s) and not ready(s) for s in every):
                groups.append(list(shelved))
                for s in every:
                    if shelved[s] - given[s] // queue.group <= shelf - refill:
                        shelved[s] += refill
            for s in every:
                if waits(s):
                    heapq.heapreplace(ends[s], now + int(parts[s][given[s]]))
                    given[s] += 1
    return max(max(e) for e in ends), groups


def _prefilled(student: np.ndarray, groups: Sequence[Sequence[int]], queue: Queue, longest: int) -> list[int]:
    """The length at which each batch of prompts is prefilled: see `sampling.short_prefill`.

    Args:
      student: [rows] int, the prompt of each completion.
      groups: of `_through_slots`.
      queue: how the completions are sampled.
      longest: tokens that all prompts are padded to.

    Examples:
      >>> queue = Queue(slots=2, refill=2, shards=1, group=1)
      >>> _prefilled(np.array([9, 2, 3, 64]), [[0], [2]], queue, 64)
      [16, 64]
    """
    prompts = np.reshape(student[:: queue.group], (-1, queue.shards)).T  # [shards, prompts of a shard]
    refill, last = queue.refill // queue.shards, prompts.shape[1] - 1
    lengths, found = short_prefill.lengths(longest), []
    for before in groups:
        most = max(prompts[s, np.minimum(n + np.arange(refill), last)].max() for s, n in enumerate(before))
        found.append(next(length for length in lengths if length >= most))
    return found


# --- learning --------------------------------------------------------------------------------------------------------


def padded_step(drawn: Drawn, prompts: tuple[int, int], how: Learning) -> Work:
    """The work of learning from a batch whose rows are all as long as they may be.

    Args:
      drawn: its lengths.
      prompts: tokens that the prompts of student and teacher are padded to.
      how: it is learned from.
    """
    rows, completions = len(drawn.completion), int(drawn.completion.sum())
    student, teacher = prompts
    runs = {Run("student forward+backward", student): how.microbatches, Run("update"): 1}
    real, padded = int(drawn.student.sum()) + completions, rows * (student + how.completion)
    if how.scores:
        runs[Run("teacher scoring", student if how.guided else None, teacher)] = how.microbatches
        real += int(drawn.teacher.sum()) + completions
        padded += rows * (teacher + how.completion)
        if how.guided:
            real += int(drawn.student.sum()) + completions
            padded += rows * (student + how.completion)
    return Work(runs, real=real, padded=padded)


def packed_step(drawn: Drawn, prompts: tuple[int, int], how: Learning) -> Work:
    """The work of learning from a batch whose sequences are packed into rows; arguments as of `padded_step`.

    It is that of `methods.packed_learning`.
    """
    most = len(drawn.completion) // (how.microbatches * how.shards)
    student, teacher = drawn.student + drawn.completion, drawn.teacher + drawn.completion
    own = deal(3 * student + (teacher if how.scores else student), how.shards)
    runs: dict[Run, float] = defaultdict(float)
    attended: dict[Run, float] = defaultdict(float)
    real, padded = 0, 0

    def pack(program: str, sequences: Sequence[np.ndarray], prompt: int, windows: Windows) -> None:
        nonlocal real, padded
        rows, longest = largest_trip(prompt + how.completion, most, how.parts)  # of a shard
        lengths = row_lengths(longest, how.row_lengths, how.parts)
        # The last token of a completion predicts nothing.
        shards = [np.concatenate([lengths[mine] - 1 for lengths in sequences]).tolist() for mine in own]
        for trip in trips_of(rows_of(shards, longest, rows, level=how.parts > 1), rows):
            length = length_of(trip, lengths)
            run = Run(program, row=length, rows=rows * how.shards)
            runs[run] += 1
            attended[run] += _attended(trip, length, rows, windows)
            padded += rows * how.shards * length
        real += sum(map(sum, shards))

    if how.scores and how.guided:
        pack("teacher scoring", [teacher, student], max(prompts), how.teacher_windows)
    elif how.scores:
        pack("teacher scoring", [teacher], prompts[1], how.teacher_windows)
    pack("student forward+backward", [student], prompts[0], how.windows)
    runs[Run("update")] = 1
    return Work(dict(runs), real=real, padded=padded, attended=dict(attended))


def _attended(trip: Sequence[Sequence[int]], length: int, rows: int, windows: Windows = GLOBAL) -> float:
    """The share of attention's blocks that the device with most of them computes, see `models.kernels.splash.attend`."""
    length += splash.padding(length)
    if rows > 1:  # then it computes also what shares no sequence
        trip = [[length]]
    block = splash.block(length)
    return mean(windows, lambda window: max(blocks_computed(row, length, block, window) for row in trip))
