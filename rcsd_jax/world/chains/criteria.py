"""The ground-truth rubric of a chain, and the programs that grade a text criterion by criterion."""

from __future__ import annotations

from typing import NamedTuple

from rcsd_jax.world.chains import reading
from rcsd_jax.world.chains.problems import HARD, KINDS, Problem

RULE, CHECK, BOX = "rule", "check", "box"
CLASSES = {RULE: "Essential", CHECK: "Important", BOX: "Important"}
GENERIC = (
    "Essential Criteria: work with care",
    "Important Criteria: check every step",
    "Important Criteria: box answer",
)
"""Criteria that fit any problem without reading it."""


class Item(NamedTuple):
    """What a criterion is about: the rule of a kind of step, checks of a kind, or the box."""

    aspect: str
    kind: str = ""


def items(problem: Problem) -> tuple[Item, ...]:
    """The criteria of a problem: two for each of its hard kinds, and the box."""
    there = {step.kind for step in problem.steps}
    of_kinds = [Item(aspect, kind) for kind in HARD if kind in there for aspect in (RULE, CHECK)]
    return (*of_kinds, Item(BOX))


def description(item: Item) -> str:
    """The criterion without its class."""
    if item.aspect == RULE:
        return KINDS[item.kind].rule
    return f"check every {item.kind}" if item.aspect == CHECK else "box answer"


def criterion(item: Item) -> str:
    """The criterion as a string with its class prefix."""
    return f"{CLASSES[item.aspect]} Criteria: {description(item)}"


def true_rubric(problem: Problem, *, checks: bool = True) -> tuple[str, ...]:
    """The three to seven criteria of this problem; those that ask for checks only with `checks`."""
    return tuple(criterion(item) for item in items(problem) if checks or item.aspect != CHECK)


def met(problem: Problem, text: str) -> dict[str, bool]:
    """For every criterion of the true rubric, by description, whether the text meets it.

    A rule is met by a text that writes all steps of the kind and in the end has none wrong, a check by one that checks them all.
    """
    steps = {step.label: step for step in reading.read(problem, text)}

    def is_met(item: Item) -> bool:
        if item.aspect == BOX:
            return reading.answer(text) is not None
        wanted = [label for label, step in zip(problem.labels, problem.steps, strict=True) if step.kind == item.kind]
        written = [steps[label] for label in wanted if label in steps]
        fine = [step.fine[-1] if item.aspect == RULE else step.checks > 0 for step in written]
        return len(written) == len(wanted) and all(fine)

    return {description(item): is_met(item) for item in items(problem)}
