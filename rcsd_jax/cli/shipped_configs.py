"""Finds config files: by a path, or by the name of one that comes with the package ("tiny", "stage2:grpo")."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from pathlib import Path

from rcsd_jax.host.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped() -> dict[str, Path]:
    """Name -> file of the configs that come with the package, in its checkout or installed with it."""
    checkout = _PACKAGE.parent / "configs"
    folder = checkout if (checkout / "tiny.py").exists() else _PACKAGE / "shipped" / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def variants() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> (description, names of its variants) of the configs that come with the package."""
    found = {}
    for name, path in shipped().items():
        spec = importlib.util.spec_from_file_location(f"configs_{name}", locate(str(path)))
        assert spec is not None and spec.loader is not None, "it is a Python file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        found[name] = (about, tuple(getattr(module, "VARIANTS", ())))
    return found


def locate(given: str) -> str:
    """The path of a config file, with the text after a colon; the file may import others of its folder as `configs.NAME`.

    A path that exists is used unchanged. Otherwise `NAME`, `NAME.py` and `configs/NAME.py` mean the package's configs.

    Raises:
      UserError: there is no such file; the message suggests the nearest name.
    """
    path, colon, variant = given.partition(":")
    found = Path(path)
    if not found.is_file():
        own = shipped()
        name = Path(path).stem
        if os.path.dirname(path) not in ("", "configs") or name not in own:
            nearest = difflib.get_close_matches(name, own, n=1, cutoff=0.4)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            remedy = f"{hint}give a file, or one of {', '.join(own)}"
            raise UserError("no such config file", field="--config", value=path, remedy=remedy)
        found = own[name]
    if found.parent.name == "configs":
        root = str(found.resolve().parent.parent)
        if root not in sys.path:
            sys.path.append(root)
    return f"{found}{colon}{variant}"
