"""Numbers with units, as texts write them; units are pint's."""

from __future__ import annotations

import functools
import math
import re
from typing import Any, NamedTuple

from rcsd_jax.evaluate.answers.places import MAX_EXPRESSION
from rcsd_jax.evaluate.answers.plain import plain

_DIGITS = r"(?:[0-9]{1,3}(?:[,' ][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_TEN = r"10\s?\^\s?\(?(?P<%s>[-+]?\s?[0-9]{1,3})\)?(?![0-9.])"


def _decimal(name: str) -> str:
    """1,234.5, 3.2e-4, 3.2*10^-4 or 10^5, as groups `name`, `name`_e, `name`_times and `name`_ten."""
    e = rf"[eE](?P<{name}_e>[-+]?[0-9]{{1,3}})(?![0-9])"
    return rf"(?:{_TEN % f'{name}_ten'}|(?P<{name}>{_DIGITS})(?:{e}|\s?[*xX]\s?{_TEN % f'{name}_times'})?)"


_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?:(?:approximately|approx\.?|about|roughly|around|nearly|exactly|equals|equal\sto)\s)?"
    r"\(?\s?(?P<sign>[-+]\s?)?\(?\s?"
    r"(?:(?P<whole>[0-9]{1,4})\s\(?(?P<part>[0-9]{1,4})\)?\s?/\s?\(?(?P<parts>[0-9]{1,4})(?:\s?\))?(?![0-9.,^])"
    rf"|{_decimal('top')}(?:(?:\s?\))?\s?/\s?\(?\s?{_decimal('bottom')})?)(?:\s?\))?"
    rf"(?:\s?(?P<scale>(?ai:{'|'.join(_SCALES)}))\b)?(?:\s{_TEN % 'power'})?",
    re.I,
)
SIDES = re.compile(r"(?<![<>!≤≥])=(?!=)|≈")
_NOT_PROSE = re.compile(r"[0-9^+=<>*/\\|±≈°%?∞]|-\s?[A-Za-z]?(?![A-Za-z])|\A\s?[A-Za-z](?![^\W\d_])|\A\s?!")
# Prose that may hold digits: a chemical formula, and "electron^-1", a unit that pint does not know.
_FORMULA = re.compile(r"(?<![A-Za-z0-9])(?:[A-Z][a-z]?_?[0-9]{0,3}){1,12}(?![A-Za-z0-9])|(?<=[A-Za-z])\s?\^\s?-[0-9]")


class Number(NamedTuple):
    """A finite number, `value` x 10^`power`, and its unit.

    Attributes:
      value: the number as written, without a power of ten that stands with the unit.
      unit: the unit as pint writes it, "kilojoule / mole"; None if pint knows none.
      power: 3 in "2.5 10^3 J", where no sign makes it a factor of the number. SciBench writes units like that.
    """

    value: float
    unit: str | None = None
    power: int = 0


def quantity(text: str) -> tuple[Number | None, str]:
    """The number in the text or on the right side of its equation, and the prose after it."""
    if len(text) > MAX_EXPRESSION:
        return None, ""
    *left, side = SIDES.split(plain(text))
    side = _measured(side.strip())
    match = _NUMBER.match(side)
    if match is None or any(_is_sentence(part) for part in left):
        return None, ""
    value, (unit, rest) = _value(match), _unit(re.sub(r"μ\s(?=[A-Za-z])", "μ", side[match.end() :]))
    attached = unit is None and (rest[:1].isalpha() or rest[:1] == "-")
    if value is None or attached or _NOT_PROSE.search(_FORMULA.sub("", rest)):
        return None, ""
    return Number(value, unit, int((match["power"] or "0").replace(" ", ""))), rest.strip(" .,;:()!")


def _measured(side: str) -> str:
    """A value without its uncertainty: (2.5 ± 0.1) m is 2.5 m. 3 ± 2 may also be two numbers, and is left unchanged."""
    value, sign, by = (part.strip() for part in side.partition("±"))
    opened = value.count("(") - value.count(")")
    if not sign or "±" in by or opened not in (0, 1):
        return side
    rest = ""
    if opened:  # (2.5 ± 0.1) m and 2.5 (± 0.1) m
        value = "".join(value.rsplit("(", 1)).strip()
        by, _, rest = by.partition(")")
    number, error = _NUMBER.match(value), _NUMBER.match(by)
    if number is None or error is None or error["sign"] or error["power"]:
        return side
    own, more = _unit(value[number.end() :])
    rest = f"{by[error.end() :]} {rest}".strip()
    center, width = _value(number), _value(error)
    if center is None or width is None or not 2 * width < abs(center) or more.strip():
        return side
    if own:  # 2.5 m ± 0.1 m
        its, rest = _unit(rest)
        if its not in (own, None):
            return side
    return f"{value} {rest}".strip()


