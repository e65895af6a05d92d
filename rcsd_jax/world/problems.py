"""Short problems of quantitative science with exact answers, generated from (split, seed, index).

A problem multiplies two quantities. Three complications make it harder: a quantity may have a unit that must be converted
(by an exact integer factor), a distractor quantity may have to be ignored, and the process may happen twice.

Splits share no question. Evaluation holds out *number pairs per kind*: every product is learned through other kinds, but
no evaluation question has numbers that its kind showed in training. Out of distribution also has question templates that
training never uses, and problems with three or four complications; training has at most two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random

SPLITS = ("stage1", "stage2", "eval", "ood")
TRAIN_SPLITS = ("stage1", "stage2")
COMPLICATIONS = ("convert_a", "convert_b", "distractor", "twice")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A named quantity: its unit in the formula, and at most one other unit with the exact integer factor to it."""

    name: str
    unit: str
    other_unit: str | None = None
    factor: int = 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """A law `result = a * b`, and the things that its problems are about."""

    name: str
    result: str
    unit: str
    a: Quantity
    b: Quantity
    nouns: tuple[str, str]


_TIME = Quantity("time", "s", "min", 60)
_SPEED = Quantity("speed", "m/s", "km/s", 1000)
_CURRENT = Quantity("current", "A")
_METRES = Quantity("distance", "m", "km", 1000)

_FORCE = Quantity("force", "N", "kN", 1000)
_POWER = Quantity("power", "W", "kW", 1000)
_PRESSURE = Quantity("pressure", "Pa", "kPa", 1000)
_MASS = Quantity("mass", "kg", "t", 1000)
_RESISTANCE = Quantity("resistance", "ohm", "kohm", 1000)
_CAPACITY = Quantity("capacity", "J/K", "kJ/K", 1000)
_FREQUENCY = Quantity("frequency", "Hz", "kHz", 1000)
_SMALL_VOLUME = Quantity("volume", "cm3", "L", 1000)
_LARGE_VOLUME = Quantity("volume", "L", "m3", 1000)
_LENGTH, _WIDTH = Quantity("length", "cm", "m", 100), Quantity("width", "cm", "m", 100)
_CONCENTRATION = Quantity("concentration", "g/L")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("motion", "distance", "m", _SPEED, _TIME, ("car", "train")),
        Kind("ohm", "voltage", "V", _CURRENT, _RESISTANCE, ("lamp", "wire")),
        Kind("density", "mass", "g", Quantity("density", "g/cm3"), _SMALL_VOLUME, ("stone", "oil")),
        Kind("dilution", "solute", "g", _CONCENTRATION, _LARGE_VOLUME, ("salt", "acid")),
        Kind("work", "work", "J", _FORCE, _METRES, ("crane", "horse")),
        Kind("energy", "energy", "J", _POWER, _TIME, ("motor", "heater")),
        Kind("pressure", "force", "N", _PRESSURE, Quantity("area", "m2"), ("piston", "valve")),
        Kind("momentum", "momentum", "kgm/s", _MASS, _SPEED, ("ball", "rocket")),
        Kind("heat", "heat", "J", _CAPACITY, Quantity("warming", "K"), ("pot", "stove")),
        Kind("charge", "charge", "C", _CURRENT, _TIME, ("battery", "cell")),
        Kind("wave", "speed", "m/s", _FREQUENCY, Quantity("wavelength", "m"), ("wave", "string")),
        Kind("surface", "area", "cm2", _LENGTH, _WIDTH, ("plate", "field")),
        Kind("flow", "volume", "L", Quantity("flow", "L/s"), _TIME, ("pump", "pipe")),
    )
}

# Quantities that no law above uses: a problem may give one that must be ignored.
DISTRACTORS: tuple[Quantity, ...] = (
    Quantity("age", "year"),
    Quantity("price", "euro"),
    Quantity("height", "feet"),
    Quantity("humidity", "percent"),
)

# {noun}, {given} and {result}; {twice} is "done twice" between the given and the question, or empty. The joiner separates
# the given quantities, and the phrase is the form of one quantity.
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("a {noun} has {given} {twice} . find the {result} .", ",", "{name} {value} {unit}"),
    ("given {given} for a {noun} {twice} , what is the {result} ?", "and", "{name} {value} {unit}"),
    ("{noun} : {given} {twice} . {result} = ?", ";", "{name} = {value} {unit}"),
    ("what {result} has a {noun} with {given} {twice} ?", "and", "{value} {unit} of {name}"),
    ("we measure {given} {twice} . find {result} of the {noun} .", "then", "{name} = {value} {unit}"),
)
OOD_TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("find the {result} of a {noun} given {given} {twice} .", ";", "{value} {unit} of {name}"),
    ("the {noun} with {given} {twice} : what is {result} ?", "then", "{name} {value} {unit}"),
)

