"""A stage's folder: whose config it belongs to, that one job writes it, and what lies there already."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from rcsd_jax import config as configs
from rcsd_jax import processes
from rcsd_jax.errors import UserError, first_line
from rcsd_jax.files import AnyPath, is_remote, read_json, write_text


@contextlib.contextmanager
def claimed(workdir: AnyPath, config: ConfigDict) -> Iterator[None]:
    """Holds `workdir` for this run while the context lasts.

    A workdir behind a URL cannot be locked: that no other job uses it is then for the user to see to.

    Raises:
      UserError: it cannot be written or reached, belongs to a run with another config, or is in use by another process.
    """
    if is_remote(workdir):
        processes.from_main(lambda: _match_remote_config(workdir / "config.json", config))
        yield
        return
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


def from_main_if_written(path: AnyPath) -> Any:
    """What process 0 finds in a JSON file, or None where it is not there."""
    return processes.from_main(lambda: read_json(path) if path.exists() else None)


def _match_remote_config(path: AnyPath, config: ConfigDict) -> None:
    try:
        _match_config(path, config)
    except UserError:
        raise
    except Exception as error:  # of many types: a client that is not installed, credentials, no such bucket
        raise UserError(
            f"the workdir cannot be reached ({type(error).__name__}: {first_line(error, 160)})",
            file=path.parent,
            remedy="see to the bucket and the credentials; gs:// needs pip install 'rcsd_jax[gcs]'",
        ) from error


def _match_config(path: AnyPath, config: ConfigDict) -> None:
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
