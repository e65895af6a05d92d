"""Figures as small SVG texts: estimates with intervals, curves, points, and milestones, in the reader's light or dark colours.

Every function takes numbers and returns the text of one file. Equal numbers give equal text, so a test can compare a committed
figure with the table it was drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from experiments.statistics import Estimate

WIDTH = 560
"""Narrow enough to be read on a phone, where a page scales it to about 360 pixels."""

_LIGHT = ("#ffffff", "#1c1e21", "#5f6368", "#e2e0da")  # paper, ink, muted, grid
_DARK = ("#16181b", "#e8e6e1", "#a0a5ac", "#33383f")
# Hues that stay apart for colour-blind readers, in an order in which neighbours differ most.
_LIGHT_HUES = ("#1f5fa8", "#b85a00", "#0b7a5c", "#a8458f", "#6b6f76", "#8a6d00", "#2b93b8", "#c23b3b")
_DARK_HUES = ("#82b4f0", "#f0a050", "#4cc9a0", "#e08fcf", "#a9aeb5", "#e0c050", "#6fcbe8", "#f08080")
_LINE = 15  # pixels from one line of text to the next


def intervals(
    title: str, rows: Mapping[str, Mapping[str, Estimate]], columns: Sequence[str], *, strong: str | None = None
) -> str:
    """A line for each row: a mark for each column's mean in percent, and a bar for its 95% interval.

    Args:
      title: over the figure.
      rows: row -> column -> estimate; a column that a row lacks is left out there.
      columns: what is drawn, at most as many as there are hues.
      strong: the row whose name is set in bold.
    """
    left = 14 + round(7 * max(len(name) for name in rows))
    top, step = 34 + _LINE * 2, 11 * len(columns) + 9
    bottom = top + step * len(rows)
    drawn = [_legend(columns, 14, 34 + 8), *_x_axis(left, WIDTH - 18, top, bottom, 0, 100, 20, "percent")]
    across = _scale(0, 100, left, WIDTH - 18)
    for i, (name, row) in enumerate(rows.items()):
        middle = top + step * i + step / 2
        weight = ' font-weight="700"' if name == strong else ""
        drawn.append(f'<text x="{left - 8}" y="{_n(middle + 4)}" text-anchor="end"{weight}>{escape(name)}</text>')
        for k, column in enumerate(columns):
            if column in row:
                y = middle + 11 * (k - (len(columns) - 1) / 2)
                drawn.append(_mark(row[column], across, y, k))
    return _file(title, bottom + 38, drawn)


def curves(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[Estimate]]],
    x_label: str,
    y_label: str,
    *,
    strong: str | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    styles: Mapping[str, tuple[int, bool]] | None = None,
) -> str:
    """Curves, each named at its end. Bands show 95% intervals: of all curves up to four, of `strong` only where there are more.

    Args:
      title: over the figure.
      lines: name -> (x, estimate at each x).
      x_label: below the axis.
      y_label: above the axis.
      strong: the curve that is drawn thicker.
      bounds: of what is measured; no band reaches beyond them.
      styles: name -> (hue, dashed), where the order of the curves does not decide.
    """
    styles = styles or {name: (i % len(_LIGHT_HUES), False) for i, name in enumerate(lines)}
    right = WIDTH - 12 - round(7 * max(len(name) for name in lines))
    left, top, bottom = 40, 62, 340
    xs = [x for x, _ in lines.values()]
    first, last = min(min(x) for x in xs), max(max(x) for x in xs)
    banded = list(lines) if len(lines) <= 4 else [name for name in lines if name == strong]
    edges = {
        name: [[min(max(e.mean + sign * _half(e), bounds[0]), bounds[1]) for e in found] for sign in (-1, 1)]
        for name, (_, found) in lines.items()
    }
    shown = [y for name in banded for edge in edges[name] for y in edge] + [
        e.mean for _, es in lines.values() for e in es
    ]
    rung = _rung(max(shown) - min(shown))
    floor, ceiling = rung * math.floor(min(shown) / rung), rung * math.ceil(max(shown) / rung)
    across, up = _scale(first, last, left, right), _scale(floor, ceiling, bottom, top)
    drawn = _x_axis(left, right, top, bottom, first, last, _rung(last - first), x_label, grid=False)
    drawn.append(f'<text class="m" x="{left - 26}" y="{top - 14}">{escape(y_label)}</text>')
    for value in _ticks(floor, ceiling, rung):
        drawn.append(f'<path class="g" d="M{left} {_n(up(value))}H{right}"/>')
        drawn.append(f'<text class="m" x="{left - 6}" y="{_n(up(value) + 4)}" text-anchor="end">{_n(value)}</text>')
    for name in banded:
        x, (under, over) = lines[name][0], edges[name]
        around = [*zip(x, over, strict=True), *reversed(list(zip(x, under, strict=True)))]
        path = "L".join(f"{_n(across(a))} {_n(up(b))}" for a, b in around)
        drawn.append(f'<path class="f{styles[name][0]}" fill-opacity=".13" d="M{path}Z"/>')
    ends = _apart([up(found[-1].mean) for _, found in lines.values()], _LINE)
    for (name, (x, found)), end in zip(lines.items(), ends, strict=True):
        points = [(_n(across(a)), _n(up(e.mean))) for a, e in zip(x, found, strict=True)]
        hue, dashed = styles[name]
        width, weight = ("2.6", ' font-weight="700"') if name == strong else ("1.6", "")
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        path = "L".join(f"{a} {b}" for a, b in points)
        drawn.append(f'<path class="s{hue}" fill="none" stroke-width="{width}"{dashes} d="M{path}"/>')
        drawn += [f'<circle class="f{hue}" cx="{a}" cy="{b}" r="3"/>' for a, b in points if len(points) < 12]
        drawn.append(f'<text class="f{hue}" x="{right + 8}" y="{_n(end + 4)}"{weight}>{escape(name)}</text>')
    return _file(title, bottom + 38, drawn)


def points(title: str, marks: Mapping[str, tuple[Estimate, Estimate]], x_label: str, y_label: str) -> str:
    """A mark for each pair of percentages, with a bar for each one's 95% interval; its name stands at the right, at the end of a thin line.

    Args:
      title: over the figure.
      marks: name -> (x, y); at most as many as there are hues.
      x_label: below the axis, which begins at 0.
      y_label: above the axis.
    """
    left, top, bottom = 40, 62, 340
    right = WIDTH - 34 - round(7 * max(len(name) for name in marks))
    reach = lambda found: [min(max(found.mean + sign * _half(found), 0), 100) for sign in (-1, 1)]
    xs, ys = (sorted(end for pair in marks.values() for end in reach(pair[axis])) for axis in (0, 1))
    rung, x_rung = _rung(ys[-1] - ys[0]), _rung(xs[-1])
    floor, ceiling = rung * math.floor(ys[0] / rung), rung * math.ceil(ys[-1] / rung) or rung
    last = x_rung * math.ceil(xs[-1] / x_rung) or x_rung
    across, up = _scale(0, last, left, right), _scale(floor, ceiling, bottom, top)
    drawn = _x_axis(left, right, top, bottom, 0, last, x_rung, x_label)
    drawn.append(f'<text class="m" x="{left - 26}" y="{top - 14}">{escape(y_label)}</text>')
    for value in _ticks(floor, ceiling, rung):
        drawn.append(f'<path class="g" d="M{left} {_n(up(value))}H{right}"/>')
        drawn.append(f'<text class="m" x="{left - 6}" y="{_n(up(value) + 4)}" text-anchor="end">{_n(value)}</text>')
    named = _apart([up(y.mean) for _, y in marks.values()], _LINE)
    inside = max(top - min(named), 0) - max(max(named) - bottom, 0)  # many names at an edge stay beside the plot
    named = [place + inside for place in named]
    for k, ((name, (x, y)), end) in enumerate(zip(marks.items(), named, strict=True)):
        at, height = _n(across(x.mean)), _n(up(y.mean))
        (a, b), (c, d) = ([_n(across(v)) for v in reach(x)], [_n(up(v)) for v in reach(y)])
        drawn.append(
            f'<path class="s{k}" stroke-opacity=".35" stroke-width=".8" d="M{at} {height}L{right + 18} {_n(end)}"/>'
        )
        drawn.append(f'<path class="s{k}" stroke-opacity=".55" stroke-width="2" d="M{a} {height}H{b}M{at} {c}V{d}"/>')
        drawn.append(f'<circle class="f{k}" cx="{at}" cy="{height}" r="3.6"/>')
        drawn.append(f'<text class="f{k}" x="{right + 22}" y="{_n(end + 4)}">{escape(name)}</text>')
    return _file(title, bottom + 38, drawn)


def milestones(title: str, rows: Mapping[str, Mapping[int, float]], x_label: str, *, strong: str | None = None) -> str:
    """When each row first reached a threshold: a circle on its line holds the highest threshold reached there.

    Args:
      title: over the figure.
      rows: row -> threshold in percent -> where it was reached; a threshold that was not reached is left out.
      x_label: below the axis.
      strong: the row whose name is set in bold.
    """
    left = 14 + round(7 * max(len(name) for name in rows))
    top, step = 46, 26
    bottom = top + step * len(rows)
    thresholds = sorted({threshold for row in rows.values() for threshold in row})
    most = max(value for row in rows.values() for value in row.values())
    rung = _rung(most)
    last = rung * math.ceil(most / rung)
    drawn = _x_axis(left, WIDTH - 18, top, bottom, 0, last, rung, x_label)
    across = _scale(0, last, left, WIDTH - 18)
    for i, (name, row) in enumerate(rows.items()):
        y = top + step * i + step / 2
        weight = ' font-weight="700"' if name == strong else ""
        drawn.append(f'<text x="{left - 8}" y="{_n(y + 4)}" text-anchor="end"{weight}>{escape(name)}</text>')
        highest = {value: threshold for threshold, value in sorted(row.items())}
        if highest:
            drawn.append(f'<path class="g" d="M{left} {_n(y)}H{_n(across(max(highest)))}" stroke-width="2"/>')
        for value, threshold in highest.items():
            x, k = _n(across(value)), thresholds.index(threshold)
            drawn.append(f'<circle class="f{k}" cx="{x}" cy="{_n(y)}" r="10.5"/>')
            drawn.append(f'<text class="p" x="{x}" y="{_n(y + 4)}" text-anchor="middle">{threshold}</text>')
        if not highest:
            drawn.append(f'<text class="m" x="{left + 6}" y="{_n(y + 4)}">below {thresholds[0]}%</text>')
    return _file(title, bottom + 38, drawn)


def save(text: str, path: Path) -> None:
    """Writes a figure, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- parts of a figure -----------------------------------------------------------------------------------------------


