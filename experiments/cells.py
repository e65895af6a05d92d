"""Runs of arms and seeds, each in a folder of its own that tables share: what is there is not run again."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from absl import logging
from ml_collections import ConfigDict

from experiments import arms, bases
from rcsd_jax import world
from rcsd_jax.errors import Preempted, UserError
from rcsd_jax.files import as_path, read_json
from rcsd_jax.metrics import read_metrics
from rcsd_jax.preemption import StopRequest
from rcsd_jax.stage import run_stage

SPLITS = {"in_distribution": "eval", "out_of_distribution": "ood"}


class Cell(NamedTuple):
    """What one finished run says.

    Attributes:
      scores: role or step ("trained", "step_20") -> split -> mode -> scores.
      records: of the trained student, each with split, mode, id and scores.
      metrics: a row per step.
      seed: as its questions were drawn.
    """

    scores: dict[str, dict[str, Any]]
    records: list[dict[str, Any]]
    metrics: list[dict[str, float]]
    seed: int

    def score(self, role: str, split: str, mode: str, name: str = "accuracy") -> float:
        """Percent."""
        return 100 * self.scores[role][split][mode][name]

    def by_kind(self, mode: str) -> dict[str, float]:
        """Accuracy of the trained student in distribution, percent, by the kind of problem."""
        kinds: dict[str, list[float]] = {}
        for r in self.records:
            if r["split"] == "in_distribution" and r["mode"] == mode:
                kind = _kinds(self.seed, len(self.records))[r["id"]]
                kinds.setdefault(kind, []).append(100 * r["accuracy"])
        return {kind: float(np.mean(values)) for kind, values in kinds.items()}

    def evaluations(self) -> dict[int, str]:
        """Step after which the student was evaluated -> the name of its scores; the last step is "trained"."""
        names = (role for role in self.scores if role.startswith("step_"))
        between = {int(name.removeprefix("step_")): name for name in names}
        return dict(sorted(between.items())) | {len(self.metrics): "trained"}

    def completion_tokens(self) -> np.ndarray:
        """Tokens sampled until the end of each step, [steps]."""
        return np.cumsum([row["completion_tokens"] for row in self.metrics])

    def seconds(self) -> float:
        """Of all steps but the first, which compiles, scaled to all."""
        taken = [row["step_seconds"] for row in self.metrics]
        return float(np.median(taken[1:] or taken) * len(taken))


@functools.cache
def _kinds(seed: int, count: int) -> dict[str, str]:
    return {e.id: e.extra["kind"] for e in world.examples(SPLITS["in_distribution"], count, seed=seed)}


@contextlib.contextmanager
def running(workdir: Path) -> Iterator[tuple[rich.console.Console, StopRequest]]:
    """Where runs say what they do, and what tells them to stop.

    A signal ends the program between two batches, bad settings end it at once, with one line each.
    """
    logging.set_verbosity(logging.WARNING)
    # Arms share most programs: a run finds what another one compiled.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    try:
        with StopRequest() as stop:
            yield rich.console.Console(stderr=True, width=140), stop
    except Preempted as stopped:
        print(f"stopped: {stopped}; the same command continues", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(names: Sequence[str], seeds: int, workdir: Path, *, quick: bool) -> dict[str, list[Cell]]:
    """Runs what is missing of these arms, seed by seed, and returns arm -> its cells."""
    folder = workdir / ("quick_cells" if quick else "cells")
    found: dict[str, list[Cell]] = {name: [] for name in names}
    for name in names:
        bases.ensure(arms.ARMS[name], folder, quick=quick)
    with running(workdir) as (console, stop):
        for seed in range(seeds):
            for name in names:
                found[name].append(_cell(name, seed, folder, console, stop, quick))
    return found


def _cell(name: str, seed: int, folder: Path, console, stop: StopRequest, quick: bool) -> Cell:
    config = arms.stage2(name, seed, folder, quick=quick)
    place = folder / name / f"seed{seed}"
    stop.raise_if_set(f"before {name}, seed {seed}")
    writer = arms.ARMS[name].writer
    if config.rubric.source == "written" and not writer.startswith("base"):
        stage1 = arms.stage1(writer, seed, folder, quick=quick)
        run_cell(stage1, folder / writer / f"seed{seed}", console, stop, f"{writer}/seed{seed}")
    run_cell(config, place, console, stop, f"{name}/seed{seed}")
    scores = {path.stem.removeprefix("evaluation_"): read_json(path) for path in place.glob("evaluation_*.json")}
    lines = (place / "completions_trained.jsonl").read_text(encoding="utf-8").splitlines()
    return Cell(scores, [json.loads(line) for line in lines], read_metrics(as_path(place)), config.seed)


def run_cell(
    config: ConfigDict, place: Path, console: rich.console.Console, stop: StopRequest, name: str
) -> dict[str, Any]:
    """Runs or continues a stage in its place and returns its summary; one that is complete is read.

    Raises:
      UserError: what is there was run with another configuration.
    """
    complete = (place / "summary.json").exists()
    summary = run_stage(config, place, rich.console.Console(quiet=True) if complete else console, stop, name=name)
    if not complete:
        jax.clear_caches()  # programs of some hundred runs would pile up
    return summary
