"""Files of a run, in a local folder or under a URL such as gs://bucket/run (by etils' epath, which needs `gcsfs` for gs://).

A store behind a URL writes whole objects: it cannot append, and it cannot rename a folder atomically. Appending rewrites the
object.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from etils import epath

from rcsd_jax.host.errors import UserError, WriteFailed, first_line

AnyPath: TypeAlias = Path | epath.Path
_EVERY_S = 30.0


def is_remote(path: epath.PathLike) -> bool:
    """Whether this is a URL."""
    return "://" in os.fspath(path)


def as_path(path: epath.PathLike) -> AnyPath:
    """The absolute local path, or the URL as a path of the same methods."""
    return epath.Path(path) if is_remote(path) else Path(path).absolute()


def user_cache() -> Path:
    """The folder of what this package keeps for a user and can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcsd_jax"


def modified(path: AnyPath) -> float:
    """When a file was last written, in seconds of the store's clock."""
    return path.stat().st_mtime if isinstance(path, Path) else path.stat().mtime


def write_text(path: AnyPath, text: str) -> None:
    """Writes a file atomically: a kill never leaves half of it."""
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: AnyPath, value: Any) -> None:
    """Writes `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: AnyPath) -> Any:
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


def append(path: AnyPath, data: bytes) -> None:
    """Appends and syncs; behind a URL, the whole object is written again with `data` at its end."""
    if is_remote(path):
        path.write_bytes((path.read_bytes() if path.exists() else b"") + data)
        return
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def told_if_refused(path: epath.PathLike, *, problem: str = "cannot be written") -> Iterator[None]:
    """Turns any exception of a store's client or of orbax into a `WriteFailed` that names `path`."""
    try:
        yield
    except Exception as error:
        raise WriteFailed(
            f"{problem} ({type(error).__name__}: {first_line(error, 200)})",
            file=path,
            remedy="check the storage; the same command continues from the last checkpoint",
        ) from error


class Log:
    """A text file that grows by lines.

    Locally the operating system has a line when `write` returns. Behind a URL the whole object is written again, at most
    every 30 seconds and by `sync` and `close`, so a kill loses at most the lines of that time. All three raise `WriteFailed`
    if the store refuses.
    """

    def __init__(self, path: AnyPath):
        self._path, self._text = path, ""
        self._file: IO[str] | None = None
        if is_remote(path):
            self._text, self._published = path.read_text() if path.exists() else "", time.monotonic()
        else:
            self._file = path.open("a", encoding="utf-8")

    def write(self, line: str) -> None:
        """Appends the line."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._text += line + "\n"
        if time.monotonic() - self._published > _EVERY_S:
            self._publish()

    def sync(self) -> None:
        """Returns when every line is on disk, or in the store."""
        if self._file is None:
            self._publish()
            return
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        if self._file is not None:
            self._file.close()

    def _publish(self) -> None:
        with told_if_refused(self._path):
            self._path.write_text(self._text)
        self._published = time.monotonic()


@functools.cache
def fetched(path: str) -> str:
    """A local copy of the folder at a URL, made once per process and removed at its end.

    Anything else, such as a local path or a hub id, is returned unchanged.
    """
    if not is_remote(path):
        return path
    local = Path(tempfile.mkdtemp(prefix="rcsd_jax_"))
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    for file in epath.Path(path).iterdir():
        with file.open("rb") as source, (local / file.name).open("wb") as target:
            shutil.copyfileobj(source, target, 2**24)
    return str(local)
