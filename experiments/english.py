"""RCSD and the methods it is compared with on a real language model: SmolLM2-135M on worded problems in English (`configs/smollm2.py`).

    python -m experiments.english --model=smollm2 [--seeds=3] [--workdir=runs/english] [--results=DIR] [--only=ARM,ARM] [--quick]

Every arm has the same number of steps and of completions a step. All seeds train on the same rows and are asked the same questions, so
intervals over seeds leave out what other questions would change. A cell is one arm with one seed; steps and questions are chosen
for 13 to 23 minutes of two idle cores. A stopped table goes on where it was, and `--only` runs some arms. The results of a finished
cell are one small file, by default under `WORKDIR/cells/results`. A cell that has one is not run, so a table can be measured on several
machines and drawn on one that has only these files. Those of the table in `experiments/README.md` lie under
`experiments/results/english`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import smollm2
from experiments import cells, results, statistics, svg, tables
from experiments.cells import Cell
from experiments.statistics import Estimate
from experiments.workers import Task
from rcsd_jax.host.console import Console
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.world import __main__ as rows_of_the_world

ARMS = {
    "rcsd_true": ("RCSD, true rubrics", "ground_truth"),
    "opsd": ("OPSD", "reference"),
    "grpo": ("GRPO", "grpo"),
    "sft": ("SFT", "sft"),
    "rcsd_sampled": ("sampled token", "sampled_token"),
}
"""Arm -> its name in the table, and the variant of `configs/smollm2.py`."""

SELF = "rcsd_true"
"""The arm with which all others are compared."""

QUESTIONS, SAMPLES = 48, 4
EVERY = 8
"""Steps between two evaluations in distribution, for the learning curves."""
LAST = 6  # steps whose mean entropy is shown as that of the end

SCORES = {
    "accuracy": "accuracy",
    f"pass@{SAMPLES}": f"pass@{SAMPLES}",
    "criterion score": "rubric_score",
    "leak": "leak",
}
"""Column -> the score of an evaluation, in percent."""


def main() -> None:
    """Runs the missing cells, then prints, draws and writes the tables."""
    flags = tables.arguments(__doc__, _add_flags)
    names = flags.only or list(ARMS)
    folder = cells.folder(flags)
    kept, data = flags.results or folder / "results", folder / "rows"
    tasks = cells.tasks_of(names, flags, functools.partial(config, model=flags.model, data=data, quick=flags.quick))
    with cells.running(flags.workdir):
        for task in tasks.values():
            if file_of(task, kept).exists():
                read(task, kept)  # refuses those of other settings before anything runs
    missing = [task for task in tasks.values() if not file_of(task, kept).exists()]
    if missing and not (data / "ood.jsonl").exists():
        # Other questions than those on which the form of the prompts was chosen.
        rows_of_the_world.main([str(data), "--count=2048", "--seed=1"])
    cells.run_tasks(missing, flags, functools.partial(run_and_keep, kept))
    finished = {pair: read(task, kept) for pair, task in tasks.items()}
    runs = {name: [finished[name, seed] for seed in range(flags.seeds)] for name in names}
    console = Console(width=170)
    found = {split.replace("_", " "): of_split(split, runs) for split in cells.SPLITS}
    for split, rows in found.items():
        title = f"{split}, sampled: percent, nats, tokens; mean ± 95% interval of {flags.seeds} seeds, same questions"
        tables.show_compared(console, title, rows, ARMS[SELF][0])
    curves = over_steps(runs)
    at_steps = {name: {f"step {step}": one for step, one in curve.items()} for name, curve in curves.items()}
    tables.show(console, "accuracy in distribution", at_steps)
    budget = {ARMS[name][0]: tables.budget_of(runs[name]) for name in names}
    tables.say_budget(console, budget)
    place = tables.write(console, flags, "english", tables.joined(found), budget=budget)
    accuracies = tables.of_column(found, "accuracy")
    title = "SmolLM2-135M: accuracy of sampled answers"
    tables.bars(place / "english.png", title, accuracies, list(found), strong=ARMS[SELF][0])
    svg.save(figure(curves), place / "english_curves.svg")


def file_of(task: Task, kept: Path) -> Path:
    """The file of a cell's results in the folder of all."""
    return kept / f"{task.name.replace('/', '_')}.json"


