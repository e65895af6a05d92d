"""Checkpoints of everything that a run needs to continue exactly: state, step, the data position, and a rollout in use (orbax).

A checkpoint may be restored onto another mesh, or by another number of processes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.files import told_if_refused

_CHECK_SUM = "check_sum"
# Words in errors that are not the files' fault.
_NOT_DAMAGE = re.compile(
    r"permission.denied|unauthenticated|unavailable|deadline.exceeded|resource.exhausted|memory|no space left", re.I
)


class Restored(NamedTuple):
    """The newest intact checkpoint, and the problems of newer ones: (folder they were moved to, problem)."""

    step: int
    state: Any
    position: dict[str, Any]
    damaged: list[tuple[epath.Path, str]]
    rollout: dict[str, jax.Array] | None = None  # as it was given to `save`


def newest_step(directory: epath.PathLike) -> int:
    """The step of the newest checkpoint under `directory`, 0 if there is none; nothing is opened or changed."""
    folder = epath.Path(directory)
    if not folder.exists():
        return 0
    names = ocp.path.step.standard_name_format()  # as the manager lists them, without damaged ones
    return max((found.step for found in names.find_all(folder)), default=0)


class Checkpoints:
    """The checkpoints of one stage under `directory`; asynchronous, the newest `keep` are kept.

    Orbax writes to a temporary folder and renames it, so a kill leaves either a whole checkpoint or none. All processes
    call every method; each writes and reads the data of its own devices.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int):
        self._directory = epath.Path(directory)
        # This also removes a checkpoint that a kill left incomplete: its step may never be saved again.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_failed_writes_told_once())

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return multihost.from_main(self._manager.latest_step)

    def save(
        self, step: int, state: Any, position: dict[str, Any], rollout: dict[str, jax.Array] | None = None
    ) -> None:
        """Starts to save `state` and `position` (JSON: data position, seed, rubric cache) as of `step`.

        `rollout`: arrays [rows, ...], none of them empty, if the next step learns from completions that are there.

        Raises:
          WriteFailed: this checkpoint or the one before cannot be written. (With several processes, any exception of orbax
            is raised, because it may mean that another process is gone.)
        """
        if step in self._manager.all_steps():
            return
        position = position | {_CHECK_SUM: _check_sum((state, rollout), position)}
        items: dict[str, Any] = dict(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        if rollout is not None:
            items["rollout"] = ocp.args.StandardSave(rollout)
        with self._telling_of_the_storage():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """State and position of `step`, placed like `like` (arrays or ShapeDtypeStructs with shardings).

        Raises:
          Exception: any exception of orbax and its readers on a damaged file.
        """
        # Not through the manager: its barriers would make the others wait for a process that cannot read its part.
        folder = self._directory / str(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.StandardRestore(abstract)
        position = ocp.JsonCheckpointHandler().restore(folder / "position", args=ocp.args.JsonRestore())
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=args)
        return state, position

    def _restore_rollout(self, step: int, rows: jax.sharding.Sharding | None) -> dict[str, jax.Array] | None:
        """The rollout of `step`, with its rows placed like `rows`; None if it holds none."""
        folder = self._directory / str(step) / "rollout"
        if not folder.exists():
            return None
        saved = ocp.StandardCheckpointHandler().metadata(folder)
        saved = saved.tree if hasattr(saved, "tree") else saved
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in saved.items()}
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(abstract))

    def restore_newest(self, like: Any, *, rows: jax.sharding.Sharding | None = None) -> Restored | None:
        """The newest intact checkpoint, or None if there is none at all; a rollout's `rows` are placed like this.

        Newer damaged ones are renamed to `damaged_<step>`, so that no later run uses them.

        Raises:
          UserError: none is intact and fits this model and optimizer, or the storage does not answer; all stay in place.
        """
        steps = multihost.from_main(lambda: sorted(self._manager.all_steps(), reverse=True))
        problems: list[str] = []
        for step in steps:
            state, position, rollout, problem = self._try(step, like, rows)
            if problem is None:
                return Restored(step, state, position, self._move_aside(steps[: len(problems)], problems), rollout)
            if _NOT_DAMAGE.search(problem):
                raise UserError(
                    f"the checkpoint cannot be read now ({problem})",
                    file=self._directory / str(step),
                    remedy="check the storage and the memory; the same command continues from it",
                )
            problems.append(problem)
        if not steps:
            return None
        raise UserError(
            f"none of the {len(steps)} checkpoints can be used (the newest: {problems[0]})",
            file=self._directory,
            remedy="restore the folder from a copy, or delete it, and the same command starts from the first step",
        )

    def _try(self, step: int, like: Any, rows: jax.sharding.Sharding | None) -> tuple[Any, Any, Any, str | None]:
        """State, position and rollout, or the problem, which is the same in every process."""
        state: Any = None
        position: Any = None
        rollout: Any = None
        problem: str | None = None
        with _without_noise():
            try:
                problem = _difference(self._directory / str(step) / "state", like)
                if problem is None:
                    state, position = self.restore(step, like)
                    rollout = self._restore_rollout(step, rows)
            except Exception as error:  # whatever orbax and its readers raise on a damaged file
                problem = f"{type(error).__name__}: {first_line(error, 200)}"
        problem = next((p for p in multihost.gather(problem) if p), None)
        if problem is None and position.pop(_CHECK_SUM, None) != _check_sum((state, rollout), position):
            problem = "its bytes differ from those that were saved"
        return (None, None, None, problem) if problem else (state, position, rollout, None)

    def _move_aside(self, steps: list[int], problems: list[str]) -> list[tuple[epath.Path, str]]:
        def move() -> list[str]:
            names = []
            for step in steps:
                name = f"damaged_{step}"
                while (self._directory / name).exists():
                    name += "_again"
                (self._directory / str(step)).rename(self._directory / name)
                names.append(name)
            return names

        if not steps:
            return []
        names = multihost.from_main(move)
        self._manager.reload()
        return [(self._directory / name, problem) for name, problem in zip(names, problems, strict=True)]

    def wait(self) -> None:
        """Returns when everything is on disk; raises as `save` does."""
        with self._telling_of_the_storage():
            self._manager.wait_until_finished()

    def _telling_of_the_storage(self) -> contextlib.AbstractContextManager[None]:
        if multihost.count() > 1:
            return contextlib.nullcontext()
        return told_if_refused(self._directory, problem="a checkpoint cannot be written")

    def close(self) -> None:
        """Waits, and ends the background threads; raises as `save` does."""
        with self._quiet:
            try:
                self.wait()
            finally:
                self._manager.close()


