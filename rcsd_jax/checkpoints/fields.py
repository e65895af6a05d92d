"""The fields of a config.json, each checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rcsd_jax.host.errors import UserError

_REQUIRED = object()


class Fields:
    """Fields by name. A field that is null counts as absent. Every error names the file and the field."""

    def __init__(self, raw: Mapping[str, Any], file: Any):
        self.raw, self.file = raw, file

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A field, or its default if it is absent."""
        value = self.raw.get(name)
        if value is None and default is _REQUIRED:
            raise UserError("field is missing", remedy="use a complete checkpoint", file=self.file, field=name)
        return default if value is None else value

    def size(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive whole number."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.broken("not a positive whole number", name, value)
        return value

    def size_or_none(self, name: str) -> int | None:
        """A positive whole number; None if the field is absent."""
        return None if self.raw.get(name) is None else self.size(name)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.broken("neither true nor false", name, value)
        return value

    def one_of(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """What a table has for the field's value, if it is among those supported."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in choices:
            problem, remedy = "is not supported", f"use a checkpoint with one of {', '.join(choices)}"
            raise UserError(problem, remedy=remedy, file=self.file, field=name, value=value)
        return choices[value]

    def positive(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive number."""
        return self.check_positive(self.get(name, default), name)

    def check_positive(self, value: Any, name: str) -> Any:
        """The value, if it is a positive number; `name` says in the error where it stood."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.broken("not a positive number", name, value)
        return value

    def broken(self, problem: str, name: str, value: Any) -> UserError:
        """The error that a field has a value which no config.json has."""
        return UserError(problem, remedy="repair config.json", file=self.file, field=name, value=value)
