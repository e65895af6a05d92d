"""Runs of arms and seeds, each in its own folder. Tables share them: a finished run is not repeated."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import arms, bases, workers
from experiments.workers import Task, Work
from rcsd_jax import world
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.host import compiled_programs
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import Preempted, UserError
from rcsd_jax.host.files import as_path, read_json
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.roles import contexts
from rcsd_jax.run.stage import run_stage

SPLITS = {"in_distribution": "eval", "out_of_distribution": "ood"}


class Cell(NamedTuple):
    """The results of one finished run.

    Attributes:
      scores: role or step ("trained", "step_20") -> split -> mode -> scores.
      records: of a role, the trained student if no other was asked for, each with split, mode, id and scores.
      metrics: a row per step.
      seed: the seed of its questions.
      tokens_before: sampled before the first step: by the Stage I that made the writer of its rubrics, and by that writer.
    """

    scores: dict[str, dict[str, Any]]
    records: list[dict[str, Any]]
    metrics: list[dict[str, float]]
    seed: int
    tokens_before: int = 0

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
        """Seconds of all steps: those after the first, which compiles, scaled to all."""
        taken = [row["step_seconds"] for row in self.metrics]
        return float(np.median(taken[1:] or taken) * len(taken))


@functools.cache
def _kinds(seed: int, count: int) -> dict[str, str]:
    return {e.id: e.extra["kind"] for e in world.examples(SPLITS["in_distribution"], count, seed=seed)}


@contextlib.contextmanager
def running(workdir: Path) -> Iterator[tuple[Console, StopRequest]]:
    """The console for the runs' messages, and the request to stop them.

    A signal ends the program between two batches, bad settings end it at once, with one line each.
    """
    prepare(workdir)
    try:
        with StopRequest() as stop:
            yield Console(stderr=True), stop
    except Preempted as stopped:
        to_stderr(f"stopped: {stopped}; the same command continues")
        sys.exit(128 + stopped.signal)
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)


def prepare(workdir: Path) -> None:
    """Sets up a process that runs cells: all processes share compiled programs."""
    logging.set_verbosity(logging.WARNING)
    compiled_programs.keep("", workdir)


def run(names: Sequence[str], flags: argparse.Namespace) -> dict[str, list[Cell]]:
    """Runs the missing cells of these arms, seed by seed, and returns arm -> its cells; `flags` are `tables.arguments`."""
    place, quick = folder(flags), flags.quick
    for name in names:
        bases.ensure(arms.ARMS[name], place, quick=quick)
    pairs = [(name, seed) for seed in range(flags.seeds) for name in names]
    solvers = [task(*pair, place, quick=quick) for pair in pairs]
    written = {
        (arms.ARMS[name].writer, seed)
        for (name, seed), one in zip(pairs, solvers, strict=True)
        if one.config.rubric.source == "written"
    }
    writers = [Task(arms.stage1(w, i, place, quick=quick), place / w / f"seed{i}", f"{w}/seed{i}")
               for w, i in sorted(written, key=lambda x: x[::-1]) if not w.startswith("base")]  # fmt: skip
    for tasks in (writers, solvers):  # a solver needs its writer
        run_tasks(tasks, flags)
    found: dict[str, list[Cell]] = {name: [] for name in names}
    for (name, _), solver in zip(pairs, solvers, strict=True):
        found[name].append(read(solver))
    return found


def folder(flags: argparse.Namespace) -> Path:
    """The folder of all runs; `flags` are `tables.arguments`."""
    return flags.workdir / ("quick_cells" if flags.quick else "cells")


def task(name: str, seed: int, place: Path, *, quick: bool) -> Task:
    """The run of an arm with a seed; `place` is the folder of all runs."""
    rubrics = place / "rubrics" / f"{arms.ARMS[name].writer}_seed{seed}.jsonl"
    config = arms.stage2(name, seed, place, quick=quick)
    return Task(config, place / name / f"seed{seed}", f"{name}/seed{seed}", rubrics)


def tasks_of(
    names: Sequence[str], flags: argparse.Namespace, config: Callable[[str, int], ConfigDict], prefix: str = ""
) -> dict[tuple[str, int], Task]:
    """(arm, seed) -> the run of an arm with a seed, seed by seed, for arms that are not of `arms.ARMS`.

    Args:
      names: arms.
      flags: those of `tables.arguments`.
      config: the configuration of an arm with a seed.
      prefix: of the arms' folders, so that those of several tables may share a workdir.
    """
    place = folder(flags)
    return {
        (name, seed): Task(config(name, seed), place / f"{prefix}{name}" / f"seed{seed}", f"{name}/seed{seed}")
        for seed in range(flags.seeds)
        for name in names
    }


def run_tasks(tasks: Sequence[Task], flags: argparse.Namespace, work: Work | None = None) -> None:
    """Runs or continues incomplete tasks, in `flags.workers` processes; `work` is done on each, by default `run_task`."""
    work = work or run_task
    with running(flags.workdir) as (console, stop):
        missing = []
        for task in tasks:
            if (task.place / "summary.json").exists():
                work(task, Console(quiet=True), stop)  # refuses a run of another configuration
            else:
                missing.append(task)
        if min(len(missing), flags.workers) > 1:
            start = functools.partial(prepare, flags.workdir)
            workers.run_all(missing, work, start, count=flags.workers, console=console, stop=stop)
            return
        for task in missing:
            stop.raise_if_set(f"before {task.name}")
            work(task, console, stop)


def run_task(task: Task, console: Console, stop: StopRequest) -> dict[str, Any]:
    """Runs or continues a stage and returns its summary; the summary of a complete stage is read.

    Raises:
      UserError: the folder holds a run of another configuration.
    """
    task.place.mkdir(parents=True, exist_ok=True)
    # Arms with the same writer and seed train under the same rubrics. The cache's keys say what it holds, so any arm may fill it.
    mine = task.place / "rubrics.jsonl"
    if task.rubrics is not None and task.rubrics.exists() and not mine.exists():
        _copy(task.rubrics, mine)
    summary = run_stage(task.config, task.place, console, stop, name=task.name)
    if task.rubrics is not None and mine.exists() and not task.rubrics.exists():
        _copy(mine, task.rubrics)
    jax.clear_caches()  # programs of some hundred runs would pile up
    return summary


def _copy(source: Path, target: Path) -> None:
    """Copies a file atomically, also if several processes copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, partial)
    partial.replace(target)


