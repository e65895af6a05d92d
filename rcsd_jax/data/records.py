"""Turns records with any column names into Examples. Errors name file, row, field, value and remedy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics import parsing, schema
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA, Rubric, RubricError

# Column names found in published data. The first one that holds something wins. `answer` and `reference` may share a column.
ALIASES = {
    "id": ("id", "uid"),
    "question": ("question", "problem", "prompt", "query", "instruction", "input"),
    "reference": ("reference_answer", "reference", "answer", "final_answer", "solution"),
    "rubric": ("rubric", "rubrics", "rubric_list"),
    "answer": ("final_answer", "answer"),
}
# Columns that are the second part of a question: "input" in Alpaca's rows, "context" in Dolly's.
SECOND_PARTS = {"instruction": ("input", "context")}
# Columns that hold a part of the question in some data and something else in other data. They are reported, not read.
PERHAPS_QUESTION = ("context", "passage", "options", "choices", "system", "history")

_FIELDS_OF = {alias: name for name, aliases in reversed(ALIASES.items()) for alias in aliases}
_FIELDS_OF |= dict.fromkeys(PERHAPS_QUESTION, "question")
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
    say: Callable[[str], Any] = warnings.warn,
) -> list[Example]:
    """Converts records to Examples.

    Args:
      records: (row number, record) pairs; the row number, from 1, is what errors name.
      file: the file or data set that errors name.
      origin: where the id of a record without one begins.
      fields: explicit columns by Example field, e.g. {"rubric": "rubrics.GT"}; a dot steps into an object (or, with a
        number, a list), and a plus joins columns of text. A field that is missing here, None or "" is looked up by
        `ALIASES`; the question also takes its second part (`SECOND_PARTS`).
      require: the Example fields that every record must have; the question is always required.
      min_criteria: a rubric with fewer criteria is an error.
      max_criteria: a rubric with more criteria is an error.
      say: called with one line if columns look like a field, or like a part of the question, and are not read.

    Returns:
      One Example per record, in order. `extra` keeps every column that did not become a field as a whole.

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
      rcsd_jax.host.errors.UserError: rows.jsonl:7: field 'problem': no column 'problem'; set data.fields.question to one of this row's columns text
    """
    columns = _columns(fields)
    for name in require:
        if name not in ALIASES:
            raise UserError("no such example field", remedy=f"require some of {_list(ALIASES)}", field=name)
    rows_of_ids: dict[str, int] = {}
    names: dict[str, None] = {}
    unread: dict[str, _Unread] = {}
    several: list[int] = []
    examples: list[Example] = []
    found: set[tuple[str, str]] = set()
    for row, record in records:
        if not record.keys() <= names.keys():
            names.update(dict.fromkeys(record))
        values: dict[str, Any] = {}
        used: set[str] = set()
        for name in ALIASES:
            parts = _look_up(record, columns.get(name), name)
            for part, _ in parts:
                used.add(part)
                found.add((name, part))
            column = parts[0][0] if parts else None
            place = {"file": file, "row": row, "field": column or columns.get(name) or name}
            value: Any
            if name == "rubric":
                value = _rubric(parts[0][1] if parts else None, place, min_criteria, max_criteria)
            else:
                value = _joined(parts, place, name)
            if value is None and (name in require or name == "question"):
                raise _missing(record, name, column, columns.get(name), place)
            values[name] = value
        for column in record.keys() & _FIELDS_OF.keys() - used:
            if _FIELDS_OF[column] not in columns and not _blank(record[column]):
                unread.setdefault(column, _Unread(record, used, [])).rows.append(row)
        if "question" in columns and _one_of_several(record, columns["question"]):
            several.append(row)
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
        raise UserError("it has no examples", remedy="give a source with at least one example", file=file)
    for name, path in columns.items():
        for column in _parts_of(path, name):
            if not {(name, column), (name, path)} & found:
                raise UserError(
                    f"no record has the column {column!r}",
                    remedy=f"name one of {_list(names)}",
                    file=file,
                    field=f"data.fields.{name}",
                )
    said = [_said(column, unread[column], len(examples)) for column in sorted(unread)]
    if several:
        where = f"{len(several)} of {len(examples)} rows, from row {several[0]} on"
        said.append(f"the second part of '{columns['question']}' in its list ({where})")
    if said:
        say(" ".join(f"{file}: not read: {'; '.join(said)}".splitlines()))
    return examples


class _Unread(NamedTuple):
    """A column that looks like a field and is not read: the column read instead in the first such record, and the rows."""

    record: Mapping[str, Any]
    used: set[str]
    rows: list[int]


def _said(column: str, unread: _Unread, count: int) -> str:
    name = _FIELDS_OF[column]
    read = next(alias for alias in ALIASES[name] if alias in unread.used)
    where = f"'{column}' ({len(unread.rows)} of {count} rows, from row {unread.rows[0]} on)"
    if name != "question":
        return f"{where} looks like the {name}, which is '{read}'; data.fields.{name}={column} reads it instead"
    if isinstance(unread.record[column], str):
        return f"{where} looks like a part of the question, which is '{read}'; data.fields.question={read}+{column} reads both"
    return f"{where} looks like a part of the question, which is '{read}'; move what the model should see there"


def _columns(fields: Mapping[str, str | None] | None) -> dict[str, str]:
    columns = {name: column for name, column in (fields or {}).items() if column}
    for name in columns:
        if name not in ALIASES:
            remedy = f"set some of {_list(ALIASES)}"
            raise UserError("no such example field", remedy=remedy, field=f"data.fields.{name}")
    return columns


def _look_up(record: Mapping[str, Any], path: str | None, name: str) -> list[tuple[str, Any]]:
    """The columns that hold a field, with their values, in the order in which they are joined; empty if there are none."""
    if path is None:
        there = [(alias, record[alias]) for alias in ALIASES[name] if alias in record]
        parts = [next((part for part in there if not _blank(part[1])), there[0])] if there else []
        if name == "question" and parts and parts[0][0] in SECOND_PARTS:
            second = [(other, record.get(other)) for other in SECOND_PARTS[parts[0][0]]]
            parts += [part for part in second if not _blank(part[1])][:1]
        return parts
    if path in record:
        return [(path, record[path])]
    values = [(column, _at(record, column)) for column in _parts_of(path, name)]
    return [(column, value) for column, value in values if value is not _ABSENT]


def _parts_of(path: str, name: str) -> list[str]:
    return [path] if name == "rubric" else [part.strip() for part in path.split("+")]


def _at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or `_ABSENT`."""
    if path in record:
        return record[path]
    value: Any = record
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step, _ABSENT)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step in map(str, range(len(value))):
            value = value[int(step)]
        else:
            value = _ABSENT
    return value


