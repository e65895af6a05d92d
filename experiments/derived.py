"""RCSD whose Stage I learns rubrics drawn from flawed references, against RCSD whose Stage I sees the references, and OPSD.

    python -m experiments.derived [--seeds=5] [--workdir=runs/experiments] [--quick]

The world's base reads right rubrics from flawed references, so plain RCSD does not meet the flaws. A rubric that is drawn from a
reference inherits them: a step that the reference leaves out has no criterion, and a law that it misstates is misstated. Stage I is
fitted to these rubrics (SFT); without flaws they are the true ones.
"""

from experiments import arms, cells, statistics, tables
from rcsd_jax.host.console import Console

METHODS = {"opsd": "OPSD", "rcsd": "RCSD", "rcsd_derived": "RCSD, derived rubrics"}


def main() -> None:
    """Runs the missing cells, then prints and writes the table."""
    flags = tables.arguments(__doc__)
    shares = (1.0,) if flags.quick else arms.FLAWED
    runs = cells.run([arms.flawed(method, share) for share in shares for method in METHODS], flags)
    rows: tables.Rows = {}
    for share in shares:
        of_share = {method: runs[arms.flawed(method, share)] for method in METHODS}
        for place in tables.places_of(runs):
            values = {method: [c.score("trained", *place) for c in found] for method, found in of_share.items()}
            for method, name in METHODS.items():
                row = rows.setdefault(f"{100 * share:.0f}% flawed, {name}", {})
                row[tables.column(place)] = statistics.estimate(values[method])
                if method != "rcsd":
                    difference = statistics.paired(values[method], values["rcsd"])
                    row[f"{tables.column(place)}: to RCSD"] = difference
    console = Console(width=190)
    tables.show(console, f"accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows)
    tables.write(console, flags, "derived", rows)


if __name__ == "__main__":
    main()
