"""Checks of single settings. Each raises one line that names the setting, its value and a remedy.

They read the fields of a dataclass by name, so its `__post_init__` is a list of conditions. None means not set.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from rcsd_jax.host.errors import UserError


def need(ok: bool, settings: Any, field: str, problem: str, remedy: str) -> None:
    """Raises UserError about a field unless `ok`."""
    if not ok:
        raise UserError(problem, field=field, value=getattr(settings, field), remedy=remedy)


def one_of(choices: Iterable[str] | Callable[[], Iterable[str]], default: Any = dataclasses.MISSING) -> Any:
    """A field of a settings dataclass that holds one of `choices`: the names in a table, or what a function returns."""
    return dataclasses.field(default=default, metadata={"choices": choices})


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The choices of a field that `one_of` declares; empty for other fields."""
    choices = field.metadata.get("choices", ())
    return tuple(choices() if callable(choices) else choices)


def choices(settings: Any) -> None:
    """Every field that `one_of` declares holds one of its choices; otherwise the error names the nearest.

    Examples:
      >>> @dataclasses.dataclass
      ... class Paint:
      ...     color: str = one_of(("red", "blue"))
      >>> choices(Paint("rde"))
      Traceback (most recent call last):
      rcsd_jax.host.errors.UserError: field 'color' = 'rde': no such choice; did you mean 'red'? use one of ('red', 'blue')
    """
    for field in dataclasses.fields(settings):
        if known := choices_of(field):
            value = getattr(settings, field.name)
            nearest = difflib.get_close_matches(str(value), known, n=1)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            need(value in known, settings, field.name, "no such choice", f"{hint}use one of {known}")


def at_least_one(settings: Any, *fields: str) -> None:
    """The fields are 1 or more."""
    for field in fields:
        value = getattr(settings, field)
        need(value is None or value >= 1, settings, field, "must be at least 1", "set a positive number")


def at_least_zero(settings: Any, *fields: str) -> None:
    """The fields are 0 or more."""
    for field in fields:
        need(getattr(settings, field) >= 0, settings, field, "must not be negative", "set 0 or a positive number")


def positive(settings: Any, *fields: str) -> None:
    """The fields are above 0, or not set."""
    for field in fields:
        value = getattr(settings, field)
        need(value is None or value > 0, settings, field, "must be positive", "set a positive number, or leave it out")


def finite(settings: Any, *fields: str) -> None:
    """The fields are neither infinite nor NaN."""
    for field in fields:
        value = getattr(settings, field)
        ok = value is None or math.isfinite(value)
        need(ok, settings, field, "is not a finite number", "set a finite number")


def share(settings: Any, *fields: str) -> None:
    """The fields are between 0 and 1."""
    for field in fields:
        value = getattr(settings, field)
        ok = value is None or 0.0 <= value <= 1.0
        need(ok, settings, field, "must lie in [0, 1]", "set a number from 0 to 1")


def top_p(settings: Any) -> None:
    """The field `top_p` is above 0 and at most 1."""
    need(0.0 < settings.top_p <= 1.0, settings, "top_p", "must lie in (0, 1]", "1.0 keeps every token")
