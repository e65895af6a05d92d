"""The exceptions that end a run with one line: bad input, failed storage, and a request to stop."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Bad input or a bad setting, reported in one line.

    The message reads ``<file>:<row>: field '<field>' = <value>: <problem>; <remedy>`` with the parts that are known.
    `rcsd_jax.main` prints it without a traceback and exits with status 2.

    Args:
      problem: what is wrong, without a trailing period.
      remedy: what the user can do about it.
      file: the file that holds the bad value.
      row: its 1-based row (line) there.
      field: the field or config key.
      value: the offending value, shortened to 60 characters in the message.

    Examples:
      >>> print(UserError("is empty", remedy="fill it in", file="rows.jsonl", row=3, field="question", value=""))
      rows.jsonl:3: field 'question' = '': is empty; fill it in
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        file: Any = None,
        row: int | None = None,
        field: str | None = None,
        value: Any = None,
    ):
        self.problem, self.remedy = problem, remedy
        self.file, self.row, self.field, self.value = file, row, field, value
        place = "" if file is None else f"{file}:{row}: " if row is not None else f"{file}: "
        named = "" if field is None else f"field '{field}'" + ("" if value is None else f" = {_short(value)}") + ": "
        super().__init__(" ".join(f"{place}{named}{problem}; {remedy}".splitlines()))

    def under(self, prefix: str) -> UserError:
        """The same error with more in front of its field: a section's name before that of one of its keys.

        Examples:
          >>> print(UserError("must be positive", remedy="raise it", field="clip", value=-1).under("optimizer."))
          field 'optimizer.clip' = -1: must be positive; raise it
        """
        place: dict[str, Any] = dict(file=self.file, row=self.row, value=self.value, remedy=self.remedy)
        return UserError(self.problem, field=f"{prefix}{self.field}", **place)

    def with_remedy(self, more: str) -> UserError:
        """The same error with one more remedy."""
        place = dict(file=self.file, row=self.row, field=self.field, value=self.value)
        return UserError(self.problem, remedy=f"{self.remedy}, {more}", **place)


class WriteFailed(UserError):
    """The storage refused what threads were writing to it."""


class Preempted(Exception):
    """The process was asked to end by a signal; everything is saved and the same command continues.

    `rcsd_jax.main` exits with the shell's status for that signal, 128 + its number.
    """

    def __init__(self, state: str, *, signal: int):
        self.signal = signal
        super().__init__(state)


def first_line(error: BaseException, limit: int | None = None) -> str:
    """The first line of an error's message, or its type's name if the message is empty; at most `limit` characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
