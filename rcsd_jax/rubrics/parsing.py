"""Reads a rubric from a model's text. Never raises.

The order of attempts, over the text left after the thinking blocks are dropped:

1. the first array that decodes without changes and holds enough criteria: status "strict" ("salvaged" if LaTeX in it
   would be misread, or some criteria are unusable or repeated);
2. the first array that decodes after its text is repaired (see `repair`): "salvaged";
3. the array with the most complete criteria before the place where it breaks off: "salvaged";
4. otherwise "rejected".

Every outcome has a reason, "<code>: <detail>". Codes: `ok`, `repaired`, `dropped_criteria`, `unterminated`, `empty`,
`only_thinking`, `no_array`, and those of `schema.check`: `too_few`, `too_many`, `no_positive_weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rcsd_jax.rubrics import schema
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA, Rubric, RubricError

_THINKING_TAG = r"(?:think|thinking|thought|reasoning)"
_CLOSED_THINKING = re.compile(rf"<({_THINKING_TAG})>.*?</\1>", re.S | re.I)
_HEADLESS_THINKING = re.compile(rf"\A.*</{_THINKING_TAG}>", re.S | re.I)  # the template already opened the block
_OPEN_THINKING = re.compile(rf"<{_THINKING_TAG}>.*\Z", re.S | re.I)
_ARRAY_START = re.compile(r'\[\s*(?=["{])')
_SEPARATORS = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder(strict=False)  # raw line breaks inside strings are common, and harmless
_MAX_REPAIRS = 50  # a model caught in a loop opens thousands of arrays; repairing each to the end would be quadratic

# Valid JSON escapes that are LaTeX macros: "\times" would decode to a tab and "imes". Line breaks do precede words, so after
# \n only known macros count. The other escapes precede lower-case letters only in macros.
_LATEX_ON_ESCAPE = re.compile(r"[bfrt][a-z]|n(?:abla|eg|eq|ot|otin|u)(?![a-z])")


@dataclass(frozen=True)
class Parsed:
    """The outcome for a text: the rubric (None exactly when rejected), "strict"|"salvaged"|"rejected", and the reason."""

    rubric: Rubric | None
    status: str
    reason: str

    @property
    def code(self) -> str:
        """The reason's stable short code."""
        return self.reason.split(":", 1)[0]


def parse(text: str, *, min_criteria: int = MIN_CRITERIA, max_criteria: int = MAX_CRITERIA) -> Parsed:
    """Reads the rubric in a model's raw text; see the module for the order of attempts. Never raises.

    Args:
      text: what the model wrote, with or without thinking, prose, code fences or a surrounding object.
      min_criteria: with fewer criteria the text is rejected.
      max_criteria: with more criteria the text is rejected.

    Examples:
      >>> parsed = parse('Sure: ["Essential Criteria: A.", "Important Criteria: B.", "Optional Criteria: C.", "Optio')
      >>> parsed.status, parsed.code, len(parsed.rubric)
      ('salvaged', 'unterminated', 3)
      >>> parse("No.").reason
      'no_array: no JSON array of objects or strings in 3 characters'
    """
    body = drop_thinking(text)
    if not body.strip():
        written = bool(text.strip())
        return _rejected("only_thinking", "no text outside thinking") if written else _rejected("empty", "no text")
    starts = [match.start() for match in _ARRAY_START.finditer(body)]
    if not starts:
        return _rejected("no_array", f"no JSON array of objects or strings in {len(body)} characters")
    bounds = {"min_criteria": min_criteria, "max_criteria": max_criteria}
    problems: list[RubricError] = []
    for start in starts:
        found = _whole_array(body, start, problems, **bounds)
        if found is not None:
            return found
    broken: list[tuple[int, list[Any], tuple[str, ...]]] = []
    for start in starts[:_MAX_REPAIRS]:
        fixed, repairs = repair(body[start:])
        elements, closed = _leading_elements(fixed)
        if not closed:
            broken.append((start, elements, repairs))
            continue
        found = _from_elements(elements, problems, code="repaired", details=repairs, **bounds)
        if found is not None:
            return found
    for start, elements, repairs in sorted(broken, key=lambda item: -len(item[1])):
        detail = f"the array at character {start} breaks after {len(elements)} complete elements"
        found = _from_elements(elements, problems, code="unterminated", details=(detail, *repairs), **bounds)
        if found is not None:
            return found
    # The largest rubric that failed says most about the fault; a list of words or numbers in the prose says least.
    worst = max(problems, key=lambda problem: problem.count)
    return _rejected(worst.code, worst.detail)


def drop_thinking(text: str) -> str:
    """The text without its thinking blocks: closed ones, one whose opening tag is in the prompt, one never closed.

    Examples:
      >>> drop_thinking("<think>It asks for a unit.</think>[1]"), drop_thinking("goes on</think>[1]"), drop_thinking("<think>goes on")
      ('[1]', '[1]', '')
    """
    text = _CLOSED_THINKING.sub("", text)
    return _OPEN_THINKING.sub("", _HEADLESS_THINKING.sub("", text))


