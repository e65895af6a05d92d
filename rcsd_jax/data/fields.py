"""Reads the fields of one record, whatever its columns are called and whatever shape their values have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rcsd_jax.data import columns, conversations, texts
from rcsd_jax.data.columns import ALIASES
from rcsd_jax.data.examples import Turn
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics import shapes
from rcsd_jax.rubrics.schema import Rubric, RubricError

Parts = Sequence[tuple[str, Any]]
"""Columns that hold a field, with their values, in the order in which they are joined."""


class Rules(NamedTuple):
    """What is the same for all records; see the arguments of `records.to_examples`."""

    file: Any
    paths: Mapping[str, str]
    require: Sequence[str]
    min_criteria: int
    max_criteria: int
    skips: bool


class Unfit(UserError):
    """A row that cannot be used although nothing in it is malformed; `reason` ends a sentence that begins with "rows"."""

    def __init__(self, reason: str, problem: str, **place: Any):
        self.reason = reason
        super().__init__(problem, **place)


class Record:
    """A record while its fields are read.

    Attributes:
      used: the columns that became a field or a part of one.
      found: (field, column) of those that exist, blank or not.
      told: field -> the column that gave it, in words.
    """

    def __init__(self, record: Mapping[str, Any], number: int, rules: Rules):
        self._record, self._number, self._rules = record, number, rules
        self.used: set[str] = set()
        self.found: set[tuple[str, str]] = set()
        self.told: dict[str, str] = {}
        self._turns_in = ""  # the column of the question's conversation

    def fields(self) -> dict[str, Any]:
        """The arguments of an `Example` that come from columns.

        Raises:
          Unfit: the record lacks what it needs. UserError: a value is malformed.
        """
        identity = self._answers("id")
        asked = self._question()
        reference = self._answers("reference") or self._reply(asked)
        rubric = self._rubric()
        answer = self._answers("answer")
        solution = self._answers("solution") if "solution" in {*self._rules.require, *self._rules.paths} else ()
        return {
            "id": identity[0] if identity else None,
            "question": asked.question,
            "reference": self._first("reference", reference),
            "rubric": rubric,
            "answer": self._first("answer", answer),
            "history": asked.history,
            "accepted": next((found for found in (answer, reference) if len(found) > 1), ()),
            "solution": self._first("solution", solution),
        }

    def _question(self) -> conversations.Conversation:
        """The question, with the turns before it and, if its column holds one, the answer after it."""
        parts = self._parts("question")
        place = self._place("question", parts)
        value: Any = conversations.decoded(parts[0][1]) if parts else None
        if conversations.is_conversation(value):
            if len(parts) > 1:
                remedy = f"name only data.fields.question={parts[0][0]}"
                raise UserError("a conversation cannot be joined with other columns", remedy=remedy, **place)
            asked, shape = self._conversation(value, place), conversations.keys_of(value)
            self._turns_in = parts[0][0]
        else:
            text = texts.joined(parts, place, "question")
            if text is None:
                raise self._missing("question", parts)
            asked, shape = conversations.Conversation((*self._system(), *self._history()), text, None), ""
        for content in (asked.question, *(turn.content for turn in asked.history)):
            texts.check_encodes(content, place)
        before = [column for column in (*columns.SYSTEM, columns.HISTORY) if column in self.used]
        self._tell("question", [*((column, None) for column in before), *parts], shape)
        return asked

    def _conversation(self, value: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> conversations.Conversation:
        try:
            turns = conversations.turns_of(value)
            if all(turn.role != "system" for turn in turns):
                turns = [*self._system(), *turns]
            return conversations.split(turns)
        except conversations.Unusable as error:
            raise Unfit(f"with {error}", f"it has {error}", remedy="repair it, or remove the row", **place) from error

    def _system(self) -> list[Turn]:
        """The system turn in a column of its own."""
        for column in columns.SYSTEM if "question" not in self._rules.paths else ():
            value = self._record.get(column)
            if isinstance(value, str) and value.strip():
                self.used.add(column)
                return [Turn("system", value.strip())]
        return []

    def _history(self) -> list[Turn]:
        """Earlier questions and answers in a column of their own."""
        turns = conversations.pairs(self._record.get(columns.HISTORY))
        if turns is None or "question" in self._rules.paths:
            return []
        self.used.add(columns.HISTORY)
        return turns

    def _answers(self, name: str) -> tuple[str, ...]:
        """The texts of a field that may list several."""
        parts = self._parts(name)
        place = self._place(name, parts)
        found = texts.answers(parts[0][1]) if len(parts) == 1 and name != "id" else None
        if found is None:
            text = texts.joined(parts, place, name)
            found = () if text is None else (text,)
        for text in found:
            texts.check_encodes(text, place)
        if found and name != "id":
            self._tell(name, parts, "list" if len(found) > 1 else "")
        return found

    def _reply(self, asked: conversations.Conversation) -> tuple[str, ...]:
        """The answer at the end of the question's conversation, or of another column's, as the reference."""
        if "reference" in self._rules.paths:
            return ()
        reply, column = asked.reply, self._turns_in
        for other in columns.REPLIES:
            if reply is None:
                reply, column = conversations.reply_to(asked.question, self._record.get(other)), other
        if reply is None:
            return ()
        texts.check_encodes(reply, self._place("reference", [(column, reply)]))
        self.used.add(column)
        self.told["reference"] = f"{column} (last turn)"
        return (reply,)

    def _rubric(self) -> Rubric | None:
        parts, rules = self._parts("rubric"), self._rules
        place = self._place("rubric", parts)
        value = parts[0][1] if parts else None
        required = "rubric" in rules.require
        try:
            rubric = shapes.rubric_from(value, min_criteria=rules.min_criteria, max_criteria=rules.max_criteria)
        except RubricError as error:
            unfit = _unfit(error, rules, place, value)
            perhaps = parts[0][0] in columns.ALSO["rubric"] or (isinstance(unfit, Unfit) and rules.skips)
            if perhaps and not required:
                return None
            raise unfit from error
        if rubric is None and required:
            raise self._missing("rubric", parts)
        if rubric is not None:
            self._tell("rubric", parts, shapes.described(value))
        return rubric

    def _parts(self, name: str) -> Parts:
        """The columns that hold a field; empty if there are none. They are used from now on."""
        path = self._rules.paths.get(name)
        parts = self._by_alias(name) if path is None else self._by_path(path, name)
        for column, _ in parts:
            self.used.add(column)
            self.found.add((name, column))
        return parts

    def _by_path(self, path: str, name: str) -> Parts:
        if path in self._record:
            return [(path, self._record[path])]
        values = [(column, columns.at(self._record, column)) for column in columns.parts_of(path, name)]
        return [(column, value) for column, value in values if value is not columns.ABSENT]

    def _by_alias(self, name: str) -> Parts:
        record = self._record
        there = [
            (alias, value) for alias in ALIASES[name] if (value := columns.at(record, alias)) is not columns.ABSENT
        ]
        for part in there:
            if not columns.blank(part[1]):
                second = (
                    [(other, record.get(other)) for other in columns.SECOND_PARTS.get(part[0], ())]
                    if name == "question"
                    else []
                )
                return [part, *[other for other in second if not columns.blank(other[1])][:1]]
        for alias in columns.ALSO[name]:
            value = columns.at(record, alias)
            if value is not columns.ABSENT and not columns.blank(value) and _can_be(name, value):
                return [(alias, value)]
        return there[:1]

    def _place(self, name: str, parts: Parts) -> dict[str, Any]:
        column = parts[0][0] if parts else self._rules.paths.get(name) or name
        return {"file": self._rules.file, "row": self._number, "field": column}

    def _tell(self, name: str, parts: Parts, shape: str) -> None:
        joined = " + ".join(column for column, value in parts if value is None or not columns.blank(value))
        self.told[name] = f"{joined} ({shape})" if shape else joined

    def _first(self, name: str, found: Sequence[str]) -> str | None:
        """The first text of a field, or None.

        Raises:
          Unfit: there is none, and the field is required.
        """
        if not found and name in self._rules.require:
            raise self._missing(name, self._parts(name))
        return found[0] if found else None

    def _missing(self, name: str, parts: Parts) -> Unfit:
        wanted, place, reason = self._rules.paths.get(name), self._place(name, parts), f"without a {name}"
        if parts:
            column = parts[0][0]
            remedy = "fill it in or remove the row"
            return Unfit(reason, f"the {name} is empty", remedy=remedy, value=self._record.get(column), **place)
        problem = f"no column {wanted!r}" if wanted else f"no {name}: none of the columns {', '.join(ALIASES[name])}"
        remedy = f"set data.fields.{name} to one of this row's columns {', '.join(map(str, self._record)) or '(none)'}"
        return Unfit(reason, problem, remedy=remedy, **place)


def _can_be(name: str, value: Any) -> bool:
    """Whether a value of a column of `columns.ALSO` is the field."""
    if name == "question":
        return conversations.is_conversation(conversations.decoded(value))
    return shapes.looks_like_one(value) if name == "rubric" else bool(texts.answers(value))


def _unfit(error: RubricError, rules: Rules, place: Mapping[str, Any], value: Any) -> UserError:
    """The error for a rubric that cannot be used."""
    least, most = rules.min_criteria, rules.max_criteria
    reason = {
        "too_few": f"with fewer than {least} criteria",
        "too_many": f"with more than {most} criteria",
        "no_positive_weight": "whose rubric has only pitfalls",
    }.get(error.code)
    remedy = f"give {least} to {most} {{title, description, weight}} objects or strings"
    if error.code == "several":
        keys = [str(key) for key in value] if isinstance(value, Mapping) else []
        remedy = f'say which one, e.g. data.fields.rubric="{place["field"]}.{keys[0] if keys else "KEY"}"'
        return UserError(f"{error.detail}, where a list of criteria is expected", remedy=remedy, **place)
    if error.code == "bad_weight":
        remedy = "give the criterion a finite weight other than 0, or none"
    if reason is None:
        return UserError(f"not a rubric ({error})", remedy=remedy, value=value, **place)
    if error.code in ("too_few", "too_many"):
        remedy = f"{remedy}, or set rubric.{'min' if error.code == 'too_few' else 'max'}_criteria"
    return Unfit(reason, f"not a rubric ({error})", remedy=remedy, value=value, **place)
