"""Three sizes of the model: base, teacher with the true rubric, and RCSD under true and under its own Stage I's rubrics.

    python -m experiments.scale [--seeds=5] [--workdir=runs/experiments] [--quick]

The small and the large base are made first, which takes an hour or two.
"""

from experiments import cells, statistics, tables
from rcsd_jax.host.console import Console

SIZES = ("small", "medium", "large")
ARMS = ("rcsd_small", "rcsd_true_small", "rcsd", "rcsd_true", "rcsd_large", "rcsd_true_large")


def main() -> None:
    """Runs the missing cells, then prints and writes the table."""
    flags = tables.arguments(__doc__)
    names = ("rcsd_small", "rcsd_true_small") if flags.quick else ARMS
    runs = cells.run(names, flags)
    rows: tables.Rows = {}
    for size in SIZES[:1] if flags.quick else SIZES:
        end = "" if size == "medium" else f"_{size}"
        for role in ("base", "teacher"):
            rows[f"{size}: {role}"] = tables.role_row(runs[f"rcsd_true{end}"], role)
        for name in (f"rcsd_true{end}", f"rcsd{end}"):
            row = tables.scores(runs, [name], against=None)[tables.label(name)]
            rows[f"{size}: {tables.label(name).removesuffix(f', {size}')}"] = row
        gained = rows[f"{size}: RCSD - base"] = {}
        for place in tables.places_of(runs):
            after = [cell.score("trained", *place) for cell in runs[f"rcsd{end}"]]
            before = [cell.score("base", *place) for cell in runs[f"rcsd_true{end}"]]
            gained[tables.column(place)] = statistics.paired(after, before)
    console = Console(width=170)
    tables.show(console, f"accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows)
    folder = tables.write(console, flags, "scale", rows)
    tables.bars(folder / "scale.png", "Sizes", rows, [tables.column(place) for place in tables.places_of(runs)][:2])


if __name__ == "__main__":
    main()
