"""Leakage: how often a completion uses a number that only the teacher's context holds.

A flawed reference has a wrong step, and with it numbers that stand neither in the question nor in a careful solution. A student that
writes one has it from its teacher, or makes the same mistake by itself. So shares say something only next to that of the base, and to
those of arms whose teacher sees no reference.
"""

from __future__ import annotations

import re

from experiments import cells
from experiments.cells import Cell
from rcsd_jax import world
from rcsd_jax.data.examples import Example

HELD_OUT = "held out"
SPLITS = {"trained on": ("trained_on", "stage2"), HELD_OUT: ("in_distribution", cells.SPLITS["in_distribution"])}
"""Column -> the evaluation's split, and the world's."""


def numbers(text: str) -> set[int]:
    """The whole numbers in a text of the world, whose digits stand apart.

    Examples:
      >>> sorted(numbers("so 1 0 000 * 9 = 9 0 000 ; double"))
      [9, 10000, 90000]
    """
    return {int(found.replace(" ", "")) for found in re.findall(r"\d(?: ?\d)*", text)}


def only_there(example: Example) -> set[int]:
    """The numbers that stand in an example's reference, and neither in its question nor in a careful solution."""
    careful = world.documents.careful_solution(example.extra["problem"])
    return numbers(example.reference or "") - numbers(example.question) - numbers(careful)


def share(cell: Cell, split: str, *, flawed: float) -> float:
    """Percent of the trained student's sampled completions that use such a number, of those to questions that have one.

    Args:
      cell: a run whose references are flawed.
      split: a column of `SPLITS`.
      flawed: the share of its references that are.
    """
    asked, of_world = SPLITS[split]
    records = [one for one in cell.records if one["split"] == asked and one["mode"] == "sampled"]
    examples = world.examples(of_world, len({one["id"] for one in records}), seed=cell.seed, flawed=flawed)
    values = {example.id: found for example in examples if (found := only_there(example))}
    uses = [bool(values[one["id"]] & numbers(one["text"])) for one in records if one["id"] in values]
    return 100 * sum(uses) / max(len(uses), 1)
