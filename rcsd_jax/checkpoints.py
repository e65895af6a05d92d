"""Checkpoints of everything a run needs to continue exactly: state, step and what the step depends on (orbax).

A checkpoint may be restored onto another mesh, or by another number of processes, than it was saved from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from rcsd_jax import processes
from rcsd_jax.errors import UserError

_FINGERPRINT = "fingerprint"


class Restored(NamedTuple):
    """The newest intact checkpoint, and what was found wrong with newer ones: (folder they were moved to, problem)."""

    step: int
    state: Any
    position: dict[str, Any]
    damaged: list[tuple[epath.Path, str]]


class Checkpoints:
    """The checkpoints of one stage under `directory`; asynchronous, the newest `keep` are kept.

    Orbax writes to a temporary folder and renames it, so a kill leaves either a whole checkpoint or none. With several
    processes all of them call every method; each writes and reads what its own devices hold.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int):
        self._directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return processes.from_main(self._manager.latest_step)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Starts to save `state` and `position` (JSON: data position, seed, rubric cache) as of `step`."""
        if step in self._manager.all_steps():
            return
        position = position | {_FINGERPRINT: int(_fingerprint(state))}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=args)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """State and position of `step`, placed as `like` is (arrays or ShapeDtypeStructs with shardings).

        Raises:
          Exception: whatever orbax and its readers raise on a damaged file. ValueError: the bytes were changed.
        """
        # Not by the manager, whose barriers would keep the others waiting for a process that cannot read its part.
        folder = self._directory / str(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.StandardRestore(abstract)
        position = ocp.JsonCheckpointHandler().restore(folder / "position", args=ocp.args.JsonRestore())
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=args)
        return state, position

    def restore_newest(self, like: Any) -> Restored | None:
        """The newest intact checkpoint, or None if there is none at all.

        Damaged ones that are newer are renamed to `damaged_<step>`, where no later run takes them for checkpoints.

        Raises:
          UserError: not one is intact (they stay where they are), or they are of another model or optimizer.
        """
        steps = processes.from_main(lambda: sorted(self._manager.all_steps(), reverse=True))
        problems: list[str] = []
        for step in steps:
            state, position, problem = self._try(step, like)
            if problem is None:
                return Restored(step, state, position, self._move_aside(steps[: len(problems)], problems))
            problems.append(problem)
        if not steps:
            return None
        raise UserError(
            f"not one of the {len(steps)} checkpoints can be read (of the newest: {problems[0]})",
            file=self._directory,
            remedy="restore the folder from a copy, or delete it, and the same command starts from the first step",
        )

    def _try(self, step: int, like: Any) -> tuple[Any, Any, str | None]:
        """State and position, or what is wrong; the same problem in every process."""
        state, position, problem, other = None, None, None, None
        try:
            other = _other_tree(self._directory / str(step) / "state", like)
            if other is None:
                state, position = self.restore(step, like)
        except Exception as error:  # whatever orbax and its readers raise on a damaged file
            problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        problem, other = next((p for p in processes.gather((problem, other)) if any(p)), (None, None))
        if other is not None:
            raise UserError(
                f"the checkpoint is of another model, LoRA or optimizer: {other}",
                file=self._directory / str(step),
                remedy="go back to the version that wrote it, or start anew with another --workdir",
            )
        if problem is None and int(_fingerprint(state)) != position[_FINGERPRINT]:
            problem = "its bytes are not those that were saved"
        return (None, None, problem) if problem else (state, position, None)

    def _move_aside(self, steps: list[int], problems: list[str]) -> list[tuple[epath.Path, str]]:
        moved = [(self._directory / f"damaged_{step}", problem) for step, problem in zip(steps, problems, strict=True)]

        def move():
            for step, (target, _) in zip(steps, moved, strict=True):
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)

        if moved:
            processes.from_main(move)
            self._manager.reload()
        return moved

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()


def _other_tree(folder: epath.Path, like: Any) -> str | None:
    """In what the names or shapes saved in `folder` differ from those of `like`; None if in nothing."""
    saved = ocp.StandardCheckpointHandler().metadata(folder)
    saved = saved.tree if hasattr(saved, "tree") else saved
    theirs = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(saved)}
    ours = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(like)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name, 'not there')}, the run has {ours.get(name, 'none')}"
    return None


def _name(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


@jax.jit
def _fingerprint(state: Any) -> jax.Array:
    """[] uint32 that changes with any bit of the state, and not with the mesh that it lies on.

    A sum modulo 2^32 of all words, each with an odd weight of its place: exact in whatever order devices add.
    """
    total = jnp.uint32(0)
    for number, x in enumerate(jax.tree.leaves(state)):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        weight = jnp.uint32(2 * number + 1)
        for axis in range(x.ndim):
            weight = weight * jnp.uint32(2654435761) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        total += (bits * weight).sum(dtype=jnp.uint32)
    return total