def run_and_keep(kept: Path, task: Task, console: Console, stop: StopRequest) -> None:
    """Runs or continues a cell, and writes its results."""
    cells.run_task(task, console, stop)
    results.write(file_of(task, kept), cells.read(task), task.config)


def read(task: Task, kept: Path) -> Cell:
    """The results of a finished cell.

    Raises:
      UserError: they are of another configuration.
    """
    return results.read(file_of(task, kept), task.config)


def of_split(split: str, runs: Mapping[str, Sequence[Cell]]) -> tables.Rows:
    """The rows of a split: base and teacher, which one run has evaluated, and the students with their differences to `SELF`."""
    found = {
        f"({role})": [values(run, role, split) for run in runs[SELF] if role in run.scores]
        for role in ("base", "teacher")
        if SELF in runs
    }
    found |= {ARMS[name][0]: [of_student(run, name, split) for run in of_arm] for name, of_arm in runs.items()}
    compared = [ARMS[name][0] for name in runs if name != SELF and SELF in runs]
    return tables.of_seeds(found, ARMS[SELF][0], compared)


def values(run: Cell, role: str, split: str) -> dict[str, float]:
    """The columns of a role of one finished run."""
    found = {column: run.score(role, split, "sampled", score) for column, score in SCORES.items()}
    return found | {"length": run.scores[role][split]["sampled"]["length"]}


def of_student(run: Cell, name: str, split: str) -> dict[str, float]:
    """The columns of an arm's trained student, with its entropy while it trained."""
    found = values(run, "trained", split)
    if name != "sft":  # its entropy is at temperature 1, and of the references' tokens
        found["entropy"] = float(np.mean([step.get("student_entropy", np.nan) for step in run.metrics[-LAST:]]))
    return found


def over_steps(runs: Mapping[str, Sequence[Cell]]) -> dict[str, dict[int, Estimate]]:
    """Arm -> step -> the accuracy in distribution after it; before the first it is the base's."""
    score = lambda of_arm, role: statistics.estimate(
        [run.score(role, "in_distribution", "sampled") for run in of_arm if role in run.scores]
    )
    curves = {}
    for name, of_arm in runs.items():
        evaluated = of_arm[0].evaluations()
        start = {0: score(runs[SELF], "base")} if SELF in runs else {}
        curves[ARMS[name][0]] = start | {step: score(of_arm, role) for step, role in evaluated.items()}
    return curves


def figure(curves: Mapping[str, Mapping[int, Estimate]]) -> str:
    """Accuracy over steps, as SVG: method -> step -> estimate."""
    lines = {name: (list(curve), list(curve.values())) for name, curve in curves.items()}
    title = "SmolLM2-135M: accuracy of sampled answers, in distribution"
    return svg.curves(title, lines, "step", "accuracy, percent", strong=ARMS[SELF][0], bounds=(0, 100))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("smollm2"), help="the directory of SmolLM2-135M-Instruct")
    parser.add_argument("--results", type=Path, help="the folder of finished cells' results, by default in the workdir")
    tables.add_only(parser, ARMS)
    parser.set_defaults(workdir=Path("runs/english"), seeds=3, workers=1)  # one run fills the cores


def config(name: str, seed: int, model: Path, data: Path, *, quick: bool) -> ConfigDict:
    """The configuration of an arm's run with a seed."""
    found = smollm2.get_config(ARMS[name][1])
    found.seed = 300 + seed
    found.model.path, found.data.path = str(model), str(data / "train.jsonl")
    if quick:
        found.train.steps = 2
    found.eval.splits = {split: str(data / f"{file}.jsonl") for split, file in cells.SPLITS.items()}
    found.eval.update(count=4 if quick else QUESTIONS, samples=SAMPLES)
    found.eval.update(every=1 if quick else EVERY, every_splits=("in_distribution",))
    # Base and teacher do not depend on the arm, and on the seed only by chance.
    found.eval.roles = ("base", "teacher", "trained") if (name, seed) == (SELF, 0) else ("trained",)
    found.export.merged = False  # half a gigabyte for each cell
    return found


if __name__ == "__main__":
    main()
