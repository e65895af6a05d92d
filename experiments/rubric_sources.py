"""Stage II on the embedded world under true, learned and untrained rubrics, over seeds: does the main claim hold?

    python -m experiments.rubric_sources --workdir=runs/rubric_sources --seeds=3

Prints, for sampled and greedy decoding, the base's and the teacher's accuracy, the share of the gap between them that the
student closes under each source of rubrics, and where half of the steps stand. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import logging

from configs import tiny
from rcsd_jax.files import read_json
from rcsd_jax.preemption import StopRequest
from rcsd_jax.stage import run_stage

ARMS = {"true": "data", "learned": "written", "untrained": "written"}


def run_seed(workdir: Path, seed: int, console: rich.console.Console, stop: StopRequest) -> dict[str, Any]:
    """Stage I and the three Stage II arms of one seed; arm -> its summary, with the student at half of the steps."""
    config = tiny.get_config()
    stage1 = config.stage1
    stage1.seed = 100 + seed
    results = {"stage1": run_stage(stage1, workdir / f"seed{seed}" / "stage1", console, stop, name=f"stage1/{seed}")}
    for arm, source in ARMS.items():
        stage2 = tiny.get_config().stage2
        stage2.seed = 200 + seed
        stage2.eval.every = stage2.train.steps // 2
        stage2.rubric.source = source
        base = stage2.model.path
        stage2.rubric.writer = base if arm == "untrained" else str(workdir / f"seed{seed}" / "stage1" / "export")
        folder = workdir / f"seed{seed}" / arm
        results[arm] = run_stage(stage2, folder, console, stop, name=f"{arm}/{seed}")
        half = read_json(folder / f"evaluation_step_{stage2.eval.every}.json")
        results[arm]["evaluation"]["half"] = half
    return results


def table(results: list[dict[str, Any]], console: rich.console.Console) -> None:
    """Means over seeds, with the seeds' spread."""

    def scores(arm: str, role: str, split: str, mode: str, score: str = "accuracy") -> np.ndarray:
        return np.array([100 * r[arm]["evaluation"][role][split][mode][score] for r in results])

    def cell(values: np.ndarray) -> str:
        spread = f" ({values.min():.1f}–{values.max():.1f})" if len(values) > 1 else ""
        return f"{values.mean():.1f}{spread}"

    out = rich.table.Table(title=f"{len(results)} seeds: mean (smallest–largest), percent")
    for column in (
        "",
        "in distribution\nsampled",
        "in distribution\ngreedy",
        "out of distribution\nsampled",
        "out of distribution\ngreedy",
    ):
        out.add_column(column)
    places = [(s, m) for s in ("in_distribution", "out_of_distribution") for m in ("sampled", "greedy")]

    def row(name: str, value) -> None:
        out.add_row(name, *[cell(value(split, mode)) for split, mode in places])

    row("Stage I F1, base", lambda s, m: scores("stage1", "base", s, m, "criterion_f1"))
    row("Stage I F1, trained", lambda s, m: scores("stage1", "trained", s, m, "criterion_f1"))
    row("accuracy, base", lambda s, m: scores("true", "base", s, m))
    row("accuracy, teacher with the true rubric", lambda s, m: scores("true", "teacher", s, m))
    for arm in ARMS:

        def closed(split, mode, role, arm=arm):
            base, teacher = scores(arm, "base", split, mode), scores(arm, "teacher", split, mode)
            return 100 * (scores(arm, role, split, mode) - base) / (teacher - base)

        row(f"accuracy, student under {arm} rubrics", lambda s, m, arm=arm: scores(arm, "trained", s, m))
        row(f"share of the gap closed, {arm}", lambda s, m, closed=closed: closed(s, m, "trained"))
        row(f"share of the gap closed at half of the steps, {arm}", lambda s, m, closed=closed: closed(s, m, "half"))
    console.print(out)


def main() -> None:
    """Reads flags, runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/rubric_sources"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    console = rich.console.Console(width=150)
    with StopRequest() as stop:
        results = [run_seed(arguments.workdir, seed, console, stop) for seed in range(arguments.seeds)]
    table(results, console)


if __name__ == "__main__":
    main()
