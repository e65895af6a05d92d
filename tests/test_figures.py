"""The figures of the measurements are those of the tables that stand on their page, and show the numbers that they are given."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from experiments import cost, curves, family, figures, noise, svg, tables
from experiments.statistics import Estimate


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_that_of_its_table(name):
    page = figures.PAGE.read_text(encoding="utf-8")
    assert f"(figures/{name}.svg)" in page
    drawn = figures.FIGURES[name](page)
    assert (figures.FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run python -m experiments.figures"
    assert len(drawn) < 12_000 and "prefers-color-scheme: dark" in drawn
    ElementTree.fromstring(drawn)


def test_the_page_shows_no_other_figure():
    shown = re.findall(r"!\[.+?\]\(figures/(\w+)\.svg\)", figures.PAGE.read_text(encoding="utf-8"))
    of_benchmarks = (figures.PAGE.parent / "bench" / "README.md").read_text(encoding="utf-8")
    others = re.findall(r"!\[.+?\]\(\.\./figures/(\w+)\.svg\)", of_benchmarks)
    kept = sorted(path.stem for path in figures.FOLDER.glob("*.svg"))
    assert sorted(shown) == sorted(figures.FIGURES) and sorted([*shown, *others]) == kept


def test_tables_are_read_with_their_intervals():
    page = "\n## A\n\ntext\n\n| | x | y |\n|---|---|---|\n| one | 84.0 ± 3.5 | – |\n| two | -1.5 | |\n\n| | z |\n|---|---|\n\n## B\n"
    found = figures.table(page, "A")
    assert found["one"] == {"x": Estimate(84.0, 3.5, 0)} and found["two"]["x"].mean == -1.5
    for heading in ("B", "C"):
        with pytest.raises(ValueError, match=heading):
            figures.table(page, heading)


def marks(text):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)" r="3', text)]


def test_marks_stand_at_their_means_and_bars_end_at_their_intervals():
    rows = {"a & b": {"x": Estimate(0, 2, 5)}, "c": {"x": Estimate(50, 10, 5)}, "d": {"x": Estimate(100, 5, 5)}}
    drawn = svg.intervals("Title", rows, ["x"], strong="c")
    (zero, _), (half, _), (full, _) = marks(drawn)
    assert half == pytest.approx((zero + full) / 2, abs=0.1) and full == svg.WIDTH - 18
    bars = [(float(a), float(b)) for a, b in re.findall(r'stroke-opacity=".55" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)]
    unit = (full - zero) / 100
    assert bars[0][0] == zero and bars[2][1] == full  # percents end at 0 and at 100
    assert bars[1] == pytest.approx((half - 10 * unit, half + 10 * unit), abs=0.1)
    assert "a &amp; b" in drawn and drawn.count('font-weight="700"') == 1


def test_curves_go_through_their_means_and_names_do_not_overlap():
    lines = {"RCSD": ([0, 10], [Estimate(40, 1, 5), Estimate(80, 1, 5)])}
    lines |= {f"other {i}": ([0, 10], [Estimate(40, 1, 5), Estimate(80, 1, 5)]) for i in range(5)}
    drawn = curves.figure(lines)
    (first, low), (last, high) = marks(drawn)[:2]
    ticks = {n: float(y) - 4 for y, n in re.findall(r'y="([\d.]+)" text-anchor="end">(\d+)<', drawn)}
    assert (low, high) == (pytest.approx(ticks["40"], abs=0.1), pytest.approx(ticks["80"], abs=0.1)) and first < last
    names = sorted(float(y) for y in re.findall(r'<text class="f\d" x="[\d.]+" y="([\d.]+)"', drawn))
    assert len(names) == 6 and min(b - a for a, b in zip(names, names[1:], strict=False)) > 14
    assert drawn.count("fill-opacity") == 1  # one band, of RCSD


def test_points_stand_at_both_means_with_both_intervals_and_names_do_not_overlap():
    accuracies = (50, 50, 51, 80, 80, 81, 79, 50)  # in two crowds
    marks_of = {f"arm {i}": (Estimate(10 + i % 3, 2, 5), Estimate(y, 4, 5)) for i, y in enumerate(accuracies)}
    marks_of["arm 0"] = (Estimate(1, 4, 5), Estimate(50, float("nan"), 1))  # no interval goes below 0
    drawn = svg.points("Title", marks_of, "leakage", "accuracy")
    ElementTree.fromstring(drawn)
    across = {float(n): float(x) for x, n in re.findall(r'x="([\d.]+)" y="355" text-anchor="middle">(\d+)<', drawn)}
    up = {float(n): float(y) - 4 for y, n in re.findall(r'y="([\d.]+)" text-anchor="end">(\d+)<', drawn)}
    x_at = lambda v: across[0] + v * (across[10] - across[0]) / 10
    y_at = lambda v: up[50] + (v - 50) * (up[80] - up[50]) / 30
    bars = re.findall(r'd="M([\d.]+) ([\d.]+)H([\d.]+)M([\d.]+) ([\d.]+)V([\d.]+)"', drawn)
    assert len(marks(drawn)) == len(bars) == 8
    for (x, y), at, bar in zip(marks_of.values(), marks(drawn), bars, strict=True):
        half = 0 if math.isnan(y.half_width) else y.half_width
        low, height, high, middle, under, over = map(float, bar)
        assert at == pytest.approx((x_at(x.mean), y_at(y.mean)), abs=0.1) == (middle, height)
        assert (low, high) == pytest.approx((x_at(max(x.mean - x.half_width, 0)), x_at(x.mean + x.half_width)), abs=0.1)
        assert (under, over) == pytest.approx((y_at(y.mean - half), y_at(y.mean + half)), abs=0.1)
    alike = svg.points("Title", dict.fromkeys(marks_of, (Estimate(0, 0, 5), Estimate(0, 0, 5))), "leakage", "accuracy")
    for text in (drawn, alike):
        names = re.findall(r'<text class="f\d" x="([\d.]+)" y="([\d.]+)">(arm \d)<', text)
        heights = sorted(float(y) for _, y, _ in names)
        assert len({name for *_, name in names}) == 8 and len({x for x, *_ in names}) == 1
        assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 14
        assert 62 < heights[0] and heights[-1] < 346 and float(names[0][0]) + 7 * len("arm 0") <= svg.WIDTH


def test_accuracy_against_leakage_is_drawn_of_the_family_s_rows(tmp_path):
    columns = ("leaks, held out", "leaks, trained on", "100% flawed")
    rows = {
        tables.label(name): {column: Estimate(10 * k + i, 1, 5) for k, column in enumerate(columns)}
        for i, name in enumerate(family.LEAKS)
    }
    found = family.against_leakage(rows, "trained on")
    assert list(found.values())[2] == (Estimate(12, 1, 5), Estimate(22, 1, 5)) and 5 <= len(found) <= 8
    tables.points(tmp_path / "leakage.png", "Title", found, "x", "y")
    assert (tmp_path / "leakage.png").stat().st_size > 10_000
    assert len(marks((tmp_path / "leakage.svg").read_text())) == len(found)


def test_a_single_share_and_a_single_seed_can_be_drawn():
    row = dict.fromkeys(noise.STYLES, Estimate(50.0, float("nan"), 1))
    assert len(marks(noise.figure({100.0: row}))) == 4


def test_milestones_show_the_highest_threshold_that_was_reached_at_once():
    drawn = cost.figure({"GRPO": {60: 9.0, 70: 9.0, 80: 19.2}, "SDPO": {}, "RCSD": {60: 18.7}})
    assert re.findall(r'text-anchor="middle">(\d\d)</text>', drawn)[-3:] == ["70", "80", "60"] and "below 60%" in drawn
