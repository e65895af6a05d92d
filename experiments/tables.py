"""The common parts of all tables: flags, runs, the printed table, and CSV, JSON, PNG and SVG in the workdir."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rich.table

from experiments import arms, cells, statistics, svg, workers
from experiments.cells import Cell
from experiments.statistics import Estimate
from rcsd_jax.host.console import Console

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

PLACES = [(split, mode) for split in cells.SPLITS for mode in ("sampled", "greedy")]
QUICK_SEEDS = 2

Rows = dict[str, dict[str, Estimate]]
"""Row -> column -> value."""

DIFFERENCE = ": difference"
"""Ends the name of a column that holds differences to another row, seed by seed."""


def arguments(description: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The flags that all tables have, and those that `add` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few short runs, to see that everything works")
    add_workers(parser)
    if add is not None:
        add(parser)
    found = parser.parse_args()
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    if found.quick:  # the same programs for all: one process compiles them once, on all cores
        found.seeds, found.workers = min(found.seeds, QUICK_SEEDS), 1
    return found


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The flag that says how many runs go on at once."""
    most = min(len(workers.usable_cores()), workers.MOST_BY_DEFAULT)
    parser.add_argument("--workers", type=int, default=most, help="runs at a time, on the CPU; 1: on what JAX finds")


def add_only(parser: argparse.ArgumentParser, arms: Iterable[str]) -> None:
    """The flag that names some of the arms, joined by commas."""
    known = list(arms)

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"no such arm: {', '.join(sorted(unknown))}")
        return found

    parser.add_argument("--only", type=names, default=[], help="some of " + ", ".join(known))


def forms(names: Sequence[str]) -> str:
    """Which variant of `configs/world.py` the rows of a table are, in words."""
    told = "; ".join(f"{label(name)}: {arms.ARMS[name].variant}" for name in names)
    return f"variants of configs/world.py: {told}"


def label(name: str) -> str:
    """An arm's name as tables show it."""
    return arms.ARMS[name].label


def places_of(runs: Mapping[str, Sequence[Cell]]) -> list[tuple[str, str]]:
    """The (split, mode) pairs that were evaluated."""
    some = next(iter(runs.values()))[0].scores["trained"]
    return [(split, mode) for split, mode in PLACES if mode in some[split]]


def scores(
    runs: Mapping[str, Sequence[Cell]], names: Sequence[str], *, against: str | None = "rcsd", score: str = "accuracy"
) -> Rows:
    """Each arm's score in every place, and its difference to another arm's, seed by seed."""
    rows: Rows = {}
    for name in names:
        row = rows[label(name)] = {}
        for place in places_of(runs):
            values = [cell.score("trained", *place, score) for cell in runs[name]]
            row[column(place)] = statistics.estimate(values)
            if against and name != against:
                others = [cell.score("trained", *place, score) for cell in runs[against]]
                row[column(place) + DIFFERENCE] = statistics.paired(values, others)
    return rows


def of_seeds(found: Mapping[str, Sequence[Mapping[str, float]]], against: str, compared: Iterable[str]) -> Rows:
    """Row -> column -> estimate, from the columns of each seed; rows of `compared` also have their differences to the row `against`,
    seed by seed.
    """
    rows = {
        name: {column: statistics.estimate([one[column] for one in seeds]) for column in seeds[0]}
        for name, seeds in found.items()
    }
    for name in compared:
        for column in found[name][0]:
            pairs = [one[column] for one in found[name]], [one[column] for one in found[against]]
            rows[name][column + DIFFERENCE] = statistics.paired(*pairs)
    return rows


def differences(rows: Rows) -> Rows:
    """Only the columns of rows that end in `DIFFERENCE`, by their names without it; without rows that have none."""
    found = {
        name: {c.removesuffix(DIFFERENCE): e for c, e in row.items() if c.endswith(DIFFERENCE)}
        for name, row in rows.items()
    }
    return {name: row for name, row in found.items() if row}


