"""Turns records with any column names into Examples. Errors name file, row, field, value and remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rcsd_jax.data import columns
from rcsd_jax.data.account import Account, ignored
from rcsd_jax.data.columns import ALIASES
from rcsd_jax.data.examples import Example
from rcsd_jax.data.fields import Record, Rules, Unfit
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA

INCOMPLETE = ("skip", "fail")
"""What may become of a row that lacks something it needs: it is left out and counted, or ends the run."""


def to_examples(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    file: Any,
    origin: str,
    fields: Mapping[str, str | None] | None = None,
    require: Sequence[str] = ("question",),
    min_criteria: int = MIN_CRITERIA,
    max_criteria: int = MAX_CRITERIA,
    incomplete: str = "fail",
    say: Callable[[str], Any] = warnings.warn,
    tell: Callable[[Account], Any] = ignored,
) -> list[Example]:
    """Converts records to Examples.

    Args:
      records: (row number, record) pairs; the row number, from 1, is what errors name.
      file: the file or data set that errors name.
      origin: where the id of a record without one begins.
      fields: explicit columns by Example field, e.g. {"rubric": "rubrics.GT"}; a dot steps into an object (or, with a
        number, a list), and a plus joins columns of text. A field that is missing here, None or "" is looked up by
        `columns.ALIASES`; the question also takes its second part and the turns before it.
      require: the Example fields that every record must have; the question is always required.
      min_criteria: a rubric with fewer criteria is not used.
      max_criteria: a rubric with more criteria is not used.
      incomplete: what becomes of a record that lacks a required field, whose rubric has too few or too many criteria, or whose
        conversation has no next answer: "fail" raises, "skip" leaves it out.
      say: called with one line if columns look like a field, or like a part of the question, and are not read.
      tell: called with the account of what was read and left out.

    Returns:
      One Example per record that is not left out, in order. `extra` keeps every column that did not become a field as a whole.

    Raises:
      UserError: an unknown field in `fields` or `require`, no records, a column in `fields` that no record has, a value of the
        wrong type, a bad rubric, an id that occurs twice; a record that is incomplete, if this is an error or if all are.

    Examples:
      >>> rows = [{"problem": "6 * 7?", "meta": {"solution": 42}}]
      >>> (one,) = to_examples(enumerate(rows, 1), file="rows.jsonl", origin="rows", fields={"answer": "meta.solution"})
      >>> one.id, one.question, one.answer
      ('rows:1', '6 * 7?', '42')
      >>> to_examples([(7, {"text": "6 * 7?"})], file="rows.jsonl", origin="rows", fields={"question": "problem"})
      Traceback (most recent call last):
      rcsd_jax.data.fields.Unfit: rows.jsonl:7: field 'problem': no column 'problem'; set data.fields.question to one of this row's columns text
    """
    paths = _paths(fields)
    for name in require:
        if name not in ALIASES:
            raise UserError("no such example field", remedy=f"require some of {', '.join(ALIASES)}", field=name)
    rules = Rules(file, paths, (*require, "question"), min_criteria, max_criteria, incomplete == "skip")
    rows_of_ids: dict[str, int] = {}
    names: dict[str, None] = {}
    unread: dict[str, _Unread] = {}
    several: list[int] = []
    examples: list[Example] = []
    found: set[tuple[str, str]] = set()
    account, unfit = Account(str(file)), None
    for row, record in records:
        account.rows += 1
        if not record.keys() <= names.keys():
            names.update(dict.fromkeys(record))
        reading = Record(record, row, rules)
        try:
            values = reading.fields()
        except Unfit as error:
            if not rules.skips:
                raise
            unfit = unfit or error
            account.leave_out(error.reason, row)
            continue
        finally:
            found |= reading.found
        for column in record.keys() & columns.FIELD_OF.keys() - reading.used:
            if columns.FIELD_OF[column] not in paths and not columns.blank(record[column]):
                unread.setdefault(column, _Unread(record, reading.used, [])).rows.append(row)
        if "question" in paths and columns.one_of_several(record, paths["question"]):
            several.append(row)
        values["id"] = values["id"] or f"{origin}:{row}"
        first = rows_of_ids.setdefault(values["id"], row)
        if first != row:
            raise UserError(
                f"row {first} has the same id",
                remedy="make ids unique, or drop the column to have rows numbered",
                file=file,
                row=row,
                field=paths.get("id", "id"),
                value=values["id"],
            )
        extra = {key: value for key, value in record.items() if key not in reading.used}
        examples.append(Example(**values, origin=f"{file}:{row}", extra=extra))
        account.read(reading.told)
    if unfit is not None and not examples:
        raise unfit
    if not examples:
        raise UserError("it has no examples", remedy="give a source with at least one example", file=file)
    for name, path in paths.items():
        for column in columns.parts_of(path, name):
            if not {(name, column), (name, path)} & found:
                raise UserError(
                    f"no record has the column {column!r}",
                    remedy=f"name one of {', '.join(map(str, names))}",
                    file=file,
                    field=f"data.fields.{name}",
                )
    said = [_said(column, unread[column], len(examples)) for column in sorted(unread)]
    if several:
        where = f"{len(several)} of {len(examples)} rows, from row {several[0]} on"
        said.append(f"the second part of '{paths['question']}' in its list ({where})")
    if said:
        say(" ".join(f"{file}: not read: {'; '.join(said)}".splitlines()))
    tell(account)
    return examples


class _Unread(NamedTuple):
    """A column that looks like a field and is not read: the column read instead in the first such record, and the rows."""

    record: Mapping[str, Any]
    used: set[str]
    rows: list[int]


def _said(column: str, unread: _Unread, count: int) -> str:
    name = columns.FIELD_OF[column]
    aliases = (*ALIASES[name], *columns.ALSO[name])
    read = next((alias for alias in aliases if alias in unread.used), "another column")
    where = f"'{column}' ({len(unread.rows)} of {count} rows, from row {unread.rows[0]} on)"
    if name != "question":
        return f"{where} looks like the {name}, which is '{read}'; data.fields.{name}={column} reads it instead"
    if isinstance(unread.record[column], str):
        return f"{where} looks like a part of the question, which is '{read}'; data.fields.question={read}+{column} reads both"
    return f"{where} looks like a part of the question, which is '{read}'; move what the model should see there"


def _paths(fields: Mapping[str, str | None] | None) -> dict[str, str]:
    paths = {name: path for name, path in (fields or {}).items() if path}
    for name in paths:
        if name not in ALIASES:
            remedy = f"set some of {', '.join(ALIASES)}"
            raise UserError("no such example field", remedy=remedy, field=f"data.fields.{name}")
    return paths