def read(task: Task, role: str = "trained") -> Cell:
    """The results of a finished run, with the records of a role."""
    place = task.place
    scores = {path.stem.removeprefix("evaluation_"): read_json(path) for path in place.glob("evaluation_*.json")}
    return Cell(
        scores, records(place, role), read_metrics(as_path(place)), task.config.seed, tokens_before(task.config, place)
    )


def records(place: Path, role: str) -> list[dict[str, Any]]:
    """The graded completions of a role of a finished run, or of an evaluation; `place` is its folder."""
    lines = (place / f"completions_{role}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tokens_before(config: ConfigDict, place: Path) -> int:
    """Tokens that were sampled before a run's first step, so that it has its rubrics; 0 if no model wrote them.

    Args:
      config: of the run.
      place: its folder, with the texts of its rubrics. Its writer's folder lies in that of its Stage I, if that trained it.
    """
    if config.rubric.source != "written":
        return 0
    stage1 = Path(config.rubric.writer).parent
    trained = read_metrics(as_path(stage1)) if (stage1 / "metrics.jsonl").exists() else []
    tokenizer = load_tokenizer(Path(config.model.path))
    lines = (place / "rubrics.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines if line]
    lengths = [len(tokens) + 1 for tokens in contexts.encode_texts(tokenizer, texts)]  # and the end
    written = sum(min(length, config.rubric.max_new_tokens) for length in lengths)
    return int(sum(row["completion_tokens"] for row in trained)) + written
