"""Flags of the programs: read by absl; what cannot be read is told in one line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict, config_flags

from rcsd_jax import config as configs
from rcsd_jax import config_files
from rcsd_jax.errors import UserError


def without_torch() -> None:
    """Makes torch look as if it were not installed: transformers and tensorboardX would import it, and no program uses it.

    That is two seconds of every start. For processes that are a program of ours, before they import either.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def parser(program: str) -> Callable[[list[str]], list[str]]:
    """A `flags_parser` for `app.run` that raises `UserError`, naming the program's help."""

    def parse(argv: list[str]) -> list[str]:
        argv = _located(argv)
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            raise _unknown_key(argv, error) from error
        except (flags.Error, ValueError, TypeError, OSError, SyntaxError, ImportError) as error:
            lines = str(error).strip().splitlines()
            # Of a config's own error, what it says.
            message = lines[-1] if "Traceback" in str(error) else " ".join(lines)
            raise UserError(f"a flag cannot be read: {message}", remedy=f"see python -m {program} --help") from error

    return parse


def one_config(argv: list[str], config: ConfigDict | None, *, example: str) -> ConfigDict:
    """The config that was given; raises `UserError` without one, naming an example, or for arguments that are no flags."""
    if len(argv) > 1:
        raise UserError(
            "unknown argument", field="argv", value=argv[1], remedy="settings are given as --config.key=value"
        )
    if config is None:
        raise UserError("no config given", field="--config", remedy=f"pass --config={example}")
    return config


def _located(argv: list[str]) -> list[str]:
    """The arguments, with the path of the config file in the place of its name."""
    located = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument):
            located[i] = match[1] + config_files.locate(match[2])
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            located[i + 1] = config_files.locate(argv[i + 1])
    return located


def _unknown_key(argv: list[str], error: Exception) -> UserError:
    named = [m.group(1) for a in argv if (m := re.match(r"--?config\.([\w.\[\]]+)", a))]
    try:
        file = next(a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a))
        flags.FLAGS.unparse_flags()
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(file)
        known = configs.all_keys(config)
    except Exception:  # the config file itself is at fault; its own error is the message
        known = []
    bad = next((key for key in named if key not in known), None)
    if not known or bad is None:
        return UserError(f"the config cannot be made ({type(error).__name__}: {error})", remedy="see the config file")
    nearest = difflib.get_close_matches(bad, known, n=1, cutoff=0.4)
    hint = f"did you mean '{nearest[0]}'?" if nearest else "see the config file for its keys"
    return UserError("the config has no such key", field=f"config.{bad}", remedy=hint)