def column(place: tuple[str, str]) -> str:
    """A place as a column's title."""
    return f"{place[0].replace('_', ' ')}, {place[1]}"


def role_row(runs: Sequence[Cell], role: str) -> dict[str, Estimate]:
    """The base's or the teacher's scores."""
    return {
        column(place): statistics.estimate([cell.score(role, *place) for cell in runs])
        for place in places_of({"": runs})
    }


def show(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    first: str = "",
) -> None:
    """Prints rows; a column that no row has is left out."""
    columns = columns or list(dict.fromkeys(c for row in rows.values() for c in row))
    table = rich.table.Table(title=title)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(str(row[c]) if c in row else "" for c in columns))
    console.print(table)


def joined(found: Mapping[str, Rows]) -> Rows:
    """One table of the rows of several splits, split -> rows."""
    return {f"{name}, {split}": row for split, rows in found.items() for name, row in rows.items()}


def of_column(found: Mapping[str, Rows], column: str) -> Rows:
    """Row -> split -> what the row has in a column, from split -> rows."""
    names = next(iter(found.values()))
    return {name: {split: rows[name][column] for split, rows in found.items()} for name in names}


def show_compared(console: Console, title: str, rows: Rows, against: str) -> None:
    """Prints rows of `of_seeds`, and below them their differences to the row `against`."""
    plain = {name: {c: e for c, e in row.items() if not c.endswith(DIFFERENCE)} for name, row in rows.items()}
    show(console, title, plain)
    if found := differences(rows):
        show(console, f"difference to {against}, seed by seed", found)


def write(console: Console, flags: argparse.Namespace, name: str, rows: Rows, **more: Any) -> Path:
    """Writes `table.csv` (one line per value) and `table.json` (the same, and `more`); returns their folder."""
    folder = flags.workdir / ("quick_tables" if flags.quick else "tables") / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "column", "mean", "half_width_95", "seeds"])
        writer.writerows([name, c, e.mean, e.half_width, e.count] for name, row in rows.items() for c, e in row.items())
    plain = {name: {c: e._asdict() for c, e in row.items()} for name, row in rows.items()}
    (folder / "table.json").write_text(
        json.dumps({"rows": plain, "seeds": flags.seeds} | more, indent=1) + "\n", encoding="utf-8"
    )
    console.print(f"written: {folder}", soft_wrap=True)
    return folder


def bars(path: Path, title: str, rows: Rows, columns: Sequence[str], *, strong: str = label("rcsd")) -> None:
    """Draws a horizontal bar for each row and column, with its interval; and as SVG a mark for each, where one row may stand out."""
    svg.save(svg.intervals(title, rows, columns, strong=strong), path.with_suffix(".svg"))
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(rows) * len(columns)), layout="constrained")
    names, height = list(rows), 0.8 / len(columns)
    for i, name in enumerate(columns):
        found = [rows[row].get(name, Estimate(np.nan, np.nan, 0)) for row in names]
        places = np.arange(len(names)) + i * height
        axes.barh(places, [e.mean for e in found], height, xerr=[e.half_width for e in found], label=name, capsize=2)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="percent")
    axes.legend()
    save(figure, path)


def points(path: Path, title: str, marks: Mapping[str, tuple[Estimate, Estimate]], x_label: str, y_label: str) -> None:
    """Draws a mark for each pair of percentages, with both intervals; also as SVG."""
    svg.save(svg.points(title, marks, x_label, y_label), path.with_suffix(".svg"))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (x, y) in marks.items():
        axes.errorbar(x.mean, y.mean, xerr=x.half_width, yerr=y.half_width, label=name, marker="o", capsize=2)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.legend(fontsize=8)
    save(figure, path)