def _file(title: str, height: float, drawn: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH}" height="{_n(height)}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">'
    )
    style = f"<style>{_style(_LIGHT, _LIGHT_HUES)}@media (prefers-color-scheme: dark){{{_style(_DARK, _DARK_HUES)}}}</style>"
    paper = f'<rect class="paper" width="{WIDTH}" height="{_n(height)}" rx="6"/>'
    heading = f'<text x="14" y="22" font-size="14" font-weight="600">{escape(title)}</text>'
    return "\n".join([head, style, paper, heading, *drawn, "</svg>", ""])


def _style(colours: Sequence[str], hues: Sequence[str]) -> str:
    paper, ink, muted, grid = colours
    rules = f"text{{fill:{ink}}}.paper,text.p{{fill:{paper}}}text.m{{fill:{muted}}}.g{{stroke:{grid}}}"
    return rules + "".join(f".f{i},text.f{i}{{fill:{h}}}.s{i}{{stroke:{h}}}" for i, h in enumerate(hues))


def _x_axis(
    left: float,
    right: float,
    top: float,
    bottom: float,
    first: float,
    last: float,
    rung: float,
    label: str,
    grid: bool = True,
) -> list[str]:
    across, drawn = _scale(first, last, left, right), []
    for value in _ticks(first, last, rung):
        x = _n(across(value))
        if grid:
            drawn.append(f'<path class="g" d="M{x} {top}V{bottom}"/>')
        drawn.append(f'<text class="m" x="{x}" y="{bottom + 15}" text-anchor="middle">{_n(value)}</text>')
    drawn.append(
        f'<text class="m" x="{_n((left + right) / 2)}" y="{bottom + 31}" text-anchor="middle">{escape(label)}</text>'
    )
    return drawn


