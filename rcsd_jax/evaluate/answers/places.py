r"""Finds the place of a text's answer: a box, a statement, or the whole text."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rcsd_jax.evaluate.answers.statements import retracted, stated

MAX_ANSWER = 2000  # characters of an answer; PIQA's longest options have some hundred
MAX_EXPRESSION = 300  # of a number or an expression: grammars and sympy slow down long before
_MAX_LINES = 200  # of a text that may give its answer on a line of its own

UNPARSED = {
    "no_answer": "no box, no stated answer, and the text is more than an answer",
    "cut": "a box is opened and not closed",
    "too_long": "the text in the answer's place is too long to be an answer",
    "contradictory": "statements of different answers, and none is final",
    "several": "more than one option, or a letter with the text of another option",
    "out_of_range": "a letter beyond the last option",
    "not_an_option": "neither a letter nor the text of an option",
    "not_a_number": "not one finite real number, with or without a unit",
}


class FinalAnswer(NamedTuple):
    """A text's answer and its place ("boxed", "stated", "whole" or "line"), or None and the reason (a key of `UNPARSED`)."""

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
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}` that is not empty; None if there is none.

    Braces are matched and escaped ones skipped. Boxes are ordered by where they begin, so the innermost of nested
    boxes is the last.

    Examples:
      >>> last_boxed(r"First \boxed{1}, no: \boxed{\frac{1}{2}}")
      '\\frac{1}{2}'
    """
    return _boxes(text)[0]


def _boxes(text: str) -> tuple[str | None, bool]:
    """The content of the last complete box, and whether a box was opened and never closed."""
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


SENTENCE_END = re.compile(r"[.;!?](?:\s|\Z)|[。；！？]")


def final_answer(text: str) -> FinalAnswer:
    """The text of the answer, boxed or stated, to be compared by `same_expression`.

    Examples:
      >>> final_answer("The answer is 42.")
      FinalAnswer(value='42', reason='stated')
      >>> final_answer("It depends on what is meant.").reason
      'no_answer'
    """
    boxed, begun = _boxes(text)
    if boxed is not None:
        return FinalAnswer(None, "too_long") if len(boxed) > MAX_ANSWER else FinalAnswer(boxed, "boxed")
    if begun:
        return FinalAnswer(None, "cut")
    for line, *_ in stated(text):
        # The formula before the rest of its sentence, if there is one: "the answer is $x + 1$ because ...".
        answer = re.split(r"\$|\\[)\]]", SENTENCE_END.split(line, maxsplit=1)[0], maxsplit=1)[0].strip(" *_.")
        if answer:
            return FinalAnswer(answer, "stated")
    return FinalAnswer(None, "no_answer")


def read(
    text: str,
    read: Callable[[str], FinalAnswer],
    whole: Callable[[str], FinalAnswer],
    *,
    agree: Callable[[Any, Any], bool] = operator.eq,
    alone: Callable[[str, bool], FinalAnswer] | None = None,
) -> FinalAnswer:
    """The answer of `text`: `read` reads a box or a line, `whole` the whole text. Each gives the reason of a failure.

    If statements contradict each other, the last one holds if it is more final than the others, or takes them back.

    Args:
      text: the model's text.
      read: reads the content of a box, or a line from a statement on.
      whole: reads a text of one line that may be prose.
      agree: whether the values of two answers are equal.
      alone: reads one of several lines that may be prose; its second argument is True for the first line. None reads no lines.
    """
    boxed, begun = _boxes(text)
    if boxed is not None:
        return FinalAnswer(None, "too_long") if len(boxed) > MAX_ANSWER else _found(read(boxed), "boxed")
    if begun:
        return FinalAnswer(None, "cut")
    failure, last = None, None
    for statement in stated(text):
        answer = (whole if statement.whole else read)(statement.line)
        if last is None:
            # "the answer is independent of m" after "the answer is 5" takes nothing back; "A or B" does.
            if answer.value is None and answer.reason in ("several", "out_of_range"):
                return answer
            last = None if answer.value is None else (answer, statement)
            failure = failure or answer
        elif answer.value is not None and not agree(answer.value, last[0].value):
            if retracted(text, statement, last[1]):
                break
            if statement.rank >= last[1].rank:
                return FinalAnswer(None, "contradictory")
    if last is not None:
        return _found(last[0], "stated")
    text = text.strip()
    if failure is None and 0 < len(text) <= MAX_ANSWER and "\n" not in text:
        answer = whole(text)
        if answer.value is not None or answer.reason in ("several", "out_of_range"):
            return _found(answer, "whole")
    if failure is None and alone is not None:
        in_a_line = _in_a_line(text, alone)
        if in_a_line is not None:
            return _found(in_a_line, "line")
    return failure or FinalAnswer(None, "no_answer")


def _in_a_line(text: str, alone: Callable[[str, bool], FinalAnswer]) -> FinalAnswer | None:
    """The answer on the first or last line, if no other line is another answer: a list of options is not an answer."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        return None
    answers = {i: alone(line, i == 0) for i, line in enumerate(lines) if len(line) <= MAX_EXPRESSION}
    found = {i: answer for i, answer in answers.items() if answer.value is not None}
    if len({answer.value for answer in found.values()}) != 1:
        return None
    return found.get(0) or found.get(len(lines) - 1)


def _found(answer: FinalAnswer, where: str) -> FinalAnswer:
    return answer if answer.value is None else answer._replace(reason=where)
