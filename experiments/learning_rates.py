"""The best learning rate of each method on the embedded world, with a seed that no table uses.

    python -m experiments.learning_rates [--arms=rcsd_true,grpo,...] [--rates=5e-5,1.5e-4] [--workdir=runs/experiments]

`configs/world.py` holds the rates it found. Without `--rates`, each arm is tried with its own, `arms.rates`: where the best of three
lies at the edge, there is a fourth beyond it. "rcsd" is tried with rubrics from its own Stage I; other arms whose rubrics a model
writes are tried with true rubrics.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments import arms, cells, main_table, tables
from experiments.workers import Task
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import read_json

SEED = 90
_OWN_WRITER = ("rcsd",)


def tasks_of(
    names: Sequence[str], rates: Sequence[float] | None, folder: Path
) -> tuple[list[Task], dict[tuple[str, str], Task]]:
    """The Stage I that some arms need first, and (arm, rate) -> the arm's run with that rate.

    Args:
      names: of arms.
      rates: tried with every arm; None: those of `arms.rates`.
      folder: holds the runs.
    """
    writers: dict[str, Task] = {}
    tasks: dict[tuple[str, str], Task] = {}
    for name in names:
        for rate in rates or arms.rates(name):
            config = arms.stage2(name, SEED, folder, quick=False)
            config.optimizer.learning_rate = rate
            config.eval.update(every=0, every_splits=(), roles=("trained",))
            writer = arms.ARMS[name].writer
            if name in _OWN_WRITER:
                stage1 = arms.stage1(writer, SEED, folder, quick=False)
                writers[writer] = Task(stage1, folder / writer / f"seed{SEED}", f"{writer}/seed{SEED}")
            elif config.rubric.source == "written":
                config.rubric.update(source="data", writer="")
            tasks[name, f"{rate:g}"] = Task(config, folder / name / f"{rate:g}", f"{name}/{rate:g}")
    return list(writers.values()), tasks


def accuracies(task: Task) -> str:
    """The trained student's accuracies of a finished run, percent: split by split, each mode's."""
    scores = read_json(task.place / "summary.json")["evaluation"]["trained"].values()
    return "  ".join(" / ".join(f"{100 * mode['accuracy']:.1f}" for mode in split.values()) for split in scores)


def main() -> None:
    """Runs the missing cells and prints accuracy by rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(main_table.ARMS))
    parser.add_argument("--rates", default="", help="tried with every arm; empty: each arm's own")
    parser.add_argument("--workdir", type=Path, default=Path("runs/experiments"))
    tables.add_workers(parser)
    flags = parser.parse_args()
    folder = flags.workdir / "learning_rates"
    rates = [float(rate) for rate in flags.rates.split(",") if rate]
    writers, tasks = tasks_of(flags.arms.split(","), rates or None, folder)
    for runs in (writers, list(tasks.values())):
        cells.run_tasks(runs, flags)
    rows: dict[str, dict[str, str]] = {}
    for (name, rate), task in tasks.items():
        rows.setdefault(tables.label(name), {})[rate] = accuracies(task)
    console = Console()
    tables.show(console, "accuracy in and out of distribution, percent, sampled / greedy", rows)


if __name__ == "__main__":
    main()
