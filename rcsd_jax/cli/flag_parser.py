"""Reads a program's flags with absl. One line names a flag that cannot be read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict

import rcsd_jax
from rcsd_jax.cli.help_text import help_text
from rcsd_jax.cli.shipped_configs import locate
from rcsd_jax.cli.unknown_keys import unknown_key
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError

_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?")
_ALL_FLAGS = ("--helpfull", "-helpfull")


def parser(program: str, usage: str) -> Callable[[list[str]], list[str]]:
    """A `flags_parser` for `app.run` that raises `UserError`, naming the program's help.

    `--help`, `--helpfull` and `--version` print on stdout and end the program with status 0.

    Args:
      program: its module.
      usage: its command line and purpose, the docstring of the module.
    """

    def parse(argv: list[str]) -> list[str]:
        _answer(argv, usage)
        argv = _located(argv)
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            raise unknown_key(argv, error) from error
        except (flags.Error, ValueError, TypeError, OSError, SyntaxError, ImportError) as error:
            lines = str(error).strip().splitlines()
            # For an error of the config itself, its message.
            message = lines[-1] if "Traceback" in str(error) else " ".join(lines)
            raise UserError(f"a flag cannot be read: {message}", remedy=f"see python -m {program} --help") from error

    return parse


def _answer(argv: list[str], usage: str) -> None:
    """Ends the program with an answer, if one of these flags asks for it."""
    given = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(flag in given for flag in _HELP):
        Console().print(help_text(usage), soft_wrap=True)
    elif any(flag in given for flag in _ALL_FLAGS):
        app.usage(writeto_stdout=True)
    elif "--version" in given or "-version" in given:
        Console().print(f"rcsd_jax {rcsd_jax.__version__}")
    else:
        return
    sys.exit(0)


def one_config(argv: list[str], config: ConfigDict | None, *, example: str) -> ConfigDict:
    """The config; raises `UserError` if there is none, with an example, or if an argument is not a flag."""
    if len(argv) > 1:
        raise UserError(
            "unknown argument", field="argv", value=argv[1], remedy="settings are given as --config.key=value"
        )
    if config is None:
        raise UserError("no config given", field="--config", remedy=f"pass --config={example}")
    return config


def _located(argv: list[str]) -> list[str]:
    """The arguments, with the config file's path in place of its name."""
    located = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument):
            located[i] = match[1] + locate(match[2])
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            located[i + 1] = locate(argv[i + 1])
    return located