def _legend(names: Sequence[str], x: float, y: float) -> str:
    drawn = []
    for k, name in enumerate(names):
        drawn.append(f'<circle class="f{k}" cx="{_n(x + 4)}" cy="{y}" r="4"/>')
        drawn.append(f'<text class="m" x="{_n(x + 13)}" y="{y + 4}">{escape(name)}</text>')
        x += 36 + 6.2 * len(name)
    return "\n".join(drawn)


def _mark(found: Estimate, across: Callable[[float], float], y: float, k: int) -> str:
    ends = [_n(across(min(max(found.mean + sign * _half(found), 0), 100))) for sign in (-1, 1)]
    bar = f'<path class="s{k}" stroke-width="2" stroke-opacity=".55" d="M{ends[0]} {_n(y)}H{ends[1]}"/>'
    return f'{bar}<circle class="f{k}" cx="{_n(across(found.mean))}" cy="{_n(y)}" r="3.6"/>'


def _half(found: Estimate) -> float:
    return 0.0 if math.isnan(found.half_width) else found.half_width


def _scale(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of [first, last] to [start, end]."""
    return lambda value: start + (end - start) * (value - first) / ((last - first) or 1)


def _rung(span: float) -> float:
    """A round distance between ticks: 3 to 8 ticks fit into the span."""
    size = 10 ** math.floor(math.log10(span or 1))
    return next((size * factor for factor in (0.2, 0.25, 0.5, 1, 2) if span / (size * factor) <= 6), 2 * size)


def _ticks(first: float, last: float, rung: float) -> list[float]:
    start = math.ceil(first / rung - 1e-9)
    return [rung * i for i in range(start, math.floor(last / rung + 1e-9) + 1)]


def _apart(places: Sequence[float], distance: float) -> list[float]:
    """The places moved as little as is needed to stand that far from each other, in their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for _ in range(100):
        moved = False
        for a, b in zip(order, order[1:], strict=False):
            lack = distance - (found[b] - found[a])
            if lack > 1e-6:
                found[a], found[b], moved = found[a] - lack / 2, found[b] + lack / 2, True
        if not moved:
            break
    return found


def _n(value: float) -> str:
    """A number with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 0.05 or value == 0 else f"{value:.3g}"
