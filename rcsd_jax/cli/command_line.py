"""Flags of the programs: read by absl; what cannot be read is told in one line."""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

import rcsd_jax
from rcsd_jax.cli import config_files
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys, sizes

_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?")
_ALL_FLAGS = ("--helpfull", "-helpfull")
_WIDTH = 120


def without_torch() -> None:
    """Makes torch look as if it were not installed: transformers and tensorboardX would import it, and no program uses it.

    That is two seconds of every start. For processes that are a program of ours, before they import either.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def parser(program: str, usage: str) -> Callable[[list[str]], list[str]]:
    """A `flags_parser` for `app.run` that raises `UserError`, naming the program's help.

    `--help`, `--helpfull` and `--version` print what they say on stdout and end the program with status 0.

    Args:
      program: its module.
      usage: its command line and what it does, the docstring of the module.
    """

    def parse(argv: list[str]) -> list[str]:
        _answer(argv, usage)
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


def help_text(usage: str) -> str:
    """What `--help` prints: usage, flags, config files and their variants, sizes, and where the settings are."""

    def paragraph(text: str, indent: int) -> str:
        return textwrap.fill(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)

    of_program = {f.name: f for m, of in flags.FLAGS.flags_by_module_dict().items() if _is_ours(m) for f in of}
    parts = [usage.strip().replace("`", ""), "", "Flags:"]
    for name, flag in of_program.items():
        default = "" if flag.default in (None, False) else f" Default: {flag.default}."
        parts += [f"  --{'[no]' if flag.boolean else ''}{name}", paragraph(f"{flag.help}{default}", 6)]
    parts += [
        "  --help, --helpfull, --version",
        paragraph("This text; the flags of all libraries too; the version.", 6),
    ]
    parts += ["", "Config files, --config=NAME or FILE, and their variants, --config=NAME:VARIANT:"]
    for name, (about, variants) in config_files.variants().items():
        parts += [f"  {name}", paragraph(about, 6)]
        if variants:
            parts.append(paragraph(f"Variants: {', '.join(variants)}", 6))
    slices = sorted({s for table in (sizes.LORA, sizes.FULL) for of_size in table.values() for s in of_size})
    of_sizes = (
        f"Sizes, to be joined to a variant of stage1 or stage2 by commas, as in --config=stage2:qwen3_8b,full,v5p_2x2x2: "
        f"{', '.join(sizes.MODELS)}; full (for LoRA otherwise); {', '.join(slices)}."
    )
    settings = (
        "Every setting is a flag, such as --config.optimizer.learning_rate=1e-5, and of a config of several stages "
        "--config.stage2.optimizer.learning_rate=1e-5. docs/configuration.md and rcsd_jax/settings/keys.py list and explain them."
    )
    return "\n".join([*parts, "", paragraph(of_sizes, 0), "", paragraph(settings, 0)])


def _is_ours(module: str) -> bool:
    """Whether flags of a module are a program's own; what runs as a program has its file for a name."""
    return module.startswith("rcsd_jax.") or module == sys.argv[0]


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
    stages: dict[str, list[str]] = {}
    try:
        file = next(a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a))
        flags.FLAGS.unparse_flags()
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(file)
        known = keys.all_keys(config)
        stages = {name: keys.all_keys(stage) for name, stage in keys.stages_of(config) if name}
    except Exception:  # the config file itself is at fault; its own error is the message
        known = []
    bad = next((key for key in named if key not in known), None)
    if not known or bad is None:
        return UserError(f"the config cannot be made ({type(error).__name__}: {error})", remedy="see the config file")
    nearest = _nearest(bad, known, stages)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "see the config file for its keys"
    return UserError("the config has no such key", field=f"config.{bad}", remedy=hint)


def _nearest(bad: str, known: list[str], stages: dict[str, list[str]]) -> list[str]:
    """The key most like an unknown one; where that is a stage's, which was not named, that of every stage that has it."""

    def closest(keys: list[str]) -> tuple[float, str]:
        found = difflib.get_close_matches(bad, keys, n=1, cutoff=0.4)
        return (difflib.SequenceMatcher(None, found[0], bad).ratio(), found[0]) if found else (0.0, "")

    likeness, nearest = closest(known)
    of_stages = {name: closest(keys) for name, keys in stages.items()}
    best = max((found for found, _ in of_stages.values()), default=0.0)
    if best > likeness:
        return [f"{name}.{key}" for name, (found, key) in of_stages.items() if found == best]
    return [nearest] if nearest else []
