"""The family of privileged self-distillation against each other, and credit by criterion: `docs/methods.md` has the equations.

    python -m experiments.family [--seeds=5] [--workdir=runs/experiments] [--quick]

Every method has the same number of steps and of completions a step. Besides accuracy: criterion score, entropy and length of the
student's completions at the end of training; and with all references flawed, how often a student uses a number that only the flawed
reference holds (`experiments.leakage`). The arm "fixed advantage" is the control: it has neither a teacher nor a reward.
"""

from __future__ import annotations

import argparse

import numpy as np

from experiments import arms, cells, leakage, statistics, tables
from experiments.cells import Cell
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

METHODS = (
    "rcsd_true", "opsd", "opsd_authors", "sdpo_authors", "pw_opsd", "purified", "contrastive", "rlcsd", "dopd", "u_opsd", "grpo",
    "grpo_rubric", "rubric_dropout", "fixed_advantage",
)  # fmt: skip
EMPHASES = tuple(f"true_{kind}" for kind in arms.EMPHASES)
CREDIT = ("credit", "true_weighted", "true_sampled", "true_dropout")
LEAKS = ("opsd_leak", "pw_opsd_leak", "purified_leak", "true_leak", "fixed_leak")
ARMS = (*METHODS, *EMPHASES, *CREDIT)
SELF = "rcsd_true"
"""The arm with which all others are compared."""

ACCURACY = "in distribution, sampled"
"""The column of accuracy that stands next to what leaks."""

LAST = 5  # steps whose means are shown as those of the end
QUICK = (SELF, "credit")


def at_the_end(runs: dict[str, list[Cell]]) -> tables.Rows:
    """Entropy and length of the student's completions over the last steps of training, and its criterion score afterwards."""
    rows: tables.Rows = {}
    for name, found in runs.items():
        of_steps = {
            "entropy, nats": [_mean(cell, "student_entropy") for cell in found],
            "length, tokens": [_mean(cell, "completion_length") for cell in found],
        }
        scores = {
            f"criterion score, {split.split('_')[0]}": [
                cell.score("trained", split, "sampled", "rubric_score") for cell in found
            ]
            for split in cells.SPLITS
        }
        rows[tables.label(name)] = {
            column: statistics.estimate(values) for column, values in (of_steps | scores).items()
        }
    return rows


def _mean(cell: Cell, metric: str) -> float:
    return float(np.mean([row[metric] for row in cell.metrics[-LAST:]]))


def leaks(runs: dict[str, list[Cell]]) -> tables.Rows:
    """Of runs with flawed references: percent of completions that use a number that only the flawed reference holds, and accuracy."""
    scores = tables.scores(runs, list(runs), against=None)
    return {
        tables.label(name): {
            column: statistics.estimate([leakage.share(cell, column, flawed=1.0) for cell in found])
            for column in leakage.SPLITS
        }
        | {ACCURACY: scores[tables.label(name)][ACCURACY]}
        for name, found in runs.items()
    }


def against_leakage(rows: tables.Rows, column: str) -> dict[str, tuple[Estimate, Estimate]]:
    """Of rows of `leaks`, name -> (what leaks in a column of `leakage.SPLITS`, accuracy), as `tables.points` draws them."""
    return {name.split(",")[0]: (row[column], row[ACCURACY]) for name, row in rows.items()}


def main() -> None:
    """Runs the missing cells, then prints and writes the tables."""
    flags: argparse.Namespace = tables.arguments(__doc__)
    names = list(QUICK if flags.quick else ARMS)
    runs = cells.run(names, flags)
    console = Console(width=170)
    rows = {f"({role})": tables.role_row(runs[SELF], role) for role in ("base", "teacher")}
    rows |= tables.scores(runs, names, against=SELF)
    wide = [tables.column(place) for place in tables.places_of(runs)]
    tables.show(console, f"The family: accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows, wide)
    differences = {n: {c.split(":")[0]: e for c, e in row.items() if ":" in c} for n, row in rows.items()}
    shown = {name: row for name, row in differences.items() if row}
    tables.show(console, f"difference to {tables.label(SELF)}, seed by seed", shown, wide)
    ends = at_the_end(runs)
    tables.show(console, "the student at the end", ends)
    flawed = {} if flags.quick else leaks(cells.run(LEAKS, flags))
    if flawed:
        heading = "all references flawed: completions with numbers that only the reference holds, and accuracy, percent"
        tables.show(console, heading, flawed)
        ends |= flawed
    console.print(tables.forms(names), soft_wrap=True)
    budget = {tables.label(name): tables.budget_of(runs[name]) for name in names}
    tables.say_budget(console, budget)
    joined = {name: rows.get(name, {}) | ends.get(name, {}) for name in dict.fromkeys((*rows, *ends))}
    folder = tables.write(console, flags, "family", joined, budget=budget)
    tables.bars(folder / "family.png", "The family", rows, wide[:2])
    for column in leakage.SPLITS if flawed else ():
        path = folder / f"leakage_{column.replace(' ', '_')}.png"
        x_label = f"leakage, questions {column}, percent"
        tables.points(
            path, "Accuracy against leakage", against_leakage(flawed, column), x_label, f"accuracy {ACCURACY}"
        )


if __name__ == "__main__":
    main()
