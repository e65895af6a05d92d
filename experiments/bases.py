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
        place = directory(needed, folder)
        finished = place.parent / f"{needed}.finished"
        if finished.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        make_base.train(
            place, steps=12 if quick else 1600, rows=32, length=160, learning_rate=2e-3, seed=0, **SIZES[needed]
        )
        finished.touch()
