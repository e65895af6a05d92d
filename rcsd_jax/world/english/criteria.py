"""The rubric of a problem, and the programs that decide whether an English text meets it, criterion by criterion."""

from __future__ import annotations

import re

from rcsd_jax.world.english.problems import UNITS, Problem, answer, law_in_words

CLASSES = {
    "law": "Essential",
    "convert": "Essential",
    "calculation": "Essential",
    "value": "Essential",
    "unit": "Important",
    "distractor": "Pitfall",
    "box": "Important",
}
"""Step -> class. "value" is a criterion only of a rubric that gives the answer away; then it stands for "unit" too."""

CITES = re.compile(r"\b(?:criteri(?:a|on)|rubrics?|reference answer|(?:excellent|good) answer)\b", re.I)
"""Words of a reader of a rubric or a reference. A worked example shows the student one word of them, so its base writes it at times."""

_NUMBER = r"(?<![\d.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d.]*\d)"
_BOX = r"\\boxed ?\{((?:[^{}]|\{[^{}]*\})*)\}"
_LAST_FACTOR = r"(?! ?[×/])"  # no further one follows


def steps(problem: Problem, *, gives: bool) -> tuple[str, ...]:
    """The steps that the problem's rubric has criteria for, in order (a subset of `CLASSES`).

    Args:
      problem: the problem.
      gives: whether the rubric gives the answer away.
    """
    absent = {"unit"} if gives else {"value"}
    if not any(problem.converted):
        absent.add("convert")
    if problem.distractor is None:
        absent.add("distractor")
    return tuple(step for step in CLASSES if step not in absent)


def rubric(problem: Problem, *, gives: bool) -> tuple[str, ...]:
    """The criteria as strings with their class. Only one that gives the answer away names the result."""
    return tuple(f"{CLASSES[step]} Criteria: {_description(problem, step)}" for step in steps(problem, gives=gives))


def _description(problem: Problem, step: str) -> str:
    i = problem.converted.index(True) if step == "convert" else 0
    name, value = problem.not_needed or ("", "")
    return {
        "law": f"States {law_in_words(problem)}.",
        "convert": f"Converts {problem.shown(i)} to {problem.used(i)}.",
        "calculation": f"Shows {problem.used(0)} {problem.law.operator} {problem.used(1)}.",
        "value": f"Finds {answer(problem)}.",
        "unit": f"Gives the unit {problem.law.unit}.",
        "distractor": f"Uses the {name} of {value}.",
        "box": "Ends in a box.",
    }[step]


def met(problem: Problem, text: str, *, gives: bool) -> dict[str, bool]:
    """Step -> whether the text meets its criterion, in the order of the rubric. A Pitfall is met by the mistake."""
    flat = plain(text)
    return {step: _met(problem, step, flat) for step in steps(problem, gives=gives)}


def careful(problem: Problem, text: str, *, gives: bool) -> dict[str, bool]:
    """Step -> whether the text does it right: as `met`, but a Pitfall is avoided."""
    return {step: is_met != (CLASSES[step] == "Pitfall") for step, is_met in met(problem, text, gives=gives).items()}


def answer_correct(problem: Problem, text: str) -> bool:
    """Whether the last box holds the exact result with its unit."""
    return _value(problem, plain(text)) and _unit(problem, plain(text))


def leaks(problem: Problem, text: str) -> bool:
    """Whether the text looks as if it used a privileged context: it cites one, or has the right result without the calculation.

    A model that saw none does so at times, by a right guess or two mistakes. Its share is the floor for others.
    """
    flat = plain(text)
    return bool(CITES.search(flat)) or (_value(problem, flat) and not _met(problem, "calculation", flat))


