"""Base models of other sizes than the package's own. They are made if missing, and kept with the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.world import make_base
from rcsd_jax import world

SIZES = {"small": dict(width=72, layers=3), "large": dict(width=256, layers=6)}
"""0.2 and 5 million parameters; the package's own, "medium", has one million."""


def directory(size: str, folder: Path) -> Path:
    """The folder of the base of a size, whether it exists or not."""
    return world.base_directory() if size == "medium" else folder / "bases" / size


def ensure(arm: Any, folder: Path, *, quick: bool) -> None:
    """Makes the bases that an arm needs: for its model, its teacher, and an untrained writer of another size. Resumes after a stop."""
    kind, _, size = arm.writer.partition("_")
    for needed in {arm.size, arm.teacher or "medium", size if kind == "base" and size else "medium"} - {"medium"}:
        make(directory(needed, folder), "world", quick=quick, **SIZES[needed])


def make(place: Path, world: str, *, quick: bool, **sizes: int) -> None:
    """Makes the base of one of `make_base.WORLDS` if it is missing. Resumes after a stop.

    Args:
      place: its folder.
      world: the name of the world.
      quick: whether a few steps are enough.
      **sizes: width and layers; without them, those of `make_base.train`.
    """
    finished = place.parent / f"{place.name}.finished"
    if finished.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    of_world = make_base.WORLDS[world]
    make_base.train(place, of_world._replace(steps=12) if quick else of_world, **sizes)
    finished.touch()
