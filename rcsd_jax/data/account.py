"""How a file was read: which columns gave its fields, and which rows were left out and why."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

_MOST_ALTERNATIVES = 3


@dataclasses.dataclass
class Account:
    """Counts of a file's rows.

    Attributes:
      file: the file or data set.
      rows: how many it has.
      columns: field -> the columns that gave it, as they are told, and in how many rows.
      left_out: reason -> the rows that were left out for it. A reason ends a sentence that begins with "rows".
    """

    file: str
    rows: int = 0
    columns: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def read(self, columns: Mapping[str, str]) -> None:
        """Adds a row that was read; `columns` is what gave each field."""
        for name, column in columns.items():
            self.columns.setdefault(name, collections.Counter())[column] += 1

    def leave_out(self, reason: str, row: int) -> None:
        """Adds a row that was left out."""
        self.left_out.setdefault(reason, []).append(row)

    def line(self) -> str:
        """One line for the start of a run."""
        read = ", ".join(f"{name} from {_alternatives(found)}" for name, found in self.columns.items())
        kept = self.rows - sum(map(len, self.left_out.values()))
        left = "".join(
            f"; left out: {len(rows)} of {self.rows} rows {reason}, from row {rows[0]} on"
            for reason, rows in self.left_out.items()
        )
        return " ".join(f"{self.file}: {read}; {kept} row{'s' * (kept != 1)}{left}".splitlines())


def ignored(account: Account) -> Any:
    """Tells no one."""


def _alternatives(found: collections.Counter[str]) -> str:
    shown = [column for column, _ in found.most_common(_MOST_ALTERNATIVES)]
    return " or ".join(shown) + (" or others" if len(found) > len(shown) else "")
