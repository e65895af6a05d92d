"""Diversity: many sampled solutions to each of some held-out questions, by the trained students of finished runs.

A method can raise the share of right answers and leave fewer ways to be right (arXiv 2607.05184). So pass@1 stands next to pass@16, and
to the number of different texts among the right ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import cells, statistics, tables
from experiments.workers import Task
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import as_path, read_json
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.run.evaluate_model import evaluate_model

QUESTIONS, SAMPLES = 64, 16
PASS = f"pass@{SAMPLES}"
DIFFERENT = f"different right texts of {SAMPLES}"


def rows(names: Sequence[str], flags: argparse.Namespace) -> tables.Rows:
    """Samples what is missing, and returns arm -> pass@1, pass@16 and the number of different right texts; `flags` are `tables.arguments`."""
    folder = cells.folder(flags)
    tasks = {
        name: [
            task(cells.task(name, seed, folder, quick=flags.quick), quick=flags.quick) for seed in range(flags.seeds)
        ]
        for name in names
    }
    cells.run_tasks([one for of_arm in tasks.values() for one in of_arm], flags, sample)
    return {tables.label(name): _row([_read(one) for one in of_arm]) for name, of_arm in tasks.items()}


def task(run: Task, *, quick: bool) -> Task:
    """The evaluation of a finished run's student, in its folder."""
    config = run.config.copy_and_resolve_references()
    config.model.path = str(run.place / "export")
    split = "in_distribution"
    config.eval.splits = {split: cells.SPLITS[split]}
    config.eval.update(roles=("base",), greedy=(False,), every=0, every_splits=())
    config.eval.update(count=4 if quick else QUESTIONS, samples=SAMPLES)
    return Task(config, run.place / "diversity", f"{run.name}/diversity")


def sample(task: Task, console: Console, stop: StopRequest) -> dict[str, Any]:
    """Does what is missing of an evaluation, and returns its scores."""
    task.place.mkdir(parents=True, exist_ok=True)
    return evaluate_model(task.config, as_path(task.place), Console(quiet=True), stop)


def different_right_texts(records: Sequence[dict[str, Any]]) -> float:
    """How many different texts a question's right solutions have, as a mean over the questions of graded completions."""
    of_question: dict[str, set[str]] = {record["id"]: set() for record in records}
    for record in records:
        if record["accuracy"] == 1:
            of_question[record["id"]].add(" ".join(record["text"].split()))
    return float(np.mean([len(texts) for texts in of_question.values()]))


def _read(task: Task) -> dict[str, float]:
    scores = read_json(task.place / "evaluation_base.json")["in_distribution"]["sampled"]
    different = different_right_texts(cells.records(task.place, "base"))
    return {"pass@1": 100 * scores["accuracy"], PASS: 100 * scores[PASS], DIFFERENT: different}


def _row(found: Sequence[dict[str, float]]) -> dict[str, statistics.Estimate]:
    return {name: statistics.estimate([one[name] for one in found]) for name in found[0]}
