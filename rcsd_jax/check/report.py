"""The check's table and its JSON."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.table
import rich.text

import rcsd_jax
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, WARNING, Finding, total
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import first_line
from rcsd_jax.host.files import AnyPath, write_json

_STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red", NOT_CHECKED: "dim"}
_SAID = {
    OK: "all that was checked is right",
    WARNING: "all results are right; look at the warnings, which are about speed or room",
    FAILED: "do not train on these devices before the lines that failed are mended",
}


def print_table(console: Console, findings: Sequence[Finding], *, title: str) -> None:
    """One row a finding, and the verdict."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    for column in ("part", "checked", "verdict", "measured", "expected"):
        table.add_column(column, overflow="fold")
    before = ""
    for finding in findings:
        part = "" if finding.part == before else finding.part
        before = finding.part
        shown = rich.text.Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(part, finding.name, shown, finding.measured, finding.expected)
    console.print(table)
    verdict = total(findings)
    console.print(f"verdict: {verdict}; {_SAID[verdict]}", style=_STYLES[verdict], soft_wrap=True)


def write(
    findings: Sequence[Finding], workdir: AnyPath, title: Mapping[str, Any], *, seconds: float, json_file: str | None
) -> None:
    """Prints the table, or with `json_file` "-" the JSON, and writes `check.json` into the workdir and to that file."""
    console, data = Console(), as_json(findings, title, seconds)
    if json_file == "-":
        text = json.dumps(data, indent=1)
        print(text)
    else:
        print_table(console, findings, title=f"{title['config']} {title['stage']} on these devices, {seconds:.0f} s")
    if json_file and json_file != "-":
        write_json(Path(json_file), data)
    path = workdir / "check.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, data)
    except Exception as error:  # of a full disk, or of a store's client; a finding says so already
        console.print(f"{path} cannot be written ({first_line(error, 200)})", soft_wrap=True)
        return
    if json_file != "-":
        console.print(f"{path}: all numbers; attach it to a report", soft_wrap=True)


def as_json(findings: Sequence[Finding], title: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The findings as plain data.

    Args:
      findings: all lines.
      title: config, stage and model, as the user named them.
      seconds: that the check took.
    """
    versions = {"rcsd_jax": rcsd_jax.__version__}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = [finding.as_json() for finding in findings]
    return {**title, "verdict": total(findings), "seconds": seconds, "versions": versions, "findings": lines}
