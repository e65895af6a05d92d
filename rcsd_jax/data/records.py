"""From records with whatever column names to Examples, with errors that name file, row, field, value and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rcsd_jax.data.examples import Example
from rcsd_jax.errors import UserError
from rcsd_jax.rubrics import parsing, schema
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA, Rubric, RubricError

# Column names in the wild, the first present wins. `answer` may share its column with `reference`.
ALIASES = {
    "id": ("id", "uid"),
    "question": ("question", "problem", "prompt", "query", "instruction", "input"),
    "reference": ("reference_answer", "reference", "answer", "final_answer", "solution"),
    "rubric": ("rubric", "rubrics", "rubric_list"),
    "answer": ("final_answer", "answer"),
}
_ABSENT = object()


def to_examples(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    file: Any,
    origin: str,
    fields: Mapping[str, str | None] | None = None,
    require: Sequence[str] = ("question",),
    min_criteria: int = MIN_CRITERIA,
    max_criteria: int = MAX_CRITERIA,
) -> list[Example]:
    """Converts records to Examples.

    Args:
      records: (row number, record) pairs; the row number, from 1, is what errors name.
      file: the file or data set that errors name.
      origin: the beginning of the id of a record without one.
      fields: explicit columns by Example field, e.g. {"rubric": "rubrics.GT"}; a dot steps into an object (or, with a
        number, a list). A field not given, or given as None or "", is looked up by `ALIASES`.
      require: the Example fields that every record must have; the question is always required.
      min_criteria: a rubric with fewer is an error.
      max_criteria: a rubric with more is an error.

    Returns:
      One Example per record, in order. `extra` keeps every column that was not taken whole as a field.

    Raises:
      UserError: an unknown field in `fields` or `require`, no records, a column in `fields` that no record has, a
        required field that is missing or empty, a value of the wrong type, a bad rubric, an id that occurs twice.

    Examples:
      >>> rows = [{"problem": "6 * 7?", "meta": {"solution": 42}}]
      >>> (one,) = to_examples(enumerate(rows, 1), file="rows.jsonl", origin="rows", fields={"answer": "meta.solution"})
      >>> one.id, one.question, one.answer
      ('rows:1', '6 * 7?', '42')
      >>> to_examples([(7, {"text": "6 * 7?"})], file="rows.jsonl", origin="rows", fields={"question": "problem"})
      Traceback (most recent call last):
      rcsd_jax.errors.UserError: rows.jsonl:7: field 'problem': no column 'problem'; set data.fields.question to one of this row's columns text
    """
    columns = _columns(fields)
    for name in require:
        if name not in ALIASES:
            raise UserError("no such example field", remedy=f"require some of {_list(ALIASES)}", field=name)
    rows_of_ids: dict[str, int] = {}
    names: dict[str, None] = {}
    examples, found = [], set()
    for row, record in records:
        names.update(dict.fromkeys(record))
        values, used = {}, set()
        for name in ALIASES:
            column, value = _look_up(record, columns.get(name), ALIASES[name])
            if column is not None:
                found.add(name)
                used.add(column)
            place = {"file": file, "row": row, "field": column or columns.get(name) or name}
            if name == "rubric":
                value = _rubric(value, place, min_criteria, max_criteria)
            else:
                value = _text(value, place, name)
            if value is None and (name in require or name == "question"):
                raise _missing(record, name, column, columns.get(name), place)
            values[name] = value
        values["id"] = values["id"] or f"{origin}:{row}"
        first = rows_of_ids.setdefault(values["id"], row)
        if first != row:
            raise UserError(
                f"row {first} has the same id",
                remedy="make ids unique, or drop the column to have rows numbered",
                file=file,
                row=row,
                field=columns.get("id", "id"),
                value=values["id"],
            )
        extra = {key: value for key, value in record.items() if key not in used}
        examples.append(Example(**values, origin=f"{file}:{row}", extra=extra))
    if not examples:
        raise UserError("no examples in it", remedy="give a source with at least one example", file=file)
    for name, column in columns.items():
        if name not in found:
            raise UserError(
                f"no record has the column {column!r}",
                remedy=f"name one of {_list(names)}",
                file=file,
                field=f"data.fields.{name}",
            )
    return examples


def _columns(fields: Mapping[str, str | None] | None) -> dict[str, str]:
    columns = {name: column for name, column in (fields or {}).items() if column}
    for name in columns:
        if name not in ALIASES:
            remedy = f"set some of {_list(ALIASES)}"
            raise UserError("no such example field", remedy=remedy, field=f"data.fields.{name}")
    return columns


def _look_up(record: Mapping[str, Any], path: str | None, aliases: Sequence[str]) -> tuple[str | None, Any]:
    """The column that holds a field and its value; (None, None) where there is none."""
    if path is None:
        column = next((alias for alias in aliases if record.get(alias) is not None), None)
        column = column or next((alias for alias in aliases if alias in record), None)
        return column, None if column is None else record[column]
    if path in record:
        return path, record[path]
    value: Any = record
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step, _ABSENT)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step in map(str, range(len(value))):
            value = value[int(step)]
        else:
            value = _ABSENT
    return (None, None) if value is _ABSENT else (path, value)


def _text(value: Any, place: Mapping[str, Any], name: str) -> str | None:
    """A field's text; None for null and blank. Numbers are accepted for all but the question."""
    if isinstance(value, (int, float)) and name != "question":
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise UserError(
            f"expected text, found {type(value).__name__}",
            remedy=f"name a text column with data.fields.{name}, a dot steps inside (prompt.0.content)",
            value=value,
            **place,
        )
    check_encodes(value, place)
    return value.strip()


def check_encodes(text: str, place: Mapping[str, Any]) -> None:
    """Raises UserError, which names the place, if a string is no text that can be written or tokenized."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"half of a surrogate pair at character {error.start}, which is no text"
        raise UserError(problem, remedy="repair the escape sequence in the row", value=text, **place) from error


def _rubric(value: Any, place: Mapping[str, Any], min_criteria: int, max_criteria: int) -> Rubric | None:
    """A rubric from a list, or from JSON text of one; None for null, blank and []."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        example = f"{place['field']}.{keys[0] if keys else 'KEY'}"
        raise UserError(
            f"an object with the keys {_list(keys)}, where a list of criteria is wanted",
            remedy=f'say which one, e.g. data.fields.rubric="{example}"',
            **place,
        )
    bounds = {"min_criteria": min_criteria, "max_criteria": max_criteria}
    remedy = f"give {min_criteria} to {max_criteria} {{title, description, weight}} objects or prefixed strings"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            parsed = parsing.parse(value, **bounds)
            if parsed.status == "strict":
                return parsed.rubric
            raise UserError(f"not a rubric ({parsed.reason})", remedy=remedy, value=value, **place) from None
    try:
        return schema.from_records(value, **bounds)
    except RubricError as error:
        raise UserError(f"not a rubric ({error})", remedy=remedy, value=value, **place) from error


def _missing(
    record: Mapping[str, Any], name: str, column: str | None, wanted: str | None, place: Mapping[str, Any]
) -> UserError:
    if column is not None:
        remedy = "fill it in or remove the row"
        return UserError(f"the {name} is empty", remedy=remedy, value=record.get(column), **place)
    problem = f"no column {wanted!r}" if wanted else f"no {name}: none of the columns {_list(ALIASES[name])}"
    remedy = f"set data.fields.{name} to one of this row's columns {_list(record)}"
    return UserError(problem, remedy=remedy, **place)


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "(none)"
