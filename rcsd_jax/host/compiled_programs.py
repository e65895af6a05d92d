"""Compiled programs outlast their process: a run that starts again on the same machine does not compile them again.

JAX keeps them (https://docs.jax.dev/en/latest/persistent_compilation_cache.html); this module says where, and removes what a
kill left half-written, which JAX would find unreadable at every start.
"""

from __future__ import annotations

import importlib
import os
import time
import zlib
from pathlib import Path

from rcsd_jax.host.errors import first_line
from rcsd_jax.host.files import AnyPath, is_remote

OFF = "off"
MAX_BYTES = 8 * 2**30
"""What a local folder may hold when a run begins; the programs that were not used for longest go first."""


def default_folder(workdir: AnyPath) -> AnyPath:
    """A folder of the user's cache; for a workdir behind a URL, a folder beside it, which the next machine reaches too."""
    if is_remote(workdir):
        return workdir.parent / "compiled_programs"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rcsd_jax" / "compiled_programs"


def keep(setting: str, workdir: AnyPath) -> str:
    """Tells JAX where to keep compiled programs; returns one line for the user.

    Args:
      setting: of the flag: "" for `$JAX_COMPILATION_CACHE_DIR` or `default_folder`, a folder or a URL, or `OFF`.
      workdir: of the run.
    """
    import jax

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
        # Small programs too: together they are half of a start. To a bucket each would be a round trip.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return f"compiled programs are kept in {folder}"


def _chosen_for_jax() -> str | None:
    """The folder of `$JAX_COMPILATION_CACHE_DIR`, or what a notebook set."""
    import jax

    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def folder_of_plans(setting: str) -> Path | None:
    """Where the planner keeps the compiler's answers: a folder as in `keep`, or None. JAX itself is told to keep nothing."""
    import jax

    chosen = setting or _chosen_for_jax() or str(default_folder(Path()))
    jax.config.update("jax_enable_compilation_cache", False)
    return None if setting == OFF or is_remote(chosen) else Path(chosen).absolute()


def _tidy(folder: Path) -> None:
    """Removes programs that were not written to their end, and old ones where all take more than `MAX_BYTES`.

    Only what is newer than the last tidying is read. (JAX's own limit of size scans the folder at every program it writes.)
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
    """Whether a file that JAX compressed, by zlib or zstandard, can be read to its end."""
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