def read_part(directory: epath.PathLike, like: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of the newest state; the rest is not read, and nothing in the folder changes.

    Args:
      directory: a run's checkpoints.
      like: field of the state -> arrays or ShapeDtypeStructs with shardings.

    Raises:
      UserError: there is no checkpoint, or it lacks these fields.
    """
    step = newest_step(directory)
    folder = epath.Path(directory) / str(step)
    what = f"no {' or '.join(like)} of this run's model can be read from its checkpoint"
    if not step:
        raise UserError(what, file=directory, remedy="restore the folder of checkpoints")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(like))
    args = ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
    )
    with _without_noise():
        try:
            return ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)
        except Exception as error:  # whatever orbax and its readers raise
            reason = f"{what} ({type(error).__name__}: {first_line(error, 200)})"
            raise UserError(reason, file=folder, remedy="restore the folder of checkpoints") from error


@contextlib.contextmanager
def _failed_writes_told_once() -> Iterator[None]:
    """If a write fails, orbax raises the error and closes the event loop that the other writing threads report to. This keeps
    their messages about the closed loop off the console.
    """
    on_error, on_unraisable = sys.excepthook, sys.unraisablehook

    def is_noise(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    sys.excepthook = lambda kind, error, trace: None if is_noise(error) else on_error(kind, error, trace)
    sys.unraisablehook = lambda told: None if is_noise(told.exc_value) else on_unraisable(told)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = on_error, on_unraisable


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Keeps the readers' leftover messages off the console when one of them fails; the failure itself is raised."""
    hooks, asyncio_log = (sys.excepthook, sys.unraisablehook), logging.getLogger("asyncio")
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda *_: None
    asyncio_log.disabled = True
    try:
        yield
        gc.collect()
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        asyncio_log.disabled = False


def _difference(folder: epath.Path, like: Any) -> str | None:
    """The first difference between the names and shapes saved in `folder` and those of `like`; None if they agree."""
    saved = ocp.StandardCheckpointHandler().metadata(folder)
    saved = saved.tree if hasattr(saved, "tree") else saved
    theirs = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(saved)}
    ours = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(like)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            found, wanted = theirs.get(name, "not there"), ours.get(name, "none")
            return f"of another model, LoRA or optimizer, where {name} is {found} and the run has {wanted}"
    return None


def _name(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _check_sum(arrays: Any, position: dict[str, Any]) -> int:
    return (int(_fingerprint(arrays)) + zlib.crc32(json.dumps(position, sort_keys=True).encode())) % 2**32


@jax.jit
def _fingerprint(arrays: Any) -> jax.Array:
    """[] uint32 that changes with any bit of the arrays, and does not depend on the mesh.

    A sum modulo 2^32 of all words, each with an odd weight for its place: exact in any order of addition.
    """
    total = jnp.uint32(0)
    for number, x in enumerate(jax.tree.leaves(arrays)):
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        weight = jnp.uint32(2 * number + 1)
        for axis in range(x.ndim):
            weight = weight * jnp.uint32(2654435761) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        total += (bits * weight).sum(dtype=jnp.uint32)
    return total
