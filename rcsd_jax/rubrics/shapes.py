"""Rubrics as rows hold them: a list of criteria, an object, a text with a list in it, or JSON of one of these.

A row's rubric was written to be one, so more is read here than in a model's text (`parsing`): strings need no class.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rcsd_jax.rubrics import parsing, schema
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA, Rubric, RubricError

# Keys of an object whose value is the rubric.
WRAPPERS = ("rubric", "rubrics", "rubric_list", "criteria")
# Tags of OpenRubrics: an explicit demand of the prompt, and a quality that any good answer has.
TAGS = {"hard rule": "Essential", "principle": "Important"}

_ITEM = re.compile(r"(?P<indent>[ \t]*)(?:\d{1,3}[.):]|[-*•–+])[ \t]+(?P<text>\S.*)")
_HEADING = re.compile(
    rf"[#*\s]*(?P<name>{'|'.join(name for names in schema._CLASS_NAMES.values() for name in names.split())})s?"
    r"(?:\s+(?:criteria|criterion))?[\s*:]*",
    re.I | re.A,
)
_TAG = re.compile(rf"\s*\[\s*(?P<tag>{'|'.join(TAGS)})\s*\]\s*", re.I)
_NUMBER = r"(?P<{}>[+-]?(?:\d+(?:\.\d+)?|\.\d+))"
# "(5 points)", "[weight: 3]": a number without one of these words may be part of the requirement.
_POINTS = re.compile(
    rf"\s*[(\[]\s*(?:(?:weight|points?|score)\s*[:=]?\s*{_NUMBER.format('named')}"
    rf"|{_NUMBER.format('counted')}\s*(?:points?|pts?))\s*[)\]]\s*",
    re.I,
)


def rubric_from(value: Any, *, min_criteria: int = MIN_CRITERIA, max_criteria: int = MAX_CRITERIA) -> Rubric | None:
    """The rubric in a row's value; None for null, blank and empty.

    Raises:
      RubricError: codes of `schema.from_records` and of `parsing.parse`; `several` for an object of which no one can say what in
        it is the rubric.

    Examples:
      >>> rubric = rubric_from("1. Names the law. [Hard Rule]\\n2. Is clear. [Principle]\\n3. Is short. (2 points)")
      >>> [(c.kind, c.description, c.weight) for c in rubric.criteria]
      [('Essential', 'Names the law.', 10.0), ('Important', 'Is clear.', 7.0), ('Optional', 'Is short.', 2.0)]
      >>> [(c.title, c.description) for c in rubric_from({"Law": "Names it.", "Unit": "Gives it.", "Sign": "Is right."}).criteria]
      [('Law', 'Names it.'), ('Unit', 'Gives it.'), ('Sign', 'Is right.')]
    """
    bounds = {"min_criteria": min_criteria, "max_criteria": max_criteria}
    if isinstance(value, str):
        text, value = value, _decoded(value)
        if value is text:
            parsed = parsing.parse(text, **bounds)
            if parsed.status == "strict":
                return parsed.rubric
            value = items_of(text)
            if text.strip() and not value:
                raise RubricError(parsed.code, parsed.reason.partition(": ")[2])
    if value is None or value == [] or value == {} or isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, Mapping):
        value = records_of(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = [_tagged(_decoded(item)) if isinstance(item, str) else item for item in value]
    return schema.from_records(value, **bounds, bare_strings=True)


def looks_like_one(value: Any) -> bool:
    """Whether a value may be a rubric: an object, a list of objects or texts, JSON of one of these, or a text with a list in it."""
    if isinstance(value, str):
        text, value = value, _decoded(value)
        if value is text:
            return bool(items_of(text))
    return isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(x, (str, Mapping)) for x in value))


def described(value: Any) -> str:
    """The shape of a rubric in words: the keys of its criteria, or what else it is.

    Examples:
      >>> described([{"points": 5, "criterion": "A.", "tags": []}]), described(["A."]), described("- A."), described({"a": "A."})
      ('criterion, points', 'strings', 'text', 'object')
    """
    if isinstance(value, str):
        text, value = value, _decoded(value)
        if value is text:
            return "text"
        return f"JSON: {described(value)}"
    if isinstance(value, Mapping):
        wrapped = [inner for key, inner in value.items() if _name(key) in WRAPPERS and isinstance(inner, list)]
        return described(wrapped[0]) if len(wrapped) == 1 else "object"
    first = _decoded(value[0]) if isinstance(value[0], str) else value[0]
    if not isinstance(first, Mapping):
        return "strings"
    known = [alias for aliases in schema._ALIASES.values() for alias in aliases]
    return ", ".join(
        sorted((str(key) for key in first if _name(key) in known), key=lambda key: known.index(_name(key)))
    )


def records_of(value: Mapping[Any, Any]) -> list[Any]:
    """The criteria of a rubric that is an object, as `schema.from_records` reads them.

    It is {"criteria": [...]}, {class: criteria of it}, {name: text}, {name: criterion}, {requirement: weight}, or one criterion.

    Raises:
      RubricError: `several`, it is none of these.
    """
    wrapped = [
        inner for key, inner in value.items() if _name(key) in WRAPPERS and isinstance(inner, (list, tuple, Mapping))
    ]
    if len(wrapped) == 1:
        return records_of(wrapped[0]) if isinstance(wrapped[0], Mapping) else list(wrapped[0])
    described = [key for key in value if _name(key) in schema._ALIASES["description"]]
    others = [key for key in value if _name(key) in (*schema._ALIASES["weight"], *schema._ALIASES["title"])]
    if described and others:
        return [value]
    kinds = [_HEADING.fullmatch(str(key)) for key in value]
    if all(kinds):
        return [
            _of_class(one, match["name"])
            for match, inner in zip(kinds, value.values(), strict=True)
            if match is not None
            for one in (inner if isinstance(inner, (list, tuple)) else [inner])
        ]
    if not all(_is_criterion(inner) for inner in value.values()):
        raise RubricError("several", f"an object with the keys {', '.join(map(str, value))}")
    return [_named(str(name), inner) for name, inner in value.items()]


def items_of(text: str) -> list[Any]:
    """The items of a numbered or bulleted text, as records; empty without a list. Headings that name a class give it.

    Examples:
      >>> items_of("Essential criteria:\\n- Names the law\\n  of Ohm.\\n* Gives 4 V. (weight: 5)")
      ['Essential Criteria: Names the law of Ohm.', {'description': 'Essential Criteria: Gives 4 V.', 'weight': '5'}]
    """
    items: list[str] = []
    kind, depth = "", None
    for line in text.splitlines():
        found = _ITEM.fullmatch(line.rstrip())
        heading = _HEADING.fullmatch(line) if line.strip() else None
        if heading:
            kind, depth = f"{heading['name'].capitalize()} Criteria: ", None
        elif found and (depth is None or len(found["indent"].expandtabs()) <= depth + 1):
            depth = len(found["indent"].expandtabs())
            items.append((kind if schema.split_class(found["text"])[0] is None else "") + found["text"])
        elif items and depth is not None and line.strip():
            items[-1] += f" {found['text'] if found else line.strip()}"
    return [_weighed(item) for item in items]


def _weighed(item: str) -> Any:
    points = _POINTS.search(item)
    if points is None:
        return item
    return {"description": _POINTS.sub(" ", item, count=1).strip(), "weight": points["named"] or points["counted"]}


def _tagged(item: Any) -> Any:
    """A text whose tag, such as OpenRubrics' [Hard Rule], names its class: with this class as the prefix."""
    tag = _TAG.search(item) if isinstance(item, str) else None
    return item if tag is None else _of_class(_TAG.sub(" ", item).strip(), TAGS[tag["tag"].casefold()])


def _of_class(item: Any, name: str) -> Any:
    if isinstance(item, str):
        return item if schema.split_class(item)[0] else f"{name.capitalize()} Criteria: {item}"
    return {"class": name, **item} if isinstance(item, Mapping) else item


def _named(name: str, inner: Any) -> Any:
    """The criterion {name: inner}."""
    if isinstance(inner, str):
        return {"title": name, "description": inner}
    if isinstance(inner, Mapping):
        described = any(_name(key) in schema._ALIASES["description"] for key in inner)
        return {"title" if described else "description": name, **inner}
    return {"description": name, "weight": inner}


def _is_criterion(inner: Any) -> bool:
    if isinstance(inner, str):  # a text with an array in it is a rubric itself
        return re.search(r'\[\s*["{]', inner) is None
    return isinstance(inner, Mapping) or (isinstance(inner, (int, float)) and not isinstance(inner, bool))


def _name(key: Any) -> str:
    return str(key).strip().casefold()


def _decoded(text: str) -> Any:
    """The list or object that a text holds as JSON, or as Python prints it; else the text itself."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, (list, dict)):
            return value
    return text
