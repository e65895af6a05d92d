"""Whether two expressions are equal, and the values of those that are numbers."""

from __future__ import annotations

import re

from rcsd_jax.evaluate.answers import symbolic
from rcsd_jax.evaluate.answers.places import MAX_ANSWER, MAX_EXPRESSION
from rcsd_jax.evaluate.answers.quantities import SIDES, Number, numbers_agree, quantity
from rcsd_jax.evaluate.answers.words import fold

_CLOSED_FORM = re.compile(
    r"(?:\\(?:[dt]?frac|sqrt|pi|ln|log|exp|sin|cos|tan|cdot|times|left|right)(?![A-Za-z])|\\,|π|[0-9.+\-*/^(){}\[\]\s!])+"
)
_FUNCTION = re.compile(r"\\(?:sqrt|pi|ln|log|exp|sin|cos|tan|frac|dfrac|tfrac)(?![A-Za-z])|[π^!]")
_TEXT = re.compile(r"\\(?:text(?:rm|bf|it|normal)?|mbox)\s?\{([^{}]*)\}")
_MARKS = re.compile(r"[\\^_=+*/<>|{}]")  # of formulas: letters next to them are symbols
_LONG_WORDS = re.compile(r"[^\W\d_]{3,} [^\W\d_]{4,}|[^\W\d_]{4,} [^\W\d_]{3,}")  # "New York" is not a product
_BOTH_SIGNS = re.compile(r"±|\\pm(?![A-Za-z])")
_SET_AS_UNIT = re.compile(r"\\(?:text|mathrm|rm|mbox|unit|si|circ|degree)(?![A-Za-z])|[%°]")


def same_expression(found: str, truth: str, *, seconds: float = symbolic.ANSWER_SECONDS) -> bool | None:
    """Whether two expressions are equal: as strings up to spaces, as numbers to six digits, or as math-verify says.

    Case matters for symbols, not for words. An uncertainty is dropped if the truth has none.

    Args:
      found: the text's answer, see `final_answer`.
      truth: the right answer; if it is a set, an equation or an interval, math-verify expects the same form.
      seconds: the time that math-verify may take, in its thread's CPU time.

    Returns:
      None if it was not decided: one is not an expression, is too long or too large, or time ran out.

    Examples:
      >>> same_expression("x = 2", "x=2"), same_expression("1/2", "0.5"), same_expression("0.3", "1/3")
      (True, True, False)
    """
    found, truth = tidy(found), tidy(truth)
    if found and _compact(found) == _compact(truth):
        return True
    if max(len(found), len(truth)) > MAX_ANSWER:
        return None
    as_numbers = _same_number(found, truth)
    if as_numbers is not None:
        return as_numbers
    if max(len(found), len(truth)) > MAX_EXPRESSION:
        return None
    return symbolic.equal(found, truth, seconds=seconds)


def _same_number(found: str, truth: str) -> bool | None:
    r"""Whether two numbers are the same; None if they are not, or may not be, numbers.

    math-verify would round 1e-8 and 2e-8 to the same six decimals, and reads 1\frac{3}{4} as a product.
    """
    if _BOTH_SIGNS.search(truth):
        return None  # two numbers
    (ours, more), (theirs, more_of_truth) = quantity(found), quantity(truth)
    if ours is None or theirs is None or more or more_of_truth or "=" in found + truth:
        return None
    if max(abs(ours.value), abs(theirs.value)) >= 2**53:  # floats would treat neighbouring integers as equal
        return None
    with_unit = found if ours.unit else truth
    if (ours.unit is None) != (theirs.unit is None) and not _SET_AS_UNIT.search(with_unit):
        return None  # 3t and 3mg are more likely products of symbols
    integers = ours.value.is_integer() and theirs.value.is_integer()
    return numbers_agree(ours, theirs, relative=1e-12 if integers else 2e-6)


def tidy(text: str) -> str:
    """Without the marks of formulas, and what ends a sentence."""
    text = re.sub(r"\s+", " ", re.sub(r"\\[()\[\]]|\\?\$|\x00", " ", text))
    return text.strip().rstrip(" .,;:")


def _compact(text: str) -> str:
    """Spaces only where they part two words or numbers; one spelling of what looks alike, and one case of words."""
    text = re.sub(r"\\[,;: ]|\s+", " ", re.sub(r"\\(?:(?:left|right|displaystyle)(?![A-Za-z])|!)", "", text))
    text = _TEXT.sub(lambda match: f" {fold(match[1], least=3)} ", text)
    text = text if _MARKS.search(text) else fold(text, least=3 if _LONG_WORDS.search(text) else 4)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", re.sub(r"\{([A-Za-z0-9])\}", r"\1", text))
    return re.sub(r"(?<=[^\w]) | (?=[^\w])", "", re.sub(" +", " ", text)).strip()


def closed_form(text: str) -> Number | None:
    r"""The value of an expression such as \frac{\pi}{4} that is a real number."""
    side = SIDES.split(tidy(text).replace(r"\approx", "≈"))[-1].strip()
    if not _CLOSED_FORM.fullmatch(side) or not _FUNCTION.search(side):
        return None
    value = symbolic.value(side.replace("π", r"\pi "))
    return None if value is None else Number(value)
