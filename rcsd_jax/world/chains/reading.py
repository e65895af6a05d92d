"""What a completion did, read from its text: steps, wrong turns, checks, repairs, jumps, and whether the answer follows."""

from __future__ import annotations

import re
from typing import NamedTuple

from rcsd_jax.world.chains.problems import LABELS, Problem, Step

_LINE = re.compile(rf"(?:^|; )(check|[{LABELS}]) (\d+) (\w+) (\d+) = (\d+)(?= |$)")


class Written(NamedTuple):
    """A step as a completion wrote it.

    Attributes:
      label: of the step.
      value: the one before the step, as its first line states it.
      last: the value after the step, and after its checks.
      fine: for its first line, then for each check, whether it is what the problem's step makes of the value before it.
      jumps: whether its first line starts from another value than the one that the text had reached.
    """

    label: str
    value: int
    last: int
    fine: tuple[bool, ...]
    jumps: bool

    @property
    def wrong(self) -> bool:
        """Whether a wrong turn was taken, in the step or in its check."""
        return not all(self.fine)

    @property
    def repaired(self) -> bool:
        """Whether a wrong turn was taken and the last word on the step is right."""
        return self.wrong and self.fine[-1]

    @property
    def checks(self) -> int:
        return len(self.fine) - 1


def read(problem: Problem, text: str) -> tuple[Written, ...]:
    """The steps that the text writes, in its order. A line with the label of the line before it counts as a check."""
    steps = dict(zip(problem.labels, problem.steps, strict=True))
    found: list[Written] = []
    reached = problem.start
    for label, value, kind, number, result in _LINE.findall(" ".join(text.split())):
        value, last, step = int(value), int(result), Step(kind, int(number))
        if found and label in ("check", found[-1].label):
            before = found[-1]
            fine = value == before.value and step == steps.get(before.label) and step.result(value) == last
            found[-1] = before._replace(last=last, fine=(*before.fine, fine))
        elif label != "check":
            fine = step == steps.get(label) and step.result(value) == last
            found.append(Written(label, value, last, (fine,), value != reached))
        reached = found[-1].last if found else reached
    return tuple(found)


def answer(text: str) -> int | None:
    r"""The number in the last complete `\boxed{ }` of a text, or None."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    inside = found[-1].strip() if found else ""
    return int(inside) if re.fullmatch(r"\d{1,3}", inside) else None


def wrong_turns(steps: tuple[Written, ...]) -> int:
    """How many steps took a wrong turn, repaired or not."""
    return sum(step.wrong for step in steps)


def repairs(steps: tuple[Written, ...]) -> int:
    """How many of the wrong turns were repaired."""
    return sum(step.repaired for step in steps)


def checks(steps: tuple[Written, ...]) -> int:
    """How many checks were made, of right steps and of wrong ones."""
    return sum(step.checks for step in steps)


def unrepaired(steps: tuple[Written, ...]) -> bool:
    """Whether a wrong turn stayed."""
    return any(step.wrong and not step.repaired for step in steps)


def sound(problem: Problem, text: str) -> bool:
    """Whether the text writes every step of the problem once and in order, with no wrong turn left and no jump."""
    steps = read(problem, text)
    in_order = "".join(step.label for step in steps) == problem.labels
    return in_order and not unrepaired(steps) and not any(step.jumps for step in steps)


def correct(problem: Problem, text: str) -> bool:
    """Whether the last box holds the right answer."""
    return answer(text) == problem.result


def unfounded(problem: Problem, text: str) -> bool:
    """Whether the answer is right although the steps do not lead to it: it comes from elsewhere, or wrong turns cancelled each other."""
    return correct(problem, text) and not sound(problem, text)
