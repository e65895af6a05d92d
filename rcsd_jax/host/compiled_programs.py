"""Keeps compiled programs between processes, so that a restarted run on the same machine does not compile them again.

JAX keeps them (https://docs.jax.dev/en/latest/persistent_compilation_cache.html). This module chooses the folder and removes files
that a kill left half-written, which JAX would fail to read at every start.
"""

from __future__ import annotations

import importlib
import os
import time
import zlib
from pathlib import Path

from rcsd_jax.host.errors import first_line
from rcsd_jax.host.files import AnyPath, is_remote, user_cache

OFF = "off"
MAX_BYTES = 8 * 2**30
"""The most that a local folder may hold when a run begins; the least recently used programs are removed first."""


def default_folder(workdir: AnyPath) -> AnyPath:
    """A folder in the user's cache; for a workdir behind a URL, a folder next to it, which the next machine can reach too."""
    if is_remote(workdir):
        return workdir.parent / "compiled_programs"
    return user_cache() / "compiled_programs"


def keep(setting: str, workdir: AnyPath) -> str:
    """Tells JAX where to keep compiled programs; returns one line for the user.

    Args:
      setting: the flag's value: "" for `$JAX_COMPILATION_CACHE_DIR` or `default_folder`, a folder or a URL, or `OFF`.
      workdir: the run's workdir.
    """
    import jax  # late: takes seconds

    if setting == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return "compiled programs are not kept"
    chosen = _chosen_for_jax()
    folder = setting or chosen or str(default_folder(workdir))
    if not is_remote(folder):
        folder = os.path.abspath(folder)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _tidy(Path(folder))
        except OSError as error:
            jax.config.update("jax_enable_compilation_cache", False)
            return f"compiled programs are not kept: {first_line(error)}"
    jax.config.update("jax_compilation_cache_dir", folder)
    if not is_remote(folder) and folder != chosen:
        # Also small programs, which together take half of a start. In a bucket each would cost a round trip.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return f"compiled programs are kept in {folder}"


def _chosen_for_jax() -> str | None:
    """The folder of `$JAX_COMPILATION_CACHE_DIR`, or the one that a notebook set."""
    import jax  # late: takes seconds

    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def folder_of_plans(setting: str) -> Path | None:
    """The folder where the planner keeps the compiler's answers, as in `keep`, or None. JAX itself then keeps nothing."""
    import jax  # late: takes seconds

    chosen = setting or _chosen_for_jax() or str(default_folder(Path()))
    jax.config.update("jax_enable_compilation_cache", False)
    return None if setting == OFF or is_remote(chosen) else Path(chosen).absolute()


def _tidy(folder: Path) -> None:
    """Removes incomplete programs, and old ones if all together take more than `MAX_BYTES`.

    Only files newer than the last tidying are read. (JAX's own limit of size scans the folder at every program it writes.)
    """
    checked = folder / ".checked"
    since, now = checked.stat().st_mtime if checked.exists() else 0.0, time.time()
    kept = []
    for path in (*folder.glob("*-cache"), *folder.glob("tpu_*.json.gz")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process has removed it
            continue
        if path.suffix != ".gz" and stat.st_mtime >= since - 1 and not _is_whole(path):
            path.unlink(missing_ok=True)
        else:
            kept.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size
    checked.touch()
    os.utime(checked, (now, now))


def _is_whole(path: Path) -> bool:
    """Whether a file that JAX compressed, by zlib or zstandard, can be read completely."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x78"):
            zlib.decompress(data)
        elif data.startswith(b"\x28\xb5\x2f\xfd"):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(data)
        return bool(data)
    except (ImportError, FileNotFoundError):  # JAX cannot read it here, or another process has removed it
        return True
    except Exception:  # zlib.error, zstandard.ZstdError
        return False
