"""Accuracy, entropy, completion length and rubric score over the steps of a run, by method.

python -m experiments.curves [--seeds=5] [--workdir=runs/experiments] [--quick]
"""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments import cells, statistics, svg, tables
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

ARMS = ("sft", "grpo", "grpo_rubric", "opsd", "sdpo", "rcsd_reverse", "rcsd_true", "rcsd")
EVERY_STEP = {"entropy of the student, nats": "student_entropy", "completion length": "completion_length"}


def figure(lines: Mapping[str, tuple[Sequence[float], Sequence[Estimate]]]) -> str:
    """Accuracy over steps, as SVG.

    Args:
      lines: method -> (steps, estimate at each).
    """
    title = "Accuracy over steps: in distribution, sampled"
    return svg.curves(title, lines, "step", "accuracy, percent", strong="RCSD", bounds=(0, 100))


def main() -> None:
    """Runs the missing cells, prints the numbers at the evaluated steps, and draws them."""
    flags = tables.arguments(__doc__)
    names = ("grpo", "rcsd_true") if flags.quick else ARMS
    runs = cells.run(names, flags)
    base = runs["rcsd_true"]
    evaluated = {"accuracy, percent": "accuracy", "rubric score, percent": "rubric_score"}
    panels: dict[str, dict] = {name: {} for name in (*evaluated, *EVERY_STEP)}
    rows: tables.Rows = {}
    for name in names:
        evaluations = runs[name][0].evaluations()
        steps = list(evaluations)
        for title, score in evaluated.items():
            y = [
                [c.score(role, "in_distribution", "sampled", score) for role in evaluations.values()]
                for c in runs[name]
            ]
            start = [[b.score("base", "in_distribution", "sampled", score)] for b in base]
            y = np.concatenate([start, y], axis=1)  # [seeds, 1 + evaluations]
            panels[title][tables.label(name)] = (np.array([0, *steps]), y)
            for step, values in zip([0, *steps], y.T, strict=True):
                rows.setdefault(f"{tables.label(name)}: {title}", {})[f"step {step}"] = statistics.estimate(values)
        for title, key in EVERY_STEP.items():
            if key in runs[name][0].metrics[0]:
                y = np.array([[row[key] for row in c.metrics] for c in runs[name]])
                panels[title][tables.label(name)] = (np.arange(y.shape[1]), y)
                edges = {"step 0": y[:, 0], f"step {steps[-1]}": y[:, -1]}
                rows[f"{tables.label(name)}: {title}"] = {s: statistics.estimate(v) for s, v in edges.items()}
    console = Console(width=150)
    tables.show(console, f"in distribution, sampled, mean ± 95% interval of {flags.seeds} seeds", rows)
    console.print("\nthe paper: forward KL raises the student's entropy, and completions change length; here:")
    for arm in ("rcsd", "rcsd_reverse"):
        for title in EVERY_STEP if arm in names else ():
            first, last = rows[f"{tables.label(arm)}: {title}"].values()
            console.print(f"  {tables.label(arm)}, {title}: {first.mean:.2f} -> {last.mean:.2f}")
    folder = tables.write(console, flags, "curves", rows)
    tables.lines(folder / "curves.png", "Training, in distribution, sampled", "step", panels)
    drawn = {
        name: (list(steps), [statistics.estimate(values) for values in y.T])
        for name, (steps, y) in panels["accuracy, percent"].items()
    }
    svg.save(figure(drawn), folder / "curves.svg")


if __name__ == "__main__":
    main()
