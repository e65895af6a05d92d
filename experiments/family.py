"""The family of privileged self-distillation against each other, and credit by criterion: `docs/methods.md` has the equations.

    python -m experiments.family [--seeds=5] [--workdir=runs/experiments] [--quick]

Every method has the same number of steps and of completions a step. Besides accuracy:
- criterion score, entropy and length of the student's completions at the end of training, and the latter two over the steps;
- pass@1 and pass@16, and the number of different right texts (`experiments.diversity`);
- where a method pulls at the first step, by class of token (`experiments.pull`);
- with none and all of the references flawed: accuracy, and how often a student uses a number that only the flawed reference holds
  (`experiments.leakage`).
The arm "fixed advantage" is the control: it has neither a teacher nor a reward.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from experiments import arms, cells, diversity, leakage, pull, statistics, tables
from experiments.cells import Cell
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

METHODS = (
    "rcsd_true", "opsd", "opsd_authors", "sdpo", "sdpo_authors", "pw_opsd", "pw_opsd_whole", "purified", "contrastive", "contrastive_whole",
    "rlcsd", "dopd", "u_opsd", "grpo", "grpo_rubric", "rubric_dropout", "fixed_advantage",
)  # fmt: skip
EMPHASES = tuple(f"true_{kind}" for kind in arms.EMPHASES)
CREDIT = ("credit", "true_weighted", "true_sampled", "true_dropout")
FLAWLESS = {name: arms.flawless(name) for name in arms.SHOWN_REFERENCES}
LEAKS = {name: arms.leaking(name) for name in (*arms.SHOWN_REFERENCES, *arms.SHOWN_NONE)}
ARMS = (*METHODS, *EMPHASES, *CREDIT)
SELF = "rcsd_true"
"""The arm with which all others are compared."""

PLACE = ("in_distribution", "sampled")
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


def by_flaws(runs: dict[str, list[Cell]], flags: argparse.Namespace) -> tables.Rows:
    """Accuracy, sampled, by the share of references that are flawed, and the percent of completions that use a number that only the
    flawed reference holds, where all are. `runs` are those with the world's own share. The base has seen none of these references.
    """
    none, all_of_them = cells.run(list(FLAWLESS.values()), flags), cells.run(list(LEAKS.values()), flags)
    rows: tables.Rows = {}
    for name, leaking in LEAKS.items():
        row = rows[tables.label(name)] = {}
        found = {"0%": none.get(FLAWLESS.get(name, "")), "35%": runs[name], "100%": all_of_them[leaking]}
        for share, of_share in found.items():
            if of_share:
                row[f"{share} flawed"] = statistics.estimate([cell.score("trained", *PLACE) for cell in of_share])
        for column in leakage.SPLITS:
            uses = [leakage.share(cell, column, flawed=1.0) for cell in all_of_them[leaking]]
            row[f"leaks, {column}"] = statistics.estimate(uses)
    untrained = [
        cells.read(cells.task(SELF, seed, cells.folder(flags), quick=flags.quick), "base")
        for seed in range(flags.seeds)
    ]
    uses = [leakage.share(cell, leakage.HELD_OUT, flawed=1.0) for cell in untrained]
    rows["(base)"] = {
        "100% flawed": statistics.estimate([cell.score("base", *PLACE) for cell in untrained]),
        f"leaks, {leakage.HELD_OUT}": statistics.estimate(uses),
    }
    return rows


def against_leakage(rows: tables.Rows, column: str) -> dict[str, tuple[Estimate, Estimate]]:
    """Of rows of `by_flaws`, name -> (what leaks in a column of `leakage.SPLITS`, accuracy), where all references are flawed."""
    leaks = f"leaks, {column}"
    return {name: (row[leaks], row["100% flawed"]) for name, row in rows.items() if leaks in row}


def pulls(names: list[str], flags: argparse.Namespace) -> tables.Rows:
    """Percent of the pull of the first step by class of token, with the first seed."""
    rows: tables.Rows = {}
    with cells.running(flags.workdir) as (_, stop):
        for name in names:
            stop.raise_if_set(f"before {name}")
            of_class = pull.by_class(cells.task(name, 0, cells.folder(flags), quick=flags.quick).config, stop)
            rows[tables.label(name)] = {f"pull, {k}": statistics.estimate([x]) for k, x in of_class.items()}
            jax.clear_caches()
    return rows


def over_steps(runs: dict[str, list[Cell]], metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arm -> steps [n] and a metric [seeds, n], as means of `LAST` steps each."""
    curves = {}
    for name, found in runs.items():
        values = np.array([[row[metric] for row in cell.metrics] for cell in found])
        together = min(LAST, values.shape[1])
        ends = np.arange(together, values.shape[1] + 1, together)
        means = [values[:, end - together : end].mean(axis=1) for end in ends]
        curves[tables.label(name)] = ends, np.stack(means, axis=1)
    return curves


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
    tables.show(console, f"difference to {tables.label(SELF)}, seed by seed", tables.differences(rows), wide)
    more = at_the_end(runs)
    tables.show(console, "the student at the end", more)
    parts = [
        (f"{diversity.SAMPLES} solutions to each question", diversity.rows(names, flags)),
        ("where the first step pulls, percent", pulls(names, flags)),
    ]
    flawed = {} if flags.quick else by_flaws(runs, flags)
    if flawed:
        parts.append(("percent, by the share of flawed references", flawed))
    for title, found in parts:
        tables.show(console, title, found)
        more = {name: more.get(name, {}) | found.get(name, {}) for name in dict.fromkeys((*more, *found))}
    console.print(tables.forms(names), soft_wrap=True)
    budget = {tables.label(name): tables.budget_of(runs[name]) for name in names}
    tables.say_budget(console, budget)
    joined = {name: rows.get(name, {}) | more.get(name, {}) for name in dict.fromkeys((*rows, *more))}
    folder = tables.write(console, flags, "family", joined, budget=budget)
    tables.bars(folder / "family.png", "The family", rows, wide[:2])
    for column in leakage.SPLITS if flawed else ():
        path, x_label = folder / f"leakage_{column.replace(' ', '_')}.png", f"leakage, questions {column}, percent"
        marks = against_leakage(flawed, column)
        tables.points(path, "Accuracy against leakage", marks, x_label, "accuracy in distribution, sampled")
    panels = {
        title: over_steps({name: runs[name] for name in names if name in METHODS}, metric)
        for title, metric in (("entropy, nats", "student_entropy"), ("length, tokens", "completion_length"))
    }
    tables.lines(folder / "family_steps.png", "The student during training", "step", panels)


if __name__ == "__main__":
    main()
