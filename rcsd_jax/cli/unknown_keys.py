"""Which setting was meant by a key that a config does not have."""

from __future__ import annotations

import difflib
import re

from absl import flags
from ml_collections import config_flags

from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys


def unknown_key(argv: list[str], error: Exception) -> UserError:
    """The error for a flag with an unknown key; it suggests the nearest key of the config."""
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
    nearest = nearest_keys(bad, known, stages)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "see the config file for its keys"
    return UserError("the config has no such key", field=f"config.{bad}", remedy=hint)


def nearest_keys(bad: str, known: list[str], stages: dict[str, list[str]]) -> list[str]:
    """The key most like an unknown one; if the flag names no stage, the key of every stage that has it."""

    def closest(keys: list[str]) -> tuple[float, str]:
        found = difflib.get_close_matches(bad, keys, n=1, cutoff=0.4)
        return (difflib.SequenceMatcher(None, found[0], bad).ratio(), found[0]) if found else (0.0, "")

    likeness, nearest = closest(known)
    of_stages = {name: closest(keys) for name, keys in stages.items()}
    best = max((found for found, _ in of_stages.values()), default=0.0)
    if best > likeness:
        return [f"{name}.{key}" for name, (found, key) in of_stages.items() if found == best]
    return [nearest] if nearest else []