def _is_sentence(left: str) -> bool:
    """Whether the text left of an equals sign is more than "the speed is v": a sentence, or another answer."""
    return bool(re.search(r"[,;]\s|\b(?:and|or)\b", left)) or len(re.findall(r"\b[A-Za-z]{3,}\b", left)) > 4


def _value(match: re.Match) -> float | None:
    def decimal(name: str) -> float:
        power = match[f"{name}_ten"] or match[f"{name}_e"] or match[f"{name}_times"] or "0"
        digits = "1" if match[f"{name}_ten"] else re.sub(r"[,' ]", "", match[name])
        return float(f"{digits}e{power.replace(' ', '')}")

    try:
        if match["whole"]:
            value = int(match["whole"]) + int(match["part"]) / int(match["parts"])
        else:
            value = decimal("top")
            if match["bottom"] or match["bottom_ten"]:
                value /= decimal("bottom")
    except ZeroDivisionError:
        return None
    value = float(f"{value}e{_SCALES[match['scale'].lower()]}") if match["scale"] else value
    return (-value if (match["sign"] or "").startswith("-") else value) if math.isfinite(value) else None


_UNIT = re.compile(
    r"\s?(?P<joint>/|\*|per\s|-(?=[A-Za-z]))?\s?(?P<open>\()?\s?(?P<dimensions>square\s|sq\.?\s|cubic\s|cu\.?\s)?"
    r"(?P<name>(?:°|degrees?\s|deg\s)\s?(?:C|F|K|[Cc]elsius|[Ff]ahrenheit|[Kk]elvin)(?![A-Za-z])|[°%]"
    r"|[A-Za-zμΩÅ]{1,30})"
    r"(?:\s?\^\s?(?P<power>[-+]?\s?[0-9](?:[./][0-9])?)|(?P<attached>-?[1-9])|\s(?P<word>squared|cubed))?"
    r"(?![^\W_]|\^)(?P<close>\s?\))?"
)
# The units that are read, by pint's names. Pint knows more, but too many of them are words, symbols of quantities or formulas
# ("mass" and "exact", kT, KCl). The units of the first list take prefixes.
_METRIC = frozenset(
    """meter gram second ampere kelvin mole candela hertz newton pascal joule watt coulomb volt farad ohm siemens weber tesla
    henry becquerel gray sievert katal liter bar torr electron_volt calorie watt_hour ampere_hour volt_ampere molar bit byte
    parsec barn gauss dalton curie radian meter_Hg""".split()
)
_OTHERS = frozenset(
    """minute hour day week month year kiloyear megayear gigayear decade century degree arcminute arcsecond steradian turn
    percent ppm decibel neper degree_Celsius degree_Fahrenheit inch foot yard mile nautical_mile pound ounce ton metric_ton
    slug force_pound foot_pound pound_force_per_square_inch inch_Hg gallon quart pint cubic_centimeter acre hectare angstrom
    fermi astronomical_unit light_year knot mile_per_hour revolutions_per_minute standard_atmosphere british_thermal_unit
    horsepower erg dyne poise centipoise stokes maxwell oersted franklin lumen lux bohr hartree rydberg debye
    unified_atomic_mass_unit elementary_charge speed_of_light particle decimeter deciliter hectopascal""".split()
)
_PREFIXES = frozenset(("", *"femto pico nano micro milli centi kilo mega giga tera".split()))
_SPELLINGS = {"°": "degree", "%": "percent", "AU": "astronomical_unit", "rev": "turn", "revs": "turn"}
_SPELLINGS |= {"KG": "kg", "KM": "km"}  # no kilogauss, and no kilomolar
_NO_UNITS = frozenset(("pH", "has"))
_TEMPERATURES = {"c": "degree_Celsius", "f": "degree_Fahrenheit", "k": "kelvin"}
_WORDS = frozenset(("in", "a", "h", "c", "e"))  # before another word these are words or symbols themselves
_ELEMENTS = frozenset("B C F H K Mg N P S V W".split())  # after an amount: 12 g C


