"""Which learning rate serves each method best on the embedded world, with a seed that no table has.

    python -m experiments.learning_rates [--arms=rcsd_true,grpo,...] [--rates=5e-5,1.5e-4,4.5e-4] [--workdir=runs/experiments]

What it finds is written down in `configs/world.py`. Arms whose rubrics a model wrote are tried with the true ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import rich.console
import rich.table

from experiments import arms, cells, main_table

SEED = 90


def main() -> None:
    """Runs what is missing and prints accuracy by rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(n for n in main_table.ARMS if n != "rcsd"))
    parser.add_argument("--rates", default="5e-5,1.5e-4,4.5e-4")
    parser.add_argument("--workdir", type=Path, default=Path("runs/experiments"))
    flags = parser.parse_args()
    table = rich.table.Table(title="accuracy in and out of distribution, percent, sampled / greedy")
    rates = [float(rate) for rate in flags.rates.split(",")]
    for name in ("", *(f"{rate:g}" for rate in rates)):
        table.add_column(name, justify="right")
    folder = flags.workdir / "learning_rates"
    with cells.running(flags.workdir) as (console, stop):
        for name in flags.arms.split(","):
            found = []
            for rate in rates:
                config = arms.stage2(name, SEED, folder, quick=False)
                config.optimizer.learning_rate = rate
                config.eval.update(every=0, roles=("trained",))
                if config.rubric.source == "written":
                    config.rubric.update(source="data", writer="")
                summary = cells.run_cell(config, folder / name / f"{rate:g}", console, stop, f"{name}/{rate:g}")
                scores = summary["evaluation"]["trained"]
                accuracies = [[f"{100 * m['accuracy']:.1f}" for m in split.values()] for split in scores.values()]
                found.append("  ".join(" / ".join(split) for split in accuracies))
            table.add_row(arms.ARMS[name].label, *found)
    rich.console.Console(width=140).print(table)


if __name__ == "__main__":
    main()
