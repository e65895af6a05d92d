"""Records each start of a run, its command and the versions of its libraries, as a line of `starts.jsonl` in its workdir."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import rcsd_jax
from rcsd_jax.host.files import AnyPath, append, told_if_refused

_FILE = "starts.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


def record(workdir: AnyPath) -> None:
    """Adds this start to the workdir's record. Only one process of the job calls it.

    Raises:
      WriteFailed: the storage refuses it.
    """
    now = datetime.datetime.now().isoformat(" ", "minutes")
    start = {"at": now, "command": command(sys.orig_argv), "versions": versions()}
    with told_if_refused(workdir / _FILE):
        append(workdir / _FILE, json.dumps(start).encode() + b"\n")


def starts(workdir: AnyPath) -> list[dict[str, Any]]:
    """All starts of the workdir, oldest first; empty for a run that is older than this record."""
    path = workdir / _FILE
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that a kill left unfinished
            continue
    return found


def command(argv: Sequence[str]) -> str:
    """The command line of a process, for a shell; its interpreter is written as "python", wherever it is.

    Examples:
      >>> command(["/venv/bin/python3", "-m", "rcsd_jax.main", "--config=tiny", "--workdir=runs/a b"])
      "python -m rcsd_jax.main --config=tiny '--workdir=runs/a b'"
    """
    return shlex.join(["python", *argv[1:]])


def versions() -> dict[str, str]:
    """Name -> version of this package and of its numerical libraries, if they are installed."""
    found = {"rcsd_jax": rcsd_jax.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
