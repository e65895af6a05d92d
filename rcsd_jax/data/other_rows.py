"""Another row's material for each row: a hint that is well formed, and wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError

MATERIAL = ("reference", "answer", "solution", "rubric")
"""The fields that are taken from the other row."""


def with_other_rows(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """The examples with `extra["other_row"]`: the fields of `MATERIAL` of another row, which follows from seed and id.

    Raises:
      UserError: there is only one row.
    """
    if len(examples) < 2:
        problem, remedy = "there is no other row whose material could be shown", "give more rows, or set another value"
        raise UserError(problem, field="teacher.guidance_by", value="other_row", remedy=remedy)

    def other(at: int) -> Example:
        rng = random.Random(hashlib.sha256(f"other row:{seed}:{examples[at].id}".encode()).digest())
        return examples[(at + rng.randrange(1, len(examples))) % len(examples)]

    taken = ({name: getattr(other(at), name) for name in MATERIAL} for at in range(len(examples)))
    return [
        dataclasses.replace(one, extra={**one.extra, "other_row": material})
        for one, material in zip(examples, taken, strict=True)
    ]
