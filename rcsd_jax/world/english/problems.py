"""One-line problems of quantitative science in English, generated from (split, seed, index).

A problem applies one law, a product or a quotient, to two small numbers. Two complications make it harder: a quantity may have
a unit that must be converted, and a third quantity may be there that no part of the law needs.

Splits share no question. Evaluation holds out *number pairs per kind*, as the embedded world does. Out of distribution are
sentences that training never uses.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from rcsd_jax.world.problems import share_of

SPLITS = ("train", "eval", "ood")
CHANCES = {"convert": 0.2, "distractor": 0.3}
"""The chance of each complication; "convert" where the law has a unit to convert."""


class Quantity(NamedTuple):
    """A named quantity: its unit in the law, and at most one other unit with the factor to it."""

    name: str
    unit: str
    other_unit: str = ""
    factor: int = 1


class Law(NamedTuple):
    """`result = a operator b`, and how a question puts it: a sentence of the training splits, and one that they never use."""

    result: str
    unit: str
    a: Quantity
    operator: str
    b: Quantity
    sentence: str
    other_sentence: str


_TIME = Quantity("time", "s", "min", 60)
_DISTANCE = Quantity("distance", "m", "km", 1000)
_MASS = Quantity("mass", "kg", "t", 1000)
_FORCE = Quantity("force", "N", "kN", 1000)
_POWER = Quantity("power", "W", "kW", 1000)
_PRESSURE = Quantity("pressure", "Pa", "kPa", 1000)
_CHARGE = Quantity("charge", "C")
_CURRENT = Quantity("current", "A")
_VOLTAGE = Quantity("voltage", "V", "kV", 1000)
_RESISTANCE = Quantity("resistance", "ohm")
_SPEED = Quantity("speed", "m/s")
_AREA = Quantity("area", "m2")

# {thing}: what a question calls its subject. {given} holds the quantities, "a speed of 4 m/s and a time of 10 s".
LAWS: dict[str, Law] = {
    "motion": Law("distance", "m", _SPEED, "×", _TIME, "A cart moves with {given}.", "Look at a runner with {given}."),
    "charge": Law("charge", "C", _CURRENT, "×", _TIME, "A wire carries {given}.", "Take a battery with {given}."),
    "voltage": Law("voltage", "V", _CURRENT, "×", _RESISTANCE, "A lamp has {given}.", "A coil shows {given}."),
    "power": Law("power", "W", _VOLTAGE, "×", _CURRENT, "A motor runs at {given}.", "For a fan we read {given}."),
    "work": Law("work", "J", _FORCE, "×", _DISTANCE, "A crane pulls with {given}.", "A tug tows with {given}."),
    "energy": Law("energy", "J", _POWER, "×", _TIME, "A heater runs with {given}.", "An oven is on with {given}."),
    "force": Law(
        "force", "N", _MASS, "×", Quantity("acceleration", "m/s2"), "A sled has {given}.", "Push a crate with {given}."
    ),
    "momentum": Law("momentum", "kg m/s", _MASS, "×", _SPEED, "A ball flies with {given}.", "A ship sails with {given}."),
    "thrust": Law("force", "N", _PRESSURE, "×", _AREA, "A piston feels {given}.", "On a valve there is {given}."),
    "heat": Law(
        "heat", "J", Quantity("capacity", "J/K", "kJ/K", 1000), "×", Quantity("warming", "K"), "A pot has {given}.",
        "Water in a tub has {given}.",
    ),
    "speed": Law("speed", "m/s", _DISTANCE, "/", _TIME, "A train covers {given}.", "A swimmer finishes with {given}."),
    "current": Law("current", "A", _CHARGE, "/", _TIME, "A cell delivers {given}.", "A spark passes with {given}."),
    "resistance": Law("resistance", "ohm", _VOLTAGE, "/", _CURRENT, "A wire shows {given}.", "A sensor reads {given}."),
    "density": Law(
        "density", "g/cm3", Quantity("mass", "g", "kg", 1000), "/", Quantity("volume", "cm3"), "A stone has {given}.",
        "We weigh a coin with {given}.",
    ),
    "acceleration": Law("acceleration", "m/s2", _FORCE, "/", _MASS, "A rocket has {given}.", "A boat is driven with {given}."),
    "output": Law("power", "W", Quantity("energy", "J", "kJ", 1000), "/", _TIME, "A solar cell gives {given}.", "A dynamo yields {given}."),
}  # fmt: skip

DISTRACTORS = (Quantity("height", "cm"), Quantity("price", "euro"), Quantity("age", "years"), Quantity("width", "mm"))
"""No law above needs these."""

UNITS = tuple(
    dict.fromkeys(
        unit
        for quantity in (*(side for law in LAWS.values() for side in (law.a, law.b)), *DISTRACTORS)
        for unit in (quantity.unit, quantity.other_unit)
        if unit
    )
)
"""All units that a question may give a number in."""

EASY = (2, 3, 4, 5, 10, 20, 100)
DIGITS = tuple(range(2, 10))
MINUTES = (1, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      kind: of `LAWS`.
      values: of a and b, as the question gives them.
      converted: which of them stand in their other unit.
      distractor: (index in `DISTRACTORS`, value), or None.
      order: in which the question gives a (0), b (1) and the distractor (2).
      other_sentence: whether the question is put as training never does it.
    """

    kind: str
    values: tuple[int, int]
    converted: tuple[bool, bool]
    distractor: tuple[int, int] | None
    order: tuple[int, ...]
    other_sentence: bool

    @property
    def law(self) -> Law:
        return LAWS[self.kind]

    @property
    def quantities(self) -> tuple[Quantity, Quantity]:
        return self.law.a, self.law.b

    @property
    def result(self) -> int:
        """The exact answer, in the law's unit."""
        a, b = (self.in_unit(i) for i in range(2))
        return a * b if self.law.operator == "×" else a // b

    def in_unit(self, i: int) -> int:
        """Quantity i in the unit of the law."""
        return self.values[i] * (self.quantities[i].factor if self.converted[i] else 1)

    def shown(self, i: int) -> str:
        """Quantity i as the question gives it: '3 km'."""
        quantity = self.quantities[i]
        return f"{self.values[i]} {quantity.other_unit if self.converted[i] else quantity.unit}"

    def used(self, i: int) -> str:
        """Quantity i as the law needs it: '3000 m'."""
        return f"{self.in_unit(i)} {self.quantities[i].unit}"

    @property
    def not_needed(self) -> tuple[str, str] | None:
        """Name and value of the quantity that is not needed: ('height', '7 cm')."""
        if self.distractor is None:
            return None
        quantity = DISTRACTORS[self.distractor[0]]
        return quantity.name, f"{self.distractor[1]} {quantity.unit}"


