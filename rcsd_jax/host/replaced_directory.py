"""Writes the directory of a model or adapter atomically: the complete directory appears, or none."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from etils import epath

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path, is_remote


@contextlib.contextmanager
def replaced_directory(directory: str | os.PathLike) -> Iterator[AnyPath]:
    """Yields an empty directory to fill, which takes the name `directory` when the block ends without an exception.

    A kill leaves the old directory or the new one, never a mixture. It may leave a hidden sibling, which the next call
    removes. Between the two renames of a replacement, the old directory is the sibling `.NAME.old`. Folders behind a URL
    cannot be renamed: files are written in place, and a kill leaves some of them.

    Raises:
      UserError: `directory` exists and is not a model or adapter that a save may replace.
    """
    directory = as_path(directory)
    if directory.exists() and not _replaceable(directory):
        raise UserError(
            "exists and holds something other than a model", remedy="give a new or empty directory", file=directory
        )
    if is_remote(directory):
        epath.Path(directory).rmtree(missing_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    partial = directory.with_name(f".{directory.name}.partial")
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _replaceable(directory: AnyPath) -> bool:
    if not directory.is_dir():
        return False
    names = {entry.name for entry in directory.iterdir()}
    return not names or bool(names & {"config.json", "adapter_config.json"})
