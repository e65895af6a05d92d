"""The figures of the page of measurements, drawn from the page's tables.

    python -m experiments.figures

reads `experiments/README.md` and writes `experiments/figures/*.svg`. The commands of the tables draw the same figures from their
own runs, into their workdir.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

from experiments import cost, curves, english, noise, staleness, svg
from experiments.statistics import Estimate

PAGE = Path(__file__).parent / "README.md"
FOLDER = Path(__file__).parent / "figures"

_IN, _OUT = "in distribution, sampled", "out of distribution, sampled"


def table(page: str, heading: str) -> dict[str, dict[str, Estimate]]:
    """The first table under a heading: row -> column -> estimate. Cells that hold no number are left out.

    Raises:
      ValueError: there is no such heading, or no table under it.
    """
    _, found, below = page.partition(f"\n## {heading}\n")
    after = itertools.dropwhile(lambda line: not line.startswith("|"), below.split("\n## ")[0].splitlines())
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), after))
    if not found or len(lines) < 3:
        raise ValueError(f"no table under the heading {heading!r}")
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    named: dict[str, dict[str, Estimate]] = {}
    for name, *cells in rows:
        numbers = {column: _estimate(cell) for column, cell in zip(columns[1:], cells, strict=True)}
        named[name] = {column: number for column, number in numbers.items() if number is not None}
    return named


def _estimate(cell: str) -> Estimate | None:
    """`84.0 ± 3.5` or `84.0`."""
    found = re.fullmatch(r"([+-]?[\d.]+)(?: ± ([\d.]+))?", cell)
    return found and Estimate(float(found[1]), float(found[2] or "nan"), 0)


def methods(page: str) -> str:
    """Methods against each other, both distributions."""
    return _places("Methods: accuracy of sampled answers", table(page, "Methods"), strong="RCSD")


def divergences(page: str) -> str:
    """RCSD under other divergences, clips and guidance."""
    return _places("Divergences: accuracy of sampled answers", table(page, "Divergences and guidance"), strong="RCSD")


def rubrics(page: str) -> str:
    """RCSD under other rubrics."""
    rows = table(page, "Rubrics, and whether Stage I is needed")
    return _places("Rubrics: accuracy of sampled answers", rows, strong="RCSD: learned rubrics")


def sizes(page: str) -> str:
    """Three sizes of the model."""
    return _places("Sizes: accuracy of sampled answers", table(page, "Sizes"), strong=None)


def larger_teacher(page: str) -> str:
    """The model itself and a larger one as its teacher, with the rubric and without."""
    return _places("A larger teacher: accuracy of sampled answers", table(page, "A larger teacher"), strong=None)


def family(page: str) -> str:
    """The methods that vary the same step."""
    return _places("The family: accuracy of sampled answers", table(page, "The family"), strong="RCSD, true rubrics")


def accuracy_against_leakage(page: str) -> str:
    """Where all references are flawed: accuracy against what students have from them."""
    rows = table(page, "Flawed references in the family")
    marks = {name: (row["leaks, held out"], row["100% flawed"]) for name, row in rows.items()}
    return svg.points("Accuracy against leakage, all references flawed", marks, "leakage, percent", "accuracy, percent")


def long_solutions(page: str) -> str:
    """Methods on chains of 8 to 16 steps."""
    return _places("Long solutions: accuracy of sampled answers", table(page, "Long solutions"), strong="true rubric")


def repairs(page: str) -> str:
    """Which of the wrong turns in long solutions are repaired."""
    columns = ["repaired, in distribution", "repaired, out of distribution"]
    rows = table(page, "Checks and repairs")
    return svg.intervals("Long solutions: wrong turns that were repaired", rows, columns, strong="true rubric")


def problems_in_english(page: str) -> str:
    """Methods on a real language model."""
    rows = table(page, "Problems in English, with SmolLM2-135M")
    return _places("SmolLM2-135M: accuracy of sampled answers", rows, strong=english.ARMS[english.SELF][0])


def accuracy_over_steps_in_english(page: str) -> str:
    """Accuracy of a real language model at the steps that were evaluated."""
    rows = table(page, "Accuracy over steps in English")
    return english.figure(
        {name: {int(column.removeprefix("step ")): e for column, e in row.items()} for name, row in rows.items()}
    )


def _places(title: str, rows: dict, strong: str | None) -> str:
    return svg.intervals(title, rows, [_IN, _OUT], strong=strong)


def accuracy_over_steps(page: str) -> str:
    """Accuracy at the steps that were evaluated; step 0 is the base's, in the table of methods."""
    start = table(page, "Methods")["base"][_IN]
    columns = {10: "accuracy at step 10", 20: "20", 30: "30", 40: "40"}
    lines = {}
    for name, row in table(page, "Accuracy over steps").items():
        lines[name] = ([0, *columns], [start, *(row[column] for column in columns.values())])
    return curves.figure(lines)


def flawed_references(page: str) -> str:
    """OPSD and RCSD as references get worse."""
    return noise.figure(
        {float(share.removesuffix("%")): row for share, row in table(page, "Flawed references").items()}
    )


def accuracy_against_tokens(page: str) -> str:
    """Tokens that were spent when a method reached an accuracy."""
    columns = {60: "all tokens to 60%", 70: "all to 70%", 80: "all to 80%"}
    rows = table(page, "Accuracy against tokens")
    return cost.figure({name: {t: row[c].mean for t, c in columns.items() if c in row} for name, row in rows.items()})


def rollouts(page: str) -> str:
    """Rollouts of several batches, without and with importance weights; with one batch the weights are 1."""
    rows = {name: row[_IN] for name, row in table(page, "Rollouts of several batches").items()}
    plain = {int(name): accuracy for name, accuracy in rows.items() if name.isdigit()}
    weighted = {int(name.split(",")[0]): accuracy for name, accuracy in rows.items() if not name.isdigit()}
    return staleness.figure({"no weights": plain, "importance weights": {1: plain[1]} | weighted})


FIGURES: dict[str, Callable[[str], str]] = {
    "methods": methods,
    "divergences": divergences,
    "curves": accuracy_over_steps,
    "rubrics": rubrics,
    "sizes": sizes,
    "larger_teacher": larger_teacher,
    "noise": flawed_references,
    "family": family,
    "leakage": accuracy_against_leakage,
    "long_solutions": long_solutions,
    "repairs": repairs,
    "english": problems_in_english,
    "english_curves": accuracy_over_steps_in_english,
    "cost": accuracy_against_tokens,
    "staleness": rollouts,
}


def main() -> None:
    """Draws every figure again."""
    page = PAGE.read_text(encoding="utf-8")
    for name, draw in FIGURES.items():
        svg.save(draw(page), FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
