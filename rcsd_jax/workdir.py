"""A stage's folder: whose config it belongs to, that one process group writes it, and whole files or none."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rcsd_jax import config as configs
from rcsd_jax import processes
from rcsd_jax.errors import UserError


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Holds `workdir` for this run while the context lasts.

    Raises:
      UserError: it cannot be written, belongs to a run with another config, or is in use by another process.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / f".lock-{jax.process_index()}").open("w")
    except OSError as error:
        raise UserError(
            f"the workdir cannot be written ({error.strerror})", file=workdir, remedy="choose another with --workdir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "another run is using this workdir",
                file=workdir,
                remedy="wait for it, or choose another with --workdir",
            ) from error
        processes.from_main(lambda: _match_config(workdir / "config.json", config))
        yield


def _match_config(path: Path, config: ConfigDict) -> None:
    text = configs.to_json(config)
    if not path.exists():
        write_text(path, text)
        return
    ours, theirs = json.loads(text), read_json(path)
    changed = configs.differences(ours, theirs)
    if changed and all(key.startswith(configs.MAY_CHANGE) for key in changed):
        write_text(path, text)
    elif changed:
        raise UserError(
            f"the workdir belongs to a run with another config; they differ in {', '.join(changed[:5])}",
            file=path,
            remedy="choose another --workdir, or delete this one to start anew",
        )


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none: a kill never leaves half of it."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"not valid JSON ({error})", file=path, remedy="restore it, or choose another --workdir"
        ) from error