MINUTES = (2, 3, 4, 5, 10)  # times in minutes: few, so that each product of seconds is met often enough
NUMBERS = tuple(range(2, 13))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `values` are those in the question; `distractor` is None or (name, value, unit).

    `template` is an index into TEMPLATES + OOD_TEMPLATES, `order` the order of the given quantities (0 = a, 1 = b,
    2 = the distractor).
    """

    kind: str
    values: tuple[int, int]
    converted: tuple[bool, bool]
    distractor: tuple[str, int, str] | None
    twice: bool
    template: int
    noun: str
    order: tuple[int, ...]

    @property
    def law(self) -> Kind:
        return KINDS[self.kind]

    @property
    def quantities(self) -> tuple[Quantity, Quantity]:
        return self.law.a, self.law.b

    @property
    def complications(self) -> tuple[str, ...]:
        on = (*self.converted, self.distractor is not None, self.twice)
        return tuple(name for name, is_on in zip(COMPLICATIONS, on, strict=True) if is_on)

    def shown_unit(self, i: int) -> str:
        """The unit in which the question gives quantity i."""
        quantity = self.quantities[i]
        if not self.converted[i]:
            return quantity.unit
        assert quantity.other_unit is not None, "nothing else is converted"
        return quantity.other_unit

    def base_value(self, i: int) -> int:
        """Quantity i in the unit of the law."""
        return self.values[i] * (self.quantities[i].factor if self.converted[i] else 1)

    @property
    def product(self) -> int:
        return self.base_value(0) * self.base_value(1)

    @property
    def result(self) -> int:
        """The exact answer, in `law.unit`."""
        return self.product * (2 if self.twice else 1)


def number(value: int, zeros: int = 0) -> str:
    """An integer as tokens: single digits, and the last `zeros` zeros in groups of three and two, one token each.

    The groups are what factors of 1000 and 100 append, so `zeros` is a sum of threes and twos. The same integer may be
    written in more than one way, which is why graders read numbers, not tokens.
    """
    pairs = {0: 0, 1: 2, 2: 1}[zeros % 3]
    groups = ["00"] * pairs + ["000"] * ((zeros - 2 * pairs) // 3)
    return " ".join([*str(value // 10**zeros), *groups])


def factor_zeros(problem: Problem, i: int) -> int:
    """How many zeros the conversion of quantity i appends as a group (none for minutes)."""
    if not problem.converted[i]:
        return 0
    return {1000: 3, 100: 2}.get(problem.quantities[i].factor, 0)


def question(problem: Problem) -> str:
    """The question's text, in the world's vocabulary."""
    template, joiner, phrase = (*TEMPLATES, *OOD_TEMPLATES)[problem.template]
    given = []
    for i in problem.order:
        if i == 2:
            assert problem.distractor is not None, "the order names it only where there is one"
            name, value, unit = problem.distractor
        else:
            name, value, unit = problem.quantities[i].name, problem.values[i], problem.shown_unit(i)
        given.append(phrase.format(name=name, value=number(value), unit=unit))
    text = template.format(
        noun=problem.noun,
        given=f" {joiner} ".join(given),
        result=problem.law.result,
        twice=", done twice" if problem.twice else "",
    )
    return " ".join(text.split())


def answer(problem: Problem) -> str:
    """The final answer as a reader writes it: '4800 m'."""
    return f"{problem.result} {problem.law.unit}"


def share_of(*parts: object) -> float:
    """A number in [0, 1) that follows from the parts: what is below x is that share of them."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def held_out(kind: str, values: tuple[int, int]) -> bool:
    """Whether only evaluation may use this unordered pair of numbers with this kind (about one pair in five)."""
    return share_of("pair", kind, min(values), max(values)) < 0.2


def train_split(text: str) -> str:
    """The training pool of a training question."""
    return "stage1" if share_of("pool", text) < 0.5 else "stage2"


def _draw(rng: random.Random, split: str) -> Problem:
    kind = KINDS[rng.choice(list(KINDS))]
    possible = [
        name
        for name, on in zip(COMPLICATIONS, (kind.a.other_unit, kind.b.other_unit, True, True), strict=True)
        if on is not None
    ]
    chain = split == "ood" and rng.random() < 0.5
    if chain:
        count = min(len(possible), rng.choice((3, 3, 4)))
    else:
        count = rng.choices((0, 1, 2), (0.1, 0.45, 0.45))[0]
    chosen = set(rng.sample(possible, count))
    converted = ("convert_a" in chosen, "convert_b" in chosen)
    a, b = (
        rng.choice(MINUTES if is_on and quantity.factor == 60 else NUMBERS)
        for quantity, is_on in zip((kind.a, kind.b), converted, strict=True)
    )
    values = (a, b)
    distractor = None
    if "distractor" in chosen:
        other = rng.choice(DISTRACTORS)
        distractor = (other.name, rng.choice([v for v in NUMBERS if v not in values]), other.unit)
    order = list(range(3 if distractor else 2))
    rng.shuffle(order)
    if split == "ood" and not chain:
        template = len(TEMPLATES) + rng.randrange(len(OOD_TEMPLATES))
    else:
        template = rng.randrange(len(TEMPLATES))
    return Problem(
        kind=kind.name,
        values=values,
        converted=converted,
        distractor=distractor,
        twice="twice" in chosen,
        template=template,
        noun=rng.choice(kind.nouns),
        order=tuple(order),
    )


def generate(split: str, seed: int, index: int) -> Problem:
    """Problem `index` of a split: "stage1", "stage2", "train" (both pools), "eval" or "ood".

    Raises:
      ValueError: an unknown split.
    """
    if split not in (*SPLITS, "train"):
        raise ValueError(f"unknown split {split!r}; one of {(*SPLITS, 'train')}")
    rng = random.Random(f"{split}:{seed}:{index}")
    while True:
        problem = _draw(rng, split)
        if split in ("eval", "ood"):
            if held_out(problem.kind, problem.values):
                return problem
        elif not held_out(problem.kind, problem.values):
            if split == "train" or train_split(question(problem)) == split:
                return problem