def from_facts(facts: Mapping[str, Any]) -> Problem:
    """The problem whose fields a row holds; the inverse of `dataclasses.asdict`, also after JSON made lists of tuples.

    Raises:
      ValueError: they are not those of a problem.
    """
    try:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
        }
        problem = Problem(**values)
        question(problem), answer(problem)  # which read every field
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"not the facts of a problem ({type(error).__name__})") from error
    return problem


def law_in_words(problem: Problem, *, operator: str = "") -> str:
    """'distance = speed × time'."""
    law = problem.law
    return f"{law.result} = {law.a.name} {operator or law.operator} {law.b.name}"


def answer(problem: Problem) -> str:
    """'800 m'."""
    return f"{problem.result} {problem.law.unit}"


def question(problem: Problem) -> str:
    """The question's text: 'A cart moves with a speed of 8 m/s and a time of 100 s. Find the distance.'"""
    given = []
    for i in problem.order:
        if i == 2:
            assert problem.not_needed is not None, "the order names it only where there is one"
            name, value = problem.not_needed
        else:
            name, value = problem.quantities[i].name, problem.shown(i)
        given.append(f"{'an' if name[0] in 'aeiou' else 'a'} {name} of {value}")
    sentence = problem.law.other_sentence if problem.other_sentence else problem.law.sentence
    ask = "How large is the {}?" if problem.other_sentence else "Find the {}."
    listed = " and ".join([", ".join(given[:-1]), given[-1]])
    return f"{sentence.format(given=listed)} {ask.format(problem.law.result)}"


def held_out(kind: str, values: tuple[int, int]) -> bool:
    """Whether only evaluation may use these numbers with this kind (about one pair in four)."""
    return share_of("english", kind, *values) < 0.25


def generate(split: str, seed: int, index: int) -> Problem:
    """Problem `index` of a split of `SPLITS`.

    Raises:
      ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {SPLITS}")
    rng = random.Random(f"english:{split}:{seed}:{index}")
    while True:
        problem = _draw(rng, other_sentence=split == "ood")
        if held_out(problem.kind, problem.values) == (split != "train"):
            return problem


def _draw(rng: random.Random, *, other_sentence: bool) -> Problem:
    kind = rng.choice(list(LAWS))
    law = LAWS[kind]
    easy, digit = rng.choice(EASY), rng.choice(DIGITS)
    a, b = (easy, digit) if rng.random() < 0.5 else (digit, easy)
    if law.operator == "/":
        a *= b
    convertible = [i for i, quantity in enumerate((law.a, law.b)) if quantity.other_unit]
    if law.operator == "/":
        convertible = [i for i in convertible if i == 0]  # the quotient stays an integer
    chosen = rng.choice(convertible) if convertible and rng.random() < CHANCES["convert"] else None
    if chosen == 1 and law.b.factor == 60:
        b = rng.choice(MINUTES)
    distractor, order = None, [0, 1]
    if rng.random() < CHANCES["distractor"]:
        value = rng.choice([v for v in range(2, 60) if v not in (a, b)])
        distractor = (rng.randrange(len(DISTRACTORS)), value)
        order.append(2)
    rng.shuffle(order)
    return Problem(
        kind=kind, values=(a, b), converted=(chosen == 0, chosen == 1), distractor=distractor, order=tuple(order),
        other_sentence=other_sentence,
    )  # fmt: skip
