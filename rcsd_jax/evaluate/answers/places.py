r"""Where in a text its answer stands: in a box, in a statement, or as the whole text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAX_ANSWER = 2000  # characters of an answer; PIQA's longest options have some hundred
MAX_EXPRESSION = 300  # of a number or an expression: grammars and sympy slow down long before

UNPARSED = {
    "no_answer": "no box, no stated answer, and more than an answer alone",
    "cut": "a box is begun and not closed",
    "too_long": "what is given as the answer is too long to be one",
    "several": "more than one option, or a letter with the text of another option",
    "out_of_range": "a letter beyond the last option",
    "not_an_option": "neither a letter nor the text of an option",
    "not_a_number": "not one finite real number, with or without a unit",
}


class Answer(NamedTuple):
    """What a text answers and where ("boxed", "stated" or "whole"), or None and why not (a key of `UNPARSED`)."""

    value: Any
    reason: str


# A box and its brace, or without one a number or a letter (`\boxed 5`); other braces; escaped braces and backslashes, but
# for the doubled one of `\\boxed`, from a text that was escaped twice.
_BRACES = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,9}"
    r"(?:(?P<box>\{)|(?P<bare>[-+]?[0-9](?:[0-9.,]{0,30}[0-9])?|[A-Za-z](?![A-Za-z]))|(?P<end>\Z))?"
    r"|(?P<open>\{)|(?P<close>\})|\\(?:[{}]|\\(?!(?:boxed|fbox)(?![A-Za-z])))"
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}` that is not empty; None without one.

    Braces are matched and escaped ones skipped. Boxes are ordered by where they begin, so that of nested ones the
    innermost is the last.

    Examples:
      >>> last_boxed(r"First \boxed{1}, no: \boxed{\frac{1}{2}}")
      '\\frac{1}{2}'
    """
    return _boxes(text)[0]


def _boxes(text: str) -> tuple[str | None, bool]:
    """The content of the last complete box, and whether a box was begun and never closed."""
    last: tuple[int, str | None] = (-1, None)
    opened: list[tuple[int, int] | None] = []  # of each open brace its box's beginning and end, or None
    begun = False
    for match in _BRACES.finditer(text):
        start, found = match.start(), match["bare"]
        if match["box"]:
            opened.append((start, match.end()))
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened and (box := opened.pop()):
            start, found = box[0], text[box[1] : match.start()].strip()
        begun = begun or match["end"] is not None
        if found and start > last[0]:
            last = start, found
    return last[1], begun or any(opened)


_MARKS = r"[*_]{0,3}"
_IS = (
    r"\s(?:is|was|(?:would|must|should|will)\sbe)\b"
    r"(?:\s(?:therefore|thus|hence|then|clearly|simply|indeed|likely|most\slikely|probably)\b)?"
)
_STATEMENT = re.compile(
    rf"\banswer\b(?:\s(?:to|for)\b[^\n.:]{{1,60}}?)?(?:{_MARKS}\s?:|{_IS})"
    rf"|\b(?:correct|best|right|final)\s(?:answer\s)?(?:option|choice)(?:{_MARKS}\s?:|{_IS})"
    rf"|^[#*_ ]{{1,6}}(?:the\s)?(?:final\s|correct\s)?answer{_MARKS}[ \t]{{0,9}}$",  # a heading; the answer is below
    re.I | re.M,
)
_AFTER_STATEMENT = re.compile(r"(?:[\s$*_:>]|\\[\[(])*")
_HYPOTHETICAL = re.compile(r"\b(?:if|whether|unless|suppose|supposing|assume|assuming)\b[^\n.,;:]{0,40}\Z", re.I)
_REVERSED_STATEMENT = re.compile(
    r"(?<![\w(])(\(?[A-Z]\)?)[*_]{0,3}\sis\s(?:therefore\s)?the\s(?:correct\s|best\s|right\s)?(?:answer|option|choice)\b"
)
SENTENCE_END = re.compile(r"[.;!?](?:\s|\Z)")
_MAX_STATEMENTS = 50  # a model caught in a loop makes thousands


def _stated(text: str) -> Iterator[str]:
    """What follows the text's statements of an answer, each to the end of its line; the last statement first."""
    found: list[tuple[int, int, str | None]]
    found = [(match.start(), match.end(), None) for match in _STATEMENT.finditer(text)]
    found += [(match.start(), match.end(), match[1]) for match in _REVERSED_STATEMENT.finditer(text)]
    for start, end, letter in sorted(found, reverse=True)[:_MAX_STATEMENTS]:
        if _HYPOTHETICAL.search(text[max(0, start - 50) : start]):
            continue
        after = _AFTER_STATEMENT.match(text, end, end + 100)
        assert after is not None, "it also matches nothing"
        line = letter or text[after.end() : after.end() + MAX_EXPRESSION].split("\n")[0]
        line = line.strip().rstrip("!")  # no factorial
        if line:
            yield line


def final_answer(text: str) -> Answer:
    """The text of the answer, boxed or stated, to be compared by `same_expression`.

    Examples:
      >>> final_answer("The answer is 42.")
      Answer(value='42', reason='stated')
      >>> final_answer("It depends on what is meant.").reason
      'no_answer'
    """
    boxed, begun = _boxes(text)
    if boxed is not None:
        return Answer(None, "too_long") if len(boxed) > MAX_ANSWER else Answer(boxed, "boxed")
    if begun:
        return Answer(None, "cut")
    for line in _stated(text):
        # The formula before the rest of its sentence, where there is one: "the answer is $x + 1$ because ...".
        answer = re.split(r"\$|\\[)\]]", SENTENCE_END.split(line, maxsplit=1)[0], maxsplit=1)[0].strip(" *_.")
        if answer:
            return Answer(answer, "stated")
    return Answer(None, "no_answer")


def read(text: str, read: Callable[[str], Answer], whole: Callable[[str], Answer]) -> Answer:
    """The answer of `text` as `read` reads a box or a line, `whole` the whole; both give the reason of a failure."""
    boxed, begun = _boxes(text)
    if boxed is not None:
        return Answer(None, "too_long") if len(boxed) > MAX_ANSWER else _found(read(boxed), "boxed")
    if begun:
        return Answer(None, "cut")
    failure = None
    for line in _stated(text):
        answer = read(line)
        # "the answer is independent of m" after "the answer is 5" takes nothing back; "A or B" does.
        if answer.value is not None or answer.reason in ("several", "out_of_range"):
            return _found(answer, "stated")
        failure = failure or answer
    text = text.strip()
    if failure is None and 0 < len(text) <= MAX_ANSWER and "\n" not in text:
        answer = whole(text)
        if answer.value is not None or answer.reason in ("several", "out_of_range"):
            return _found(answer, "whole")
    return failure or Answer(None, "no_answer")


def _found(answer: Answer, where: str) -> Answer:
    return answer if answer.value is None else answer._replace(reason=where)
