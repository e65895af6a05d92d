"""Reads decisions from a judge's text: lenient about text around the JSON, strict about the decisions.

Thinking blocks, prose and code fences are skipped; LaTeX backslashes and spare commas are repaired. A decision is JSON's true or
false, or one of the words of `prompts.EXTENTS`. "yes", "true" and 1 are refused: asking again costs little, and a misread decision
is a wrong score. An answer that does
not decide every criterion exactly once is rejected. An answer that gives its decisions twice must repeat them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rcsd_jax.judge.prompts import EXTENTS
from rcsd_jax.rubrics.parsing import drop_thinking, repair

_START = re.compile(r'\{\s*"|\[\s*\{')
_MAX_REPAIRS = 10  # a judge caught in a loop opens thousands of objects, and each repair reads to the end


class Verdict(NamedTuple):
    """One decision, true or false or how far from 0 to 1, and the judge's reason."""

    decision: float
    reason: str


class Unreadable(NamedTuple):
    """An answer that decides nothing, and why. The words are this module's; they quote nothing that the judge wrote."""

    problem: str


def read(text: str, names: Sequence[str]) -> list[Verdict] | Unreadable:
    """The decisions in a judge's text, in the order of the criteria. Never raises.

    Args:
      text: what the judge wrote.
      names: for each criterion that was asked about, the field that holds its decision.

    Examples:
      >>> read('Verdict: {"criterion": 1, "reason": "It does.", "met": true}', ["met"])
      [Verdict(decision=True, reason='It does.')]
      >>> read("It is met.", ["met"])
      Unreadable(problem='it holds no JSON')
    """
    body = drop_thinking(text)
    if not body.strip():
        return Unreadable("it was empty")
    problem = "it holds no JSON"
    for values in (_decoded(body), _repaired(body)):
        found = [_verdicts(value, names) for value in values]
        good = [one for one in found if not isinstance(one, Unreadable)]
        if any([v.decision for v in one] != [v.decision for v in good[0]] for one in good):
            return Unreadable("it decides twice, and differently")
        if good:
            return good[0]
        problem = next((one.problem for one in found if isinstance(one, Unreadable)), problem)
    return Unreadable(problem)


def _decoded(body: str) -> Iterator[Any]:
    """Every outermost JSON value that decodes without changes."""
    at = 0
    while (start := _START.search(body, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(body, start.start())
            yield value
        except (ValueError, RecursionError):
            at = start.start() + 1


def _repaired(body: str) -> Iterator[Any]:
    """JSON values that decode after their text is repaired."""
    for start in list(_START.finditer(body))[:_MAX_REPAIRS]:
        try:
            yield _DECODER.decode(repair(body[start.start() :])[0])
        except (ValueError, RecursionError):
            continue


def _verdicts(value: Any, names: Sequence[str]) -> list[Verdict] | Unreadable:
    records = value
    if isinstance(value, dict):
        records = value["verdicts"] if isinstance(value.get("verdicts"), list) else [value]
    found: dict[int, Verdict] = {}
    for record in records:
        if not isinstance(record, dict):
            return Unreadable("its list holds something other than objects")
        number = record.get("criterion", 1 if len(names) == 1 else None)  # one needs no number
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(names):
            return Unreadable('an object has no "criterion" among the numbers asked about')
        if number in found:
            return Unreadable(f"it decides criterion {number} twice")
        name = names[number - 1]
        decision = _decision(record.get(name), name)
        if decision is None:
            allowed = f"one of {', '.join(EXTENTS)}" if name == "extent" else "true or false"
            return Unreadable(f'criterion {number} has no "{name}" that is {allowed}')
        found[number] = Verdict(decision, str(record.get("reason") or ""))
    missing = [str(i) for i in range(1, len(names) + 1) if i not in found]
    if missing:
        return Unreadable(f"it leaves out criterion {', '.join(missing)}")
    return [found[i] for i in range(1, len(names) + 1)]


def _decision(value: Any, name: str) -> float | None:
    if name == "extent":
        return EXTENTS.get(" ".join(value.casefold().split())) if isinstance(value, str) else None
    return value if isinstance(value, bool) else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return dict(pairs)


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_without_repeats)