def _unit(text: str) -> tuple[str | None, str]:
    """The unit that a text begins with, as pint writes it, and the text after it; None if there is no unit.

    A factor after a slash divides, and so do the factors joined to it: people who write J/mol·K mean J/(mol·K). A factor with
    a negative power keeps its own power: J/K mol^-1.
    """
    factors: list[tuple[str, float]] = []
    at, below = 0, False
    while match := _UNIT.match(text, at):
        name, power, joint = _known(match["name"]), _power(match), (match["joint"] or " ").strip()
        before_word = not joint and match["name"] in _WORDS and re.match(r"\s[A-Za-z]", text[match.end() :])
        is_element = not (joint or below) and match["name"] in _ELEMENTS and power == 1
        if name is None or before_word or is_element and factors and factors[-1][0].endswith(("gram", "mole")):
            break
        slash = joint in ("/", "per")
        below = below or slash
        factors.append((name, -power if slash or below and power > 0 else power))
        below = below and match["close"] is None
        at = match.end()
    if not factors:
        return None, text
    registry = _registry()
    unit = registry.Unit("")
    for name, power in factors:
        unit *= registry.Unit(name) ** power
    return str(unit), text[at:]


def _power(match: re.Match) -> float:
    power = 2 if (match["dimensions"] or "").startswith("sq") or match["word"] == "squared" else 1
    power = 3 if (match["dimensions"] or "").startswith("cu") or match["word"] == "cubed" else power
    top, _, bottom = (match["power"] or match["attached"] or "1").replace(" ", "").partition("/")
    return power * float(top) / (float(bottom or 1) or 1)


@functools.lru_cache(maxsize=1000)
def _known(name: str) -> str | None:
    """The unit of a name as pint writes it, if it is one of those read; also "Joules", and K for kilo."""
    if name in _NO_UNITS:
        return None
    if re.match(r"°.|deg(?:rees?)?\s", name):
        return _TEMPERATURES[re.sub(r"°|deg(?:rees?)?\s|\s", "", name)[0].lower()]
    kilo, lower = "k" + name[1:] if name[0] == "K" else name, name.lower() if len(name) > 2 else name
    for spelling in dict.fromkeys((_SPELLINGS.get(name, name), kilo, lower)):
        for prefix, unit, _ in _registry().parse_unit_name(spelling):
            if name.isupper() and spelling == lower != name and name[0] == "M" and prefix == "milli":
                continue  # an M is mega
            if unit in _METRIC and prefix in _PREFIXES or prefix + unit in _OTHERS:
                return prefix + unit
    return None


@functools.lru_cache(maxsize=1)
def _registry() -> Any:
    import pint  # late: takes half a second

    return pint.UnitRegistry()


def numbers_agree(found: Number, truth: Number, *, relative: float = 0.05, absolute: float = 0.0) -> bool:
    """Whether a number equals the true one, in any unit.

    By default `math.isclose(found, truth, rel_tol=0.05)`, as SciBench does (arXiv 2307.10635, eval/eval_zero.py of
    github.com/mandyyyyii/scibench), which compares only numbers, because its questions name the unit. So a number
    without a unit is in the other's unit (power of ten included); or, if that unit has no dimension, a pure number: 25 %
    is 25 to a truth without a unit, and 0.25 too. If both have a unit, the number is converted; if it cannot be converted, it is wrong.

    Args:
      found: the text's number.
      truth: the right number.
      relative: the tolerance, relative to the larger of both magnitudes.
      absolute: the least tolerance, in the truth's unit and power of ten; for truths of zero.

    Examples:
      >>> numbers_agree(Number(5.1, "kilojoule"), Number(5000.0, "joule")), numbers_agree(Number(5.1), Number(4.0))
      (True, False)
    """
    scaled = _scaled(found.value, found.power - truth.power)
    values: list[float | None] = [scaled]
    if found.unit is None and truth.power:
        values.append(found.value)
    if found.unit != truth.unit:
        converted = _converted(scaled, found.unit or "", truth.unit or "")
        values = [converted] if found.unit and truth.unit else [*values, converted]
    return any(v is not None and math.isclose(v, truth.value, rel_tol=relative, abs_tol=absolute) for v in values)


def _scaled(value: float, power: int) -> float:
    return float(f"{value!r}e{power}") if "e" not in repr(value) else value * 10.0**power


def _converted(value: float, unit: str, other: str) -> float | None:
    """The value in the other unit; None if there is none."""
    registry = _registry()
    try:
        return float(registry.Quantity(value, registry.Unit(unit)).to(registry.Unit(other)).magnitude)
    except Exception:  # other dimensions, overflow
        return None
