"""Flawed references: OPSD, whose teacher sees them, against RCSD, whose Stage I saw them, from none flawed to all.

    python -m experiments.noise [--seeds=5] [--workdir=runs/experiments] [--quick]

The paper argues that chains of thought are noisy supervision and criteria are not. This measures it. A flawed reference has a
wrong step and the right final answer.
"""

from collections.abc import Mapping

import numpy as np

from experiments import arms, cells, statistics, svg, tables
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

STYLES = {"RCSD, in": (0, False), "OPSD, in": (1, False), "RCSD, out": (0, True), "OPSD, out": (1, True)}
"""Curves of the figure: hue, and whether it is dashed."""


def figure(rows: Mapping[float, Mapping[str, Estimate]]) -> str:
    """Accuracy against the share of flawed references, as SVG.

    Args:
      rows: share in percent -> name of a curve (`STYLES`) -> estimate.
    """
    lines = {name: (list(rows), [row[name] for row in rows.values()]) for name in STYLES}
    title = "Flawed references: in and out of distribution, sampled"
    x, y = "flawed references, percent", "accuracy, percent"
    return svg.curves(title, lines, x, y, strong="RCSD, in", bounds=(0, 100), styles=STYLES)


def main() -> None:
    """Runs the missing cells, then prints and writes the table and the plots."""
    flags = tables.arguments(__doc__)
    shares = (1.0,) if flags.quick else arms.FLAWED
    names = {m: [arms.flawed(m, x) for x in shares] for m in ("opsd", "rcsd")}
    runs = cells.run([n for pair in zip(*names.values(), strict=True) for n in pair], flags)
    rows: tables.Rows = {}
    panels: dict[str, dict] = {}
    for place in tables.places_of(runs):
        curves = panels[tables.column(place)] = {}
        of = {m: np.array([[c.score("trained", *place) for c in runs[n]] for n in names[m]]).T for m in names}
        for method, values in of.items():  # [seeds, shares]
            curves[method.upper()] = (100 * np.array(shares), values)
            for share, column in zip(shares, values.T, strict=True):
                rows.setdefault(f"{method.upper()}, {100 * share:.0f}% flawed", {})[tables.column(place)] = (
                    statistics.estimate(column)
                )
        for share, a, b in zip(shares, of["rcsd"].T, of["opsd"].T, strict=True):
            rows.setdefault(f"RCSD - OPSD, {100 * share:.0f}%", {})[tables.column(place)] = statistics.paired(a, b)
    console = Console(width=150)
    tables.show(console, f"accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows)
    folder = tables.write(console, flags, "noise", rows)
    tables.lines(
        folder / "noise.png", "Flawed references", "flawed references, percent", panels, ylabel="accuracy, percent"
    )
    places = {"in": "in distribution, sampled", "out": "out of distribution, sampled"}
    of_share = {
        100 * share: {
            f"{m}, {k}": rows[f"{m}, {100 * share:.0f}% flawed"][place]
            for m in ("RCSD", "OPSD")
            for k, place in places.items()
        }
        for share in shares
    }
    svg.save(figure(of_share), folder / "noise.svg")


if __name__ == "__main__":
    main()
