"""The best learning rate of each method on the embedded world, with a seed that no table uses.

    python -m experiments.learning_rates [--arms=rcsd_true,grpo,...] [--rates=5e-5,1.5e-4,4.5e-4] [--workdir=runs/experiments]

`configs/world.py` holds the rates it found. Arms whose rubrics a model writes are tried with true rubrics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import arms, cells, main_table, tables
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import read_json

SEED = 90


def main() -> None:
    """Runs the missing cells and prints accuracy by rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(n for n in main_table.ARMS if n != "rcsd"))
    parser.add_argument("--rates", default="5e-5,1.5e-4,4.5e-4")
    parser.add_argument("--workdir", type=Path, default=Path("runs/experiments"))
    tables.add_workers(parser)
    flags = parser.parse_args()
    folder = flags.workdir / "learning_rates"
    tasks = {}
    for name in flags.arms.split(","):
        for rate in map(float, flags.rates.split(",")):
            config = arms.stage2(name, SEED, folder, quick=False)
            config.optimizer.learning_rate = rate
            config.eval.update(every=0, every_splits=(), roles=("trained",))
            if config.rubric.source == "written":
                config.rubric.update(source="data", writer="")
            tasks[name, f"{rate:g}"] = cells.Task(config, folder / name / f"{rate:g}", f"{name}/{rate:g}")
    cells.run_tasks(list(tasks.values()), flags)
    rows: dict[str, dict[str, str]] = {}
    for (name, rate), task in tasks.items():
        scores = read_json(task.place / "summary.json")["evaluation"]["trained"].values()
        accuracies = (" / ".join(f"{100 * mode['accuracy']:.1f}" for mode in split.values()) for split in scores)
        rows.setdefault(tables.label(name), {})[rate] = "  ".join(accuracies)
    console = Console()
    tables.show(console, "accuracy in and out of distribution, percent, sampled / greedy", rows)


if __name__ == "__main__":
    main()
