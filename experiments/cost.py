"""What accuracy costs: against completion tokens, and against seconds of training, for all methods.

    python -m experiments.cost [--seeds=5] [--workdir=runs/experiments] [--quick]

Seconds are the median step's, times steps, so that compiling is left out. "All tokens" are those of the run and those before it: of its
Stage I and of the rubrics that were written between the stages.
"""

from collections.abc import Mapping

import numpy as np

from experiments import cells, main_table, statistics, svg, tables
from rcsd_jax.host.console import Console

THRESHOLDS = (60, 70, 80)


def figure(rows: Mapping[str, Mapping[int, float]]) -> str:
    """Thousands of completion tokens that each method had sampled when it reached a threshold, as SVG.

    Args:
      rows: method -> threshold in percent -> thousands of tokens, with those of Stage I and of rubrics.
    """
    title = "All tokens until mean accuracy first reached 60, 70 and 80%"
    return svg.milestones(
        title, rows, "completion tokens with those of Stage I and of rubrics, thousands", strong="RCSD"
    )


def main() -> None:
    """Runs the missing cells, prints what each method had spent when it reached an accuracy, and draws it."""
    flags = tables.arguments(__doc__)
    names = ("grpo", "rcsd_true", "rcsd") if flags.quick else main_table.ARMS
    runs = cells.run(names, flags)
    panels: dict[str, dict] = {"completion tokens, thousands": {}, "seconds of training": {}}
    rows: tables.Rows = {}
    for name in names:
        evaluations = runs[name][0].evaluations()
        steps = list(evaluations)
        roles = evaluations.values()
        y = np.array([[c.score(role, "in_distribution", "sampled") for role in roles] for c in runs[name]])
        tokens = np.array([c.completion_tokens()[np.array(steps) - 1] for c in runs[name]]) / 1000
        before = np.array([[c.tokens_before] for c in runs[name]]) / 1000  # [seeds, 1]
        seconds = np.array([c.seconds() * np.array(steps) / steps[-1] for c in runs[name]])
        for title, x in zip(panels, (tokens, seconds), strict=True):
            panels[title][tables.label(name)] = (x.mean(axis=0), y)
        row = rows[tables.label(name)] = {
            "accuracy, percent": statistics.estimate(y[:, -1]),
            "tokens, thousands": statistics.estimate(tokens[:, -1]),
            "all tokens, thousands": statistics.estimate((tokens + before)[:, -1]),
            "seconds": statistics.estimate(seconds[:, -1]),
        }
        for threshold in THRESHOLDS:
            reached = y.mean(axis=0) >= threshold
            if reached.any():
                at = int(np.argmax(reached))
                row[f"tokens to {threshold}%"] = statistics.estimate(tokens[:, at])
                row[f"all tokens to {threshold}%"] = statistics.estimate((tokens + before)[:, at])
                row[f"seconds to {threshold}%"] = statistics.estimate(seconds[:, at])
    console = Console(width=170)
    tables.show(console, f"in distribution, sampled, mean ± 95% interval of {flags.seeds} seeds", rows)
    folder = tables.write(console, flags, "cost", rows)
    tables.lines(folder / "cost.png", "Accuracy in distribution, sampled, percent", "spent", panels)
    reached = {
        name: {t: row[f"all tokens to {t}%"].mean for t in THRESHOLDS if f"all tokens to {t}%" in row}
        for name, row in rows.items()
    }
    svg.save(figure(reached), folder / "cost.svg")


if __name__ == "__main__":
    main()