def repair(text: str) -> tuple[str, tuple[str, ...]]:
    """Repairs the usual faults of the JSON array that `text` begins with, and cuts the text after the array's end.

    Backslashes that JSON does not allow (`\\(`, `\\mu`) and LaTeX macros that it would misread (`\\frac`) are doubled,
    trailing and doubled commas removed, missing commas between members or items put in.

    Returns:
      (text, repairs): the repaired text and one note per kind of fault, with its count; empty if nothing was repaired.

    Examples:
      >>> repair('["Essential Criteria: A.", ] and more')
      ('["Essential Criteria: A." ]', ('removed spare commas: 1',))
    """
    out: list[str] = []
    counts = {"escaped LaTeX backslashes": 0, "removed spare commas": 0, "inserted missing commas": 0}
    i, depth, in_string, last = 0, 0, False, ""  # last: the last non-space character outside strings
    while i < len(text):
        ch = text[i]
        if in_string:
            if ch == "\\":
                if _is_escape(text, i):
                    out.append(text[i : i + 2])
                    i += 2
                    continue
                out.append("\\")
                counts["escaped LaTeX backslashes"] += 1
            in_string = ch != '"'
            last = last if in_string else '"'
        elif not ch.isspace():
            if ch in "]}" and last == ",":
                comma = next(at for at in range(len(out) - 1, -1, -1) if out[at] == ",")  # only spaces follow it
                del out[comma]
                counts["removed spare commas"] += 1
            elif ch in '"{' and last in ('"', "}") or ch == '"' and last.isdigit():
                out.append(",")
                counts["inserted missing commas"] += 1
            elif ch == "," and last == ",":
                counts["removed spare commas"] += 1
                i += 1
                continue
            in_string = ch == '"'
            depth += (ch in "[{") - (ch in "]}")
            last = ch
        out.append(ch)
        i += 1
        if depth == 0:
            break
    return "".join(out), tuple(f"{name}: {count}" for name, count in counts.items() if count)


def _is_escape(text: str, i: int) -> bool:
    """Whether the backslash at i begins a JSON escape, and not a LaTeX macro."""
    follower = text[i + 1 : i + 2]
    if follower == "u":
        return re.match(r"[0-9a-fA-F]{4}", text[i + 2 : i + 6]) is not None
    if follower == "" or follower not in '"\\/bfnrt':
        return False
    return _LATEX_ON_ESCAPE.match(text, i + 1) is None


def _whole_array(body: str, start: int, problems: list[RubricError], **bounds: int) -> Parsed | None:
    """The outcome for the array at `start` if it decodes completely and gives a rubric; else None, see `_from_elements`."""
    try:
        value, end = _DECODER.raw_decode(body, start)
        fixed, repairs = repair(body[start:end])
        value = _DECODER.decode(fixed) if repairs else value
    except (ValueError, RecursionError):
        return None
    return _from_elements(value, problems, code="repaired" if repairs else "ok", details=repairs, **bounds)


def _from_elements(
    elements: list[Any],
    problems: list[RubricError],
    *,
    code: str,
    details: Sequence[str],
    min_criteria: int,
    max_criteria: int,
) -> Parsed | None:
    """A rubric of the usable elements; or None, with the problem added to `problems`."""
    criteria, dropped = [], []
    scale = schema.weight_scale(elements)
    for element in elements:
        try:
            criteria.append(schema.criterion_from(element, scale=scale))
        except RubricError as error:
            dropped.append(error)
    kept = schema.without_repeats(criteria)
    details = list(details)
    if dropped:
        details.append(f"dropped {len(dropped)} unusable criteria, first {dropped[0]}")
    if len(kept) < len(criteria):
        details.append(f"dropped {len(criteria) - len(kept)} repeated criteria")
    try:
        schema.check(kept, min_criteria=min_criteria, max_criteria=max_criteria)
    except RubricError as error:
        problems.append(RubricError(error.code, "; ".join([error.detail, *details]), count=error.count))
        return None
    if code == "ok" and details:
        code = "dropped_criteria"
    status = "strict" if code == "ok" else "salvaged"
    return Parsed(Rubric(kept), status, "; ".join([f"{code}: {len(kept)} criteria", *details]))


def _leading_elements(text: str) -> tuple[list[Any], bool]:
    """The complete elements of the array that `text` begins with, and whether the array is closed."""
    elements: list[Any] = []
    at = 1
    while True:
        separators = _SEPARATORS.match(text, at)
        assert separators is not None, "it also matches nothing"
        at = separators.end()
        try:
            element, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return elements, text[at : at + 1] == "]"
        elements.append(element)


def _rejected(code: str, detail: str) -> Parsed:
    return Parsed(None, "rejected", f"{code}: {detail}")
