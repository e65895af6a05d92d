"""Collects and writes the report of a workdir."""

from __future__ import annotations

from rcsd_jax.host.console import Console
from rcsd_jax.host.files import AnyPath, write_text
from rcsd_jax.report.collect import collect
from rcsd_jax.report.page import render


def report_path(workdir: AnyPath) -> AnyPath:
    """The path of a run's report."""
    return workdir / "report.html"


def write_report(workdir: AnyPath, *, tokens: bool = True, console: Console | None = None) -> AnyPath:
    """Writes `report.html` into a run's workdir and returns its path; see `collect.collect`."""
    path = report_path(workdir)
    write_text(path, render(collect(workdir, tokens=tokens, console=console)))
    return path
