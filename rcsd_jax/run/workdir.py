"""A stage's folder: it belongs to one config, one job writes it, and it may hold results."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.files import AnyPath, is_remote, read_json
from rcsd_jax.run import starts


@contextlib.contextmanager
def claimed(workdir: AnyPath, config: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Holds `workdir` for this run while the context lasts.

    Yields the keys that changed since the last start and that results depend on; the caller must then call `starts.apply`.

    A workdir behind a URL cannot be locked; the user must make sure that no other job uses it.

    Raises:
      UserError: it cannot be written or reached, is in use by another process, or see `starts.begin`.
    """
    if is_remote(workdir):
        yield multihost.from_main(lambda: _reached(workdir, lambda: starts.begin(workdir, config)))
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
        yield multihost.from_main(lambda: starts.begin(workdir, config))


def from_main_if_written(path: AnyPath) -> Any:
    """The content of a JSON file, as process 0 reads it; None if the file is missing."""
    return multihost.from_main(lambda: read_json(path) if path.exists() else None)


def check_later_stages(stages: Sequence[tuple[str, Mapping[str, Any]]], workdir: AnyPath) -> None:
    """See `starts.check_later_stages`."""
    check = lambda: starts.check_later_stages(stages, workdir)
    multihost.from_main(lambda: _reached(workdir, check) if is_remote(workdir) else check())


def _reached(workdir: AnyPath, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except UserError:
        raise
    except Exception as error:  # of many types: a client that is not installed, credentials, no such bucket
        raise UserError(
            f"the workdir cannot be reached ({type(error).__name__}: {first_line(error, 160)})",
            file=workdir,
            remedy="check the bucket and the credentials; gs:// needs pip install 'rcsd_jax[gcs]'",
        ) from error
