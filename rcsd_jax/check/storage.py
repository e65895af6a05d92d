"""A checkpoint written to the workdir and read back, and the room there for what the run keeps."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, Finding, seconds, size
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, is_remote
from rcsd_jax.methods.state import TrainState
from rcsd_jax.models import sharding
from rcsd_jax.run.checkpoints import Checkpoints

FOLDER = "check_checkpoint"
"""In the workdir, while the check runs."""
LARGEST = 2**30
"""Bytes of the state that are written: all of a smaller one."""


class Room(NamedTuple):
    """What a stage leaves in its folder: bytes of a checkpoint, how many it keeps, and bytes of its exports."""

    checkpoint: float
    keep: int
    exports: float

    @property
    def needed(self) -> float:
        """A new checkpoint is written before the oldest is removed."""
        return (self.keep + 1) * self.checkpoint + self.exports


def bytes_of(tree: Any) -> float:
    """Bytes of all arrays of a tree, over all devices; a copy on every device counts once."""
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def check_checkpoint(workdir: AnyPath, state: TrainState, mesh: jax.sharding.Mesh) -> Finding:
    """Writes the state, or so many of its arrays, reads it back and compares every bit. All processes call it."""
    name = "a checkpoint in the workdir"
    taken = _part(state)
    folder = workdir / FOLDER
    try:
        if multihost.is_main():
            workdir.mkdir(parents=True, exist_ok=True)
        multihost.from_main(lambda: _removed(folder))
        began = time.monotonic()
        with contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints:
            checkpoints.save(1, taken, {"data": "none"})
            checkpoints.wait()
            wrote = time.monotonic() - began
            restored = checkpoints.restore_newest(taken, rows=sharding.batch_sharding(mesh))
        read = time.monotonic() - began - wrote
        same = restored is not None and _same(taken, restored.state)
    except UserError as error:
        return Finding("storage", name, FAILED, str(error), "written and read")
    except OSError as error:
        return Finding("storage", name, FAILED, f"{workdir}: {error.strerror or error}", "written and read")
    finally:
        with contextlib.suppress(
            Exception
        ):  # what is left over is no reason to fail, if the folder cannot even be written
            multihost.from_main(lambda: _removed(folder))
    written, whole = bytes_of(taken), bytes_of(state)
    numbers = {"bytes": written, "bytes_of_a_checkpoint": whole, "write_seconds": wrote, "read_seconds": read}
    if not same:
        return Finding("storage", name, FAILED, "what was read is not what was written", "the same bits", numbers)
    measured = f"{size(written)} written in {seconds(wrote)}, read in {seconds(read)}"
    expected = "the same bits"
    if written < whole:
        expected += f"; the run's has {size(whole)}, about {seconds(wrote * whole / written)}"
    return Finding("storage", name, OK, measured, expected, numbers)


def _part(state: TrainState) -> Any:
    """The state, or of a larger one some of what is trained."""
    if bytes_of(state) <= LARGEST:
        return state
    taken: dict[str, jax.Array] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state.trained):
        if not taken or bytes_of(taken) + bytes_of(x) <= LARGEST:
            taken[jax.tree_util.keystr(path)] = x
    return taken


def _same(ours: Any, theirs: Any) -> bool:
    same = jax.jit(
        lambda a, b: jnp.stack([jnp.all(x == y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)])
    )
    return bool(same(ours, theirs).all())


def _removed(folder: AnyPath) -> None:
    if not folder.exists():
        return
    if is_remote(folder):
        folder.rmtree()  # type: ignore[union-attr]  # of epath
    else:
        shutil.rmtree(folder)


def check_room(workdir: AnyPath, rooms: Mapping[str, Room]) -> Finding:
    """Whether the disk of the workdir has room for all stages. Process 0 looks.

    Args:
      workdir: of the run.
      rooms: stage -> what it leaves there. What is there already is not needed again.
    """
    name = "room for checkpoints and exports"
    needed = sum(max(room.needed - _present(workdir / stage), 0.0) for stage, room in rooms.items())
    if is_remote(workdir):
        return Finding("storage", name, NOT_CHECKED, "a bucket's limit is not known", size(needed), {"needed": needed})
    free = float(multihost.from_main(lambda: shutil.disk_usage(_existing(workdir)).free))
    numbers = {"needed": needed, "free": free}
    return Finding(
        "storage", name, OK if free >= needed else FAILED, f"{size(free)} free", f"{size(needed)} needed", numbers
    )


def _present(folder: AnyPath) -> float:
    """Bytes of checkpoints and exports that an earlier start left in a stage's folder."""
    if is_remote(folder):
        return 0.0
    places: Sequence[AnyPath] = [folder / "checkpoints", folder / "export", folder / "adapter"]
    return float(sum(path.stat().st_size for place in places for path in place.rglob("*") if path.is_file()))


def _existing(path: AnyPath) -> AnyPath:
    """The nearest folder that is there."""
    while not path.exists():
        path = path.parent
    return path
