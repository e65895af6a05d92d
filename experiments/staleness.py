"""What it costs to learn from an earlier policy's completions: rollouts of 1, 2, 4 and 8 batches, with and without importance weights.

    python -m experiments.staleness [--seeds=5] [--workdir=runs/experiments] [--quick]

Every run learns from as many batches of the same rows, so all sample about as many tokens. RCSD under true rubrics. Seconds are the
median step's, times steps, and include each step's share of its rollout.
"""

from collections.abc import Mapping

import numpy as np

from experiments import arms, cells, statistics, svg, tables
from experiments.cells import Cell
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

ARMS = tuple(arms.stale(batches, weighted=weighted) for weighted in (False, True) for batches in arms.ROLLOUTS)
FRESH = arms.stale(1, weighted=False)
LOGGED = {
    "ratio": "ratio",
    "log-probability moved, 0.01 nats": "sampler_trainer_log_prob_difference",
    "share clipped": "importance_clipped",
    "slots busy": "occupancy",
}
"""Column -> what steps log."""

_LINES = {False: "no weights", True: "importance weights"}


def figure(rows: Mapping[str, Mapping[int, Estimate]]) -> str:
    """Accuracy against the batches of a rollout, as SVG.

    Args:
      rows: with or without weights -> batches of a rollout -> estimate in percent.
    """
    lines = {name: (list(row), list(row.values())) for name, row in rows.items()}
    title = "Rollouts of several batches: accuracy in distribution, sampled"
    return svg.curves(title, lines, "batches of a rollout", "accuracy, percent", bounds=(0, 100))


def spent(runs: list[Cell]) -> dict[str, Estimate]:
    """Seconds and tokens of training, and means over the steps of what they log, in percent."""
    logged = {
        title: [100 * np.mean([row[name] for row in cell.metrics]) for cell in runs]
        for title, name in LOGGED.items()
        if all(name in row for cell in runs for row in cell.metrics)
    }
    values = {
        "seconds": [cell.seconds() for cell in runs],
        "tokens, thousands": [cell.completion_tokens()[-1] / 1000 for cell in runs],
    }
    return {title: statistics.estimate(of_seeds) for title, of_seeds in (values | logged).items()}


def _label(name: str) -> str:
    """An arm's name in this table; the first arm has another name in others."""
    return "1 batch a rollout" if name == FRESH else tables.label(name)


def main() -> None:
    """Runs the missing cells, then prints and writes the table and the plots."""
    flags = tables.arguments(__doc__)
    batches = (1, 2) if flags.quick else arms.ROLLOUTS
    names = [arms.stale(k, weighted=weighted) for weighted in (False, True) for k in batches]
    runs = cells.run(names, flags)
    console = Console(width=190)
    scored = tables.scores(runs, names, against=FRESH)
    rows = {_label(name): scored[tables.label(name)] for name in names}
    tables.show(console, f"accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows)
    costs = {_label(name): spent(runs[name]) for name in names}
    tables.show(console, "spent, and what steps log, in percent", costs)
    everything = {name: row | costs[name] for name, row in rows.items()}
    folder = tables.write(console, flags, "staleness", everything)
    place = tables.places_of(runs)[0]
    scores = {
        weighted: np.array(
            [[cell.score("trained", *place) for cell in runs[arms.stale(k, weighted=weighted)]] for k in batches]
        ).T
        for weighted in _LINES
    }  # [seeds, batches]
    curves = {name: (np.array(batches), scores[weighted]) for weighted, name in _LINES.items()}
    panels = {tables.column(place): curves}
    tables.lines(folder / "staleness.png", "Rollouts", "batches of a rollout", panels, ylabel="accuracy, percent")
    estimates = {
        name: {k: statistics.estimate(column) for k, column in zip(batches, scores[weighted].T, strict=True)}
        for weighted, name in _LINES.items()
    }
    svg.save(figure(estimates), folder / "staleness.svg")


if __name__ == "__main__":
    main()
