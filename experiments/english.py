"""RCSD and the methods it is compared with on a real language model: SmolLM2-135M on worded problems in English (`configs/smollm2.py`).

    python -m experiments.english --model=smollm2 [--seeds=3] [--workdir=runs/english] [--only=ARM,ARM] [--quick]

Every arm has the same number of steps and of completions a step. A cell is one arm with one seed; steps and questions are chosen
for about 25 minutes of two idle cores. A stopped table goes on where it was, and `--only` runs some arms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import smollm2
from experiments import cells, statistics, tables
from experiments.cells import Cell
from experiments.workers import Task
from rcsd_jax.host.console import Console
from rcsd_jax.world import __main__ as rows_of_the_world

ARMS = {
    "rcsd_true": ("RCSD, true rubrics", "ground_truth"),
    "opsd": ("OPSD", "reference"),
    "grpo": ("GRPO", "grpo"),
    "sft": ("SFT", "sft"),
    "rcsd_sampled": ("sampled token", "sampled_token"),
}
"""Arm -> its name in the table, and the variant of `configs/smollm2.py`."""

SCORES = ("accuracy", "pass@4", "rubric_score", "leak", "entropy", "length")
STEPS, QUESTIONS, SAMPLES = 24, 48, 4


def main() -> None:
    """Runs the missing cells, then prints and writes the table."""
    flags = arguments()
    names = flags.only or list(ARMS)
    folder = cells.folder(flags)
    data = folder / "rows"
    if not (data / "ood.jsonl").exists():
        rows_of_the_world.main([str(data), "--count=2048"])
    tasks = {
        (name, seed): Task(config(name, seed, flags.model, data, quick=flags.quick), folder / name / f"seed{seed}", f"{name}/seed{seed}")
        for seed in range(flags.seeds)
        for name in names
    }  # fmt: skip
    cells.run_tasks(list(tasks.values()), flags)
    console = Console(width=170)
    found: tables.Rows = {}
    for split in cells.SPLITS:
        for name in names:
            runs = [cells.read(tasks[name, seed]) for seed in range(flags.seeds)]
            for role in ("base", "teacher", "trained"):
                having = [run for run in runs if role in run.scores]
                if having:
                    label = ARMS[name][0] if role == "trained" else role
                    found[f"{label}, {split.replace('_', ' ')}"] = row(having, role, split)
    tables.show(console, f"percent, nats, tokens; mean ± 95% interval of {flags.seeds} seeds", found)
    tables.write(console, flags, "english", found)


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the directory of SmolLM2-135M-Instruct")
    parser.add_argument("--workdir", type=Path, default=Path("runs/english"))
    parser.add_argument("--seeds", type=int, default=3)
    tables.add_only(parser, ARMS)
    parser.add_argument("--quick", action="store_true", help="two short steps, to see that everything works")
    flags = parser.parse_args()
    if flags.seeds < 1:
        parser.error("--seeds must be at least 1")
    flags.workers = 1  # one run fills the cores
    return flags


def config(name: str, seed: int, model: Path, data: Path, *, quick: bool) -> ConfigDict:
    """The configuration of an arm's run with a seed."""
    found = smollm2.get_config(ARMS[name][1])
    found.seed = 300 + seed
    found.model.path, found.data.path = str(model), str(data / "train.jsonl")
    found.train.steps = 2 if quick else STEPS
    found.eval.splits = {split: str(data / f"{file}.jsonl") for split, file in cells.SPLITS.items()}
    found.eval.update(count=4 if quick else QUESTIONS, samples=SAMPLES)
    # Base and teacher do not depend on the arm, and on the seed only by chance.
    found.eval.roles = ("base", "teacher", "trained") if (name, seed) == ("rcsd_true", 0) else ("trained",)
    found.export.merged = False  # half a gigabyte for each cell
    return found


def row(runs: list[Cell], role: str, split: str) -> dict[str, statistics.Estimate]:
    """The estimates of `SCORES` over the seeds' runs."""
    return {score: statistics.estimate([_score(run, role, split, score) for run in runs]) for score in SCORES}


def _score(run: Cell, role: str, split: str, score: str) -> float:
    if score == "entropy":  # of the student, in the last quarter of training
        last = [step.get("student_entropy", np.nan) for step in run.metrics[-max(1, len(run.metrics) // 4) :]]
        return float(np.mean(last)) if role == "trained" else np.nan
    if score == "length":
        return run.scores[role][split]["sampled"]["length"]
    return run.score(role, split, "sampled", score)


if __name__ == "__main__":
    main()