def _one_of_several(record: Mapping[str, Any], path: str) -> bool:
    """Whether a path takes one entry of a longer list, such as one turn of a conversation."""
    if path in record or "." not in path:
        return False
    steps = path.split(".")
    for i, step in enumerate(steps):
        above = _at(record, ".".join(steps[:i])) if i else record
        if step.isdecimal() and isinstance(above, Sequence) and not isinstance(above, str) and len(above) > 1:
            return True
    return False


def _blank(value: Any) -> bool:
    """Whether a value is empty: null, white space, an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _joined(parts: Sequence[tuple[str, Any]], place: Mapping[str, Any], name: str) -> str | None:
    """The texts of a field's columns, a blank line between them; None for null and blank.

    Numbers are accepted in every field except the first part of the question.
    """
    texts: list[str] = []
    for column, value in parts:
        here = {**place, "field": column}
        if isinstance(value, (int, float)) and (name != "question" or texts):
            value = str(value)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str):
            raise UserError(
                f"expected text, found {type(value).__name__}",
                remedy=_remedy_of_no_text(name, [other for other, _ in parts], column),
                value=value,
                **here,
            )
        check_encodes(value, here)
        texts.append(value.strip())
    return "\n\n".join(texts) or None


def _remedy_of_no_text(name: str, columns: Sequence[str], column: str) -> str:
    if column != columns[0]:
        return f"make it text, or leave it out with data.fields.{name}={columns[0]}"
    return f"name a text column with data.fields.{name}, a dot steps inside (prompt.0.content)"


def check_encodes(text: str, place: Mapping[str, Any]) -> None:
    """Raises UserError, which names the place, if a string cannot be written or tokenized as text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"half of a surrogate pair, or a byte that is not UTF-8, at character {error.start}"
        raise UserError(problem, remedy="repair it in the row", value=text, **place) from error


def _rubric(value: Any, place: Mapping[str, Any], min_criteria: int, max_criteria: int) -> Rubric | None:
    """A rubric from a list, or from JSON text of a list; None for null, blank and []."""
    if _blank(value):
        return None
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        example = f"{place['field']}.{keys[0] if keys else 'KEY'}"
        raise UserError(
            f"an object with the keys {_list(keys)}, where a list of criteria is expected",
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
