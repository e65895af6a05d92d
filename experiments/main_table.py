"""Methods against each other: base, SFT, GRPO, GRPO with a rubric reward, OPSD, SDFT, SDPO, RCSD.

    python -m experiments.main_table [--seeds=5] [--workdir=runs/experiments] [--quick]

In distribution, by kind of problem, and out of distribution. Every method has the same number of steps and of completions a
step, and its own learning rate (`configs/world.py`).
"""

from __future__ import annotations

from experiments import statistics, tables
from experiments.cells import Cell
from rcsd_jax.host.console import Console

ARMS = (
    "sft", "grpo", "dr_grpo", "grpo_rubric", "opsd", "sdft", "sdpo", "sdpo_feedback", "opsd_authors", "sdft_authors", "sdpo_authors",
    "mixed", "rcsd_sampled", "rcsd_live", "rcsd_ema", "rcsd_true", "rcsd",
)  # fmt: skip
PUBLISHED = {"sft": 65.4, "grpo": 69.2, "grpo_rubric": 69.6, "opsd": 69.7, "rcsd": 70.6}


def by_kind(console: Console, runs: dict[str, list[Cell]]) -> tables.Rows:
    """Prints accuracy by kind of problem, in distribution, and the kinds' average."""
    rows: tables.Rows = {}
    for name, found in runs.items():
        of_seeds = [cell.by_kind("sampled") for cell in found]
        kinds = sorted({kind for one in of_seeds for kind in one})
        row = rows[f"{tables.label(name)}, by kind"] = {
            kind: statistics.estimate([one[kind] for one in of_seeds if kind in one]) for kind in kinds
        }
        row["average"] = statistics.estimate([sum(one.values()) / len(one) for one in of_seeds])
    shown = {name: {kind: e._replace(half_width=float("nan")) for kind, e in row.items()} for name, row in rows.items()}
    tables.show(console, "in distribution, sampled, by kind", shown)
    return rows


if __name__ == "__main__":
    tables.compare(
        "main_table", "Methods", ARMS, PUBLISHED, "the paper's average of six benchmarks", description=__doc__,
        quick=("grpo", "rcsd"), more=by_kind,
    )  # fmt: skip
