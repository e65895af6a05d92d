"""Unpacks a config into the settings of its stages. Only this file reads a ConfigDict."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.host import checks
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings.across import check_across
from rcsd_jax.settings.keys import stages_of
from rcsd_jax.settings.stage import Settings


def unpack(config: ConfigDict, *, name: str = "", trains: bool = True) -> Settings:
    """The settings of one stage's config.

    Args:
      config: with every key of `keys.stage`.
      name: of the stage, for messages.
      trains: whether it trains; otherwise it needs no data.

    Raises:
      UserError: a value that no stage can run with; it names the key.
    """
    try:
        settings = settings_of(config)
        check_across(settings, stage=name, trains=trains)
    except UserError as error:
        raise error.under(f"{name}." if name else "") from None
    return settings


def check(config: ConfigDict, *, trains: bool = True) -> None:
    """`unpack` of all stages, for its errors."""
    for name, stage in stages_of(config):
        unpack(stage, name=name, trains=trains)


def choices() -> dict[str, tuple[str, ...]]:
    """Key -> its choices, for every key with named choices, in the order of the sections."""
    return dict(_choices(Settings, ""))


def settings_of(config: ConfigDict) -> Settings:
    """As `unpack`, but each subject is only checked by itself. A report reads a run with it that could not start now.

    Raises:
      UserError: a value that its subject cannot have; it names the key.
    """
    values = {}
    for name, kind in _fields(Settings):
        try:
            values[name] = _of_section(kind, config[name]) if dataclasses.is_dataclass(kind) else _plain(config[name])
        except UserError as error:
            raise error.under(f"{name}.") from None
        except ValueError as error:  # the numerics know no keys
            raise UserError(str(error), field=name, remedy="set another value") from error
    return Settings(**values)


def _of_section(kind: Any, section: ConfigDict) -> Any:
    """A dataclass from the keys of a section. A nested dataclass takes its fields from the same section."""
    values = {}
    for name, of_field in _fields(kind):
        if dataclasses.is_dataclass(of_field):
            values[name] = _of_section(of_field, section)
        elif name in section:  # some fields have defaults that no key changes
            values[name] = _plain(section[name])
    return kind(**values)


def _choices(kind: Any, prefix: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    declared = {field.name: field for field in dataclasses.fields(kind)}
    for name, of_field in _fields(kind):
        if known := checks.choices_of(declared[name]):
            found.append((f"{prefix}{name}", known))
        elif dataclasses.is_dataclass(of_field):
            found += _choices(of_field, f"{name}." if kind is Settings else prefix)
    return found


def _fields(kind: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind)]


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value
