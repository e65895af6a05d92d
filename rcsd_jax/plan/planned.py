"""What is planned: the programs of a run, and the sizes that they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.settings.stage import Settings

TRANSITION = 16
"""Tokens between the analysis and the completion of a teacher that reasons first: the template's, about."""


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      name: one of `NAMES`.
      runs: how often a step runs it, on average.
      rows: of the batch that one run takes; of packed rows, the sequences in them.
      lower: traces it; compiling what it returns takes the time.
      trips: how often its loops run whose end the compiler does not know; None: it knows all.
      row: places of its rows, if attention computes a part of them: they are packed, or layers have windows; else 0.
      attended: the pairs of blocks that attention computes of them, over those of rows that are one sequence without windows; of the
        program "decode", the places of a full cache that it reads, over all.
    """

    name: str
    runs: float
    rows: float
    lower: Callable[[], jax.stages.Lowered]
    trips: int | None = None
    row: int = 0
    attended: float = 1.0


WHOLE = ("train step", "rollout", "learning")
"""Programs that the trainer runs: a whole step, or, if a rollout serves several, its two parts. The others are parts of these."""

NAMES = (*WHOLE, "prefill", "decode", "teacher scoring", "student forward+backward", "update")


class Lengths(NamedTuple):
    """Sizes of a run's arrays."""

    batch: int
    microbatches: int
    student_prompt: int
    teacher_prompt: int  # with analysis and transition
    completion: int


class Queue(NamedTuple):
    """How a queue of completions goes through slots.

    Attributes:
      slots: rows that are decoded together.
      refill: prompts that are prefilled together.
      shards: of rows on the mesh; each has its part of slots, prompts and refill.
      group: completions of a prompt.
    """

    slots: int
    refill: int
    shards: int
    group: int


class PackedRows(NamedTuple):
    """The rows of a trip over packed rows.

    Attributes:
      row: places of each.
      rows: of all shards.
    """

    row: int
    rows: int


class Plan(NamedTuple):
    """What is to be compiled."""

    decoder: DecoderConfig
    teacher: DecoderConfig  # the same, unless it is another model
    mesh: jax.sharding.Mesh
    lengths: Lengths
    lora_rank: int
    lora_targets: tuple[str, ...]
    weight_bytes: float  # of one chip: what decoding reads for every token, as it lies in the program "decode"
    cache_bytes: float  # of one chip: keys and values of whole sequences there
    read_bytes: float  # of these, what a token attends to
    queue: Queue | None  # how completions are sampled; None: all rows of the batch at once
    packed: bool  # sequences are learned from in packed rows; a run of a program over them is a trip
    layout: str  # of `sharding.LAYOUTS`, how devices share the rows that are learned from
    programs: dict[str, Program]


def lengths_of(config: Settings) -> Lengths:
    """The longest that the config allows: every prompt and completion at its limit."""
    reason = config.teacher.reason_tokens
    return Lengths(
        config.train.batch_size,
        config.train.microbatches,
        config.data.max_student_prompt,
        config.data.max_teacher_prompt + (reason + TRANSITION if reason else 0),
        config.sampling.max_new_tokens,
    )
