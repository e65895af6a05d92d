"""Chains of small steps on one running value, generated from (split, seed, index).

A problem gives a start value and labelled steps. Each step makes the next value from the last one and a number, modulo 11, so that a small
model can learn every step by heart: `KINDS` times 11 values times 8 numbers. Half of the steps are of easy kinds, half of hard ones, at
which authors take wrong turns. Every step is a bijection of values, so a wrong turn changes the answer unless a later one cancels it.

Splits share no question. Evaluation holds out *pairs of neighbouring steps*: each of its questions has a pair that no question of training
has, although training has both steps in other pairs. Out of distribution are longer chains: 13 to 16 steps, where training has 8 to 12.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import NamedTuple

from rcsd_jax.world.problems import share_of

SPLITS = ("train", "eval", "ood")
MODULUS = 11
NUMBERS = tuple(range(2, 10))
LABELS = "abcdefghijklmnopqrst"
"""Steps are labelled from a random letter on, so that training shows every label although its chains are shorter."""
LENGTHS = {"train": (8, 12), "eval": (8, 12), "ood": (13, 16)}
"""Split -> the fewest and the most steps."""
HELD_OUT = 0.1
"""The share of pairs of neighbouring steps that only evaluation has."""


class Kind(NamedTuple):
    """A kind of step.

    Attributes:
      does: (value, number) -> the next value, before the modulus.
      slip: the same for the wrong turn that authors take. For a few values it is the right one; then there is no wrong turn.
      rule: what a rubric says of it; "" for an easy kind, at which authors seldom take the wrong turn.
    """

    does: Callable[[int, int], int]
    slip: Callable[[int, int], int]
    rule: str = ""


KINDS: dict[str, Kind] = {
    "add": Kind(lambda v, k: v + k, lambda v, k: v - k),
    "take": Kind(lambda v, k: v - k, lambda v, k: v + k),
    "times": Kind(lambda v, k: v * k, lambda v, k: v + k, "multiply at times"),
    "from": Kind(lambda v, k: k - v, lambda v, k: v - k, "number minus value at from"),
    "twice": Kind(lambda v, k: v + 2 * k, lambda v, k: v + k, "add two numbers at twice"),
}
EASY = tuple(name for name, kind in KINDS.items() if not kind.rule)
HARD = tuple(name for name, kind in KINDS.items() if kind.rule)


class Step(NamedTuple):
    """One step of a problem: 'take 4'."""

    kind: str
    number: int

    def result(self, value: int) -> int:
        """The right next value."""
        return KINDS[self.kind].does(value, self.number) % MODULUS

    def slip(self, value: int) -> int:
        """The next value after a wrong turn."""
        return KINDS[self.kind].slip(value, self.number) % MODULUS


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: the start value, the steps, and the index in `LABELS` of the first step's label."""

    start: int
    steps: tuple[Step, ...]
    first: int

    @property
    def labels(self) -> str:
        return LABELS[self.first : self.first + len(self.steps)]

    @property
    def values(self) -> tuple[int, ...]:
        """The value before the first step, and after each."""
        found = [self.start]
        for step in self.steps:
            found.append(step.result(found[-1]))
        return tuple(found)

    @property
    def result(self) -> int:
        return self.values[-1]


def question(problem: Problem) -> str:
    """The question's text: 'start 7 c take 4 d times 2 end ?'."""
    listed = [f"{label} {step.kind} {step.number}" for label, step in zip(problem.labels, problem.steps, strict=True)]
    return " ".join([f"start {problem.start}", *listed, "end ?"])


def held_out(first: Step, second: Step) -> bool:
    """Whether only evaluation may have these steps one after the other."""
    return share_of("chains", *first, *second) < HELD_OUT


def pairs(problem: Problem) -> list[tuple[Step, Step]]:
    """The pairs of neighbouring steps."""
    return list(zip(problem.steps, problem.steps[1:], strict=False))


def generate(split: str, seed: int, index: int) -> Problem:
    """Problem `index` of a split of `SPLITS`.

    Raises:
      ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {SPLITS}")
    rng = random.Random(f"chains:{split}:{seed}:{index}")
    while True:
        problem = _draw(rng, *LENGTHS[split], training=split == "train")
        if split == "train" or any(held_out(*pair) for pair in pairs(problem)):
            return problem


def _draw(rng: random.Random, fewest: int, most: int, *, training: bool) -> Problem:
    """A problem; in training, one without pairs that are held out."""
    count = rng.randint(fewest, most)
    hard = set(rng.sample(range(count), count // 2))
    steps: list[Step] = []
    while len(steps) < count:
        step = Step(rng.choice(HARD if len(steps) in hard else EASY), rng.choice(NUMBERS))
        if not (training and steps and held_out(steps[-1], step)):
            steps.append(step)
    return Problem(rng.randrange(MODULUS), tuple(steps), rng.randint(0, len(LABELS) - count))