def lines(
    path: Path, title: str, x_label: str, panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], **axis: Any
) -> None:
    """Draws a panel for each of `panels`: curve -> (x [n], y [seeds, n]), as the mean with its 95% interval."""
    count = len(panels)
    figure, all_axes = plt.subplots(1, count, figsize=(5.5 * count, 4), layout="constrained", squeeze=False)
    for axes, (name, curves) in zip(all_axes[0], panels.items(), strict=True):
        for curve, (x, y) in curves.items():
            found = [statistics.estimate(column) for column in y.T]
            mean, half = np.array([e.mean for e in found]), np.nan_to_num([e.half_width for e in found])
            (drawn,) = axes.plot(x, mean, label=curve, marker="." if len(x) < 12 else None)
            axes.fill_between(x, mean - half, mean + half, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel=x_label, **axis)
    all_axes[0][0].legend(fontsize=8)
    figure.suptitle(title)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes and closes a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def compare(
    name: str,
    title: str,
    names: Sequence[str],
    published: Mapping[str, float],
    what_is_published: str,
    *,
    description: str,
    quick: Sequence[str],
    more: Callable[[Console, dict[str, list[Cell]]], Rows] | None = None,
) -> None:
    """A table of arms, compared with "rcsd" seed by seed and with published figures in their order.

    Args:
      name: of its folder.
      title: over the table.
      names: arms, "rcsd" among them.
      published: arm -> the paper's figure.
      what_is_published: what that figure is.
      description: of `--help`.
      quick: the arms of `--quick`.
      more: prints and returns further rows.
    """
    flags = arguments(description)
    names = list(quick if flags.quick else names)
    runs = cells.run(names, flags)
    console = Console(width=170)
    rows = scores(runs, names)
    if "rcsd_true" in names:
        rows = {f"({r})": role_row(runs["rcsd_true"], r) for r in ("base", "teacher")} | rows
    wide = [column(place) for place in places_of(runs)]
    of_paper = {label(n): {"paper": Estimate(value, float("nan"), 1)} for n, value in published.items() if n in names}
    shown = {name: row | of_paper.get(name, {}) for name, row in rows.items()}
    heading = f"{title}: accuracy, percent, mean ± 95% interval of {flags.seeds} seeds; paper: {what_is_published}"
    show(console, heading, shown, [*wide, "paper"])
    console.print(forms(names), soft_wrap=True)
    show(console, "difference to RCSD, seed by seed", differences(rows), wide)
    extra = more(console, runs) if more else {}
    said = {}
    for place in wide:
        ours = {label(n): rows[label(n)][place].mean for n in names}
        theirs = {label(n): value for n, value in published.items() if n in names}
        said[place] = dict(zip(("agrees", "differs"), statistics.same_order(ours, theirs), strict=True))
        if theirs:
            say_order(console, place, said[place], what_is_published, theirs)
    budget = {label(n): budget_of(runs[n]) for n in names}
    say_budget(console, budget)
    folder = write(console, flags, name, rows | extra, published=dict(published), order=said, budget=budget)
    bars(folder / f"{name}.png", title, rows, wide[:2])


def say_order(console: Console, place: str, said: dict[str, list[str]], what: str, published: dict) -> None:
    """Prints the pairs whose order is the published one, and those whose order is not, with our differences."""
    figures = ", ".join(f"{name} {value}" for name, value in published.items())
    console.print(f"\n{place}, against {what} ({figures}):", style="bold")
    for verdict in ("agrees", "differs"):
        if said[verdict]:
            console.print(f"  the order {verdict}: {'; '.join(said[verdict])}")


def budget_of(runs: Sequence[Cell]) -> dict[str, float]:
    """Steps, and the means over seeds of sampled tokens and of seconds of training."""
    return {
        "steps": len(runs[0].metrics),
        "completion_tokens": float(np.mean([cell.completion_tokens()[-1] for cell in runs])),
        "seconds": float(np.mean([cell.seconds() for cell in runs])),
    }


def say_budget(console: Console, budget: dict[str, dict[str, float]]) -> None:
    """One line for each budget: steps, tokens, seconds."""
    console.print("\nbudgets:")
    for name, b in budget.items():
        line = f"  {name}: {b['steps']} steps, {b['completion_tokens']:,.0f} completion tokens, {b['seconds']:.0f} s"
        console.print(line)