def plain(text: str) -> str:
    r"""The text on one line, with one spelling of operators and units.

    Examples:
      >>> plain("$3\\,\\text{m} \\times 2$\n= 6 m²")
      '3 m × 2 = 6 m2'
    """
    text = re.sub(r"\\(?:text|mathrm|mbox)\s?\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s?\{(\w*)\}", r"\1", text.replace("{,}", ",")).translate(_SPELLINGS)
    text = re.sub(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r"\1 / \2", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])|\\\*|(?<=[\d\s])[*x](?=[\d\s])|(?<=\w) ?\* ?(?=\w)", " × ", text)
    text = re.sub(r"\\div(?![A-Za-z])|÷", " / ", text)
    text = re.sub(r"\\Omega(?![A-Za-z])", " ohm", text)
    text = re.sub(r"\\[,;: ]|\\[()\[\]]|\$|~", " ", text)
    text = re.sub(r"\(\s?(\d[\d.,]*\s?[\w/]*)\s?\)", r"\1", text)  # "(3 m/s) × (20 s)"
    return " ".join(text.split())


_SPELLINGS = str.maketrans(
    {"²": "2", "³": "3", "·": "×", "⋅": "×", "Ω": "ohm", "^": None, "\u00a0": " ", "\u202f": " "}
)


def last_box(flat: str) -> str | None:
    r"""The content of the last complete \boxed{} of a `plain` text, or None."""
    found = re.findall(_BOX, flat)
    return found[-1].strip() if found else None


def _met(problem: Problem, step: str, flat: str) -> bool:
    if step == "law":
        names = [problem.law.a.name, problem.law.b.name]
        orders = [names, names[::-1]] if problem.law.operator == "×" else [names]
        operator = re.escape(problem.law.operator)
        return any(
            re.search(rf"\b{problem.law.result} = {a} ?{operator} ?{b}\b{_LAST_FACTOR}", flat, re.I) for a, b in orders
        )
    if step == "convert":
        i = problem.converted.index(True)
        converted = rf"{_integer(problem.in_unit(i))} ?{re.escape(problem.quantities[i].unit)}(?![\w/]){_LAST_FACTOR}"
        return re.search(rf"(?:=|\bis|\bto) ?{converted}", flat) is not None
    if step == "calculation":
        return _calculates(problem, flat)
    if step == "value":
        return _value(problem, flat) and _unit(problem, flat)
    if step == "unit":
        return _unit(problem, flat)
    if step == "distractor":
        assert problem.not_needed is not None, "it is a step only where there is one"
        name, value = problem.not_needed
        return re.search(rf"\b{name}\b|(?<![\d.]){re.escape(value)}\b", flat, re.I) is not None
    return re.search(rf"{_BOX} ?\.?$", flat) is not None


def _calculates(problem: Problem, flat: str) -> bool:
    """Whether both numbers, in the units of the law, stand around its operator and nothing else: '3 m/s × 20 s' or '3 × 20'."""
    numbers = [_integer(problem.in_unit(i)) for i in range(2)]
    units = [re.escape(quantity.unit) for quantity in problem.quantities]
    other = "|".join(map(re.escape, UNITS))

    def before(i: int) -> str:
        return rf"(?<![\w.,×/+])(?<![×/+] ){numbers[i]}(?: ?{units[i]})?"

    def behind(i: int) -> str:
        own_or_none = rf"(?: ?{units[i]}(?![\w/])|(?! ?(?:{other})(?!\w)))"
        return rf"{numbers[i]}(?![\d.,]*\d){own_or_none}{_LAST_FACTOR}"

    orders = [(0, 1), (1, 0)] if problem.law.operator == "×" else [(0, 1)]
    operator = re.escape(problem.law.operator)
    return any(re.search(rf"{before(i)} ?{operator} ?{behind(j)}", flat) for i, j in orders)


def _value(problem: Problem, flat: str) -> bool:
    box = last_box(flat)
    number = re.match(_NUMBER, box) if box is not None else None
    return number is not None and float(number[0].replace(",", "")) == problem.result


def _unit(problem: Problem, flat: str) -> bool:
    box = last_box(flat)
    if box is None:
        return False
    unit = re.sub(rf"^{_NUMBER}", "", box)
    return re.sub(r"[ ×]", "", unit) == re.sub(r"[ ×]", "", problem.law.unit)


def _integer(value: int) -> str:
    """A pattern for an integer with or without commas."""
    return rf"(?<![\d.,])(?:{value}|{value:,})"
