"""Text fields of rows: a text, a number, parts that are joined, or a list of accepted answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcsd_jax.data import columns
from rcsd_jax.host.errors import UserError

# Keys of an object that holds answers: SQuAD's "text", TriviaQA's "value" and "aliases", "target" of rewards by exact match.
_ANSWER_KEYS = ("text", "value", "aliases", "target", "answer", "answers")


def joined(parts: Sequence[tuple[str, Any]], place: Mapping[str, Any], name: str) -> str | None:
    """The texts of a field's columns, a blank line between them; None for null and blank.

    Numbers are accepted in every field except the first part of the question.

    Raises:
      UserError: a value is neither; or its text cannot be written.
    """
    texts: list[str] = []
    for column, value in parts:
        here = {**place, "field": column}
        if columns.blank(value):
            continue
        if isinstance(value, (int, float)) and (name != "question" or texts):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(
                f"expected text, found {type(value).__name__}",
                remedy=_remedy(name, [other for other, _ in parts], column),
                value=value,
                **here,
            )
        check_encodes(value, here)
        texts.append(value.strip())
    return "\n\n".join(texts) or None


def answers(value: Any) -> tuple[str, ...] | None:
    """The accepted answers that a value lists, in order, each once: a text, a number, a list of these, or an object that holds
    them under its usual keys; () for blank. None if it is none of these.

    Examples:
      >>> answers("4 V"), answers([4, "4.0"]), answers({"value": "Bern", "aliases": ["Berne", "Bern"]}), answers([{"x": 1}])
      (('4 V',), ('4', '4.0'), ('Bern', 'Berne'), None)
    """
    if columns.blank(value):
        return ()
    if isinstance(value, (str, int, float)):
        return (str(value).strip(),)
    if isinstance(value, Mapping):
        value = [value[key] for key in _ANSWER_KEYS if key in value] or None
    if not isinstance(value, (list, tuple)):
        return None
    found = [answers(one) for one in value]
    if any(one is None for one in found):
        return None
    return tuple(dict.fromkeys(text for one in found if one for text in one))


def check_encodes(text: str, place: Mapping[str, Any]) -> None:
    """Raises UserError, which names the place, if a string cannot be written or tokenized as text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"half of a surrogate pair, or a byte that is not UTF-8, at character {error.start}"
        raise UserError(problem, remedy="repair it in the row", value=text, **place) from error


def _remedy(name: str, columns: Sequence[str], column: str) -> str:
    if column != columns[0]:
        return f"make it text, or leave it out with data.fields.{name}={columns[0]}"
    return f"name a text column with data.fields.{name}, a dot steps inside (problem.text)"
