"""The ground-truth rubric of a problem, and the programs that grade a text criterion by criterion."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from rcsd_jax.world.problems import Problem, Quantity

UNIT, BOX, CHECK = "give unit {}", "box answer", "check units"
LAW, CONVERT, IGNORE, TWICE = "state {}", "convert {} to {}", "use {}", "double the product"
STEPS = ("law", "convert_a", "convert_b", "distractor", "twice", "check", "unit", "box")
CLASSES = {
    "law": "Essential",
    "convert_a": "Essential",
    "convert_b": "Essential",
    "distractor": "Pitfall",
    "twice": "Essential",
    "check": "Optional",
    "unit": "Important",
    "box": "Important",
}
GENERIC = (
    "Essential Criteria: state the law",
    "Essential Criteria: convert units",
    "Important Criteria: be careful",
    "Important Criteria: box answer",
)
"""Criteria that fit any problem without reading it."""


def law(problem: Problem, *, operator: str = "*") -> str:
    """The law in words: 'energy = power * time'."""
    kind = problem.law
    return f"{kind.result} = {kind.a.name} {operator} {kind.b.name}"


def steps(problem: Problem) -> tuple[str, ...]:
    """The steps that a careful solution of this problem needs, in order (a subset of STEPS)."""
    return tuple(s for s in STEPS if s in ("law", "check", "unit", "box") or s in problem.complications)


def description(problem: Problem, step: str) -> str:
    """The criterion of one step, without its class. A Pitfall names the mistake."""
    quantities: dict[str, Quantity] = {"convert_a": problem.law.a, "convert_b": problem.law.b}
    if step in quantities:
        return CONVERT.format(quantities[step].name, quantities[step].unit)
    return {
        "law": LAW.format(law(problem)),
        "distractor": IGNORE.format(problem.distractor[0] if problem.distractor else ""),
        "twice": TWICE,
        "check": CHECK,
        "unit": UNIT.format(problem.law.unit),
        "box": BOX,
    }[step]


def criterion(problem: Problem, step: str) -> str:
    """The criterion of one step as a string with its class prefix."""
    return f"{CLASSES[step]} Criteria: {description(problem, step)}"


def true_rubric(problem: Problem) -> tuple[str, ...]:
    """The four to eight criteria of this problem."""
    return tuple(criterion(problem, step) for step in steps(problem))


def derived_rubric(problem: Problem, reference: str) -> tuple[str, ...]:
    """The criteria that someone draws from a reference and nothing else, so that they inherit its flaws.

    A step that the reference leaves out has no criterion, and a law that it misstates is misstated. Checking is asked for in any
    case, because faultless references may leave it out too.
    """
    done = satisfied(problem, reference)
    texts = {step: criterion(problem, step) for step in steps(problem) if done[step] or step in ("law", "check")}
    if not done["law"]:
        texts["law"] = f"{CLASSES['law']} Criteria: {LAW.format(law(problem, operator='+'))}"
    return tuple(texts.values())


@dataclasses.dataclass(frozen=True)
class Boxed:
    """The content of the last box: a number if its digits can be read, and the unit (may be empty)."""

    value: int | None
    unit: str


def boxed(text: str) -> Boxed | None:
    """The last complete `\\boxed{ ... }` of a text, or None."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if not found:
        return None
    match = re.match(r"\s*((?:\d+\s+)*\d+)\s*(.*?)\s*$", found[-1])
    if match is None:
        return Boxed(None, found[-1].strip())
    return Boxed(int(match[1].replace(" ", "")), " ".join(match[2].split()))


def answer_correct(problem: Problem, text: str) -> bool:
    """Whether the last box holds the exact result with its unit."""
    found = boxed(text)
    return found is not None and found.value == problem.result and found.unit == problem.law.unit


def grade(problem: Problem, text: str) -> dict[str, bool]:
    """For every criterion of the true rubric (by description), whether the text meets it.

    A Pitfall is met when the text makes the mistake: a careful text meets every criterion but the Pitfalls.
    """
    flat = " ".join(text.split())
    return {description(problem, step): _met(problem, step, flat) for step in steps(problem)}


def satisfied(problem: Problem, text: str) -> dict[str, bool]:
    """For every step of the problem, whether the text does it right; for a Pitfall, whether it avoids the mistake."""
    flat = " ".join(text.split())
    return {step: _met(problem, step, flat) != (CLASSES[step] == "Pitfall") for step in steps(problem)}


def _met(problem: Problem, step: str, flat: str) -> bool:
    if step == "law":
        return f"law {law(problem)} ;" in flat
    if step in ("convert_a", "convert_b"):
        return _converts(problem, 0 if step == "convert_a" else 1, flat)
    if step == "distractor":
        return problem.distractor is not None and problem.distractor[1] in _factors(flat)
    if step == "twice":
        products = _integers(re.findall(r"so [^;=]*= ([\d ]+);", flat))
        doubles = _integers(re.findall(r"double ([\d ]+);", flat))
        return bool(products and doubles) and doubles[-1] == 2 * products[-1]
    if step == "check":
        return f"{CHECK} ;" in flat
    found = boxed(flat)
    if step == "unit":
        last = flat.rsplit("answer", 1)[-1]
        stated = found.unit if found else re.sub(r"(?<!\S)\d+(?!\S)", " ", last).strip()
        return "answer" in flat and stated == problem.law.unit
    return found is not None


def _converts(problem: Problem, i: int, flat: str) -> bool:
    quantity = problem.quantities[i]
    for value, unit, result, base in re.findall(rf"(?:^|; ){quantity.name} ([\d ]+) (\S+) = ([\d ]+) (\S+) ;", flat):
        if unit == problem.shown_unit(i) and base == quantity.unit:
            if _integer(value) == problem.values[i] and _integer(result) == problem.base_value(i):
                return True
    return False


def _factors(flat: str) -> list[int]:
    """The numbers on the left side of every computation."""
    found: list[int] = []
    for left in re.findall(r"so ([\d *+]+)=", flat):
        found += _integers(re.split(r"[*+]", left))
    return found


def _integers(parts: Iterable[str]) -> list[int]:
    return [number for number in map(_integer, parts) if number is not None]


def _integer(digits: str) -> int | None:
    digits = digits.replace(" ", "")
    return int(digits) if digits else None
