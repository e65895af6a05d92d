"""A base of five million parameters as the teacher of the one of a million, with and without the true rubric, against self-distillation.

    python -m experiments.larger_teacher [--seeds=5] [--workdir=runs/experiments] [--quick]

The large base is made first, which takes an hour or two, unless `experiments.scale` has made it.
"""

from experiments import cells, tables
from rcsd_jax.host.console import Console

SELF = "rcsd_true"
ARMS = (SELF, "large_teacher", "large_teacher_plain")


def main() -> None:
    """Runs the missing cells, then prints and writes the table."""
    flags = tables.arguments(__doc__)
    names = ARMS[1:2] if flags.quick else ARMS
    runs = cells.run(names, flags)
    rows: tables.Rows = {"base": tables.role_row(runs[SELF], "base")} if SELF in runs else {}
    for name in names:
        rows[f"teacher: {_label(name)}"] = tables.role_row(runs[name], "teacher")
    trained = tables.scores(runs, names, against=SELF if SELF in runs else None)
    rows |= {f"trained: {_label(name)}": trained[tables.label(name)] for name in names}
    console = Console(width=170)
    tables.show(console, f"accuracy, percent, mean ± 95% interval of {flags.seeds} seeds", rows)
    tables.say_budget(console, {_label(name): tables.budget_of(runs[name]) for name in names})
    folder = tables.write(console, flags, "larger_teacher", rows)
    places = [tables.column(place) for place in tables.places_of(runs)][:2]
    tables.bars(folder / "larger_teacher.png", "A larger teacher", rows, places)


def _label(name: str) -> str:
    """An arm's name in this table; the first arm has another name in others."""
    return "itself, with rubric" if name == SELF else tables.label(name)


if __name__ == "__main__":
    main()
