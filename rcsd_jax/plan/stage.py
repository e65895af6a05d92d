"""The plan of one stage: its programs compiled for a slice, measured, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.host.errors import UserError
from rcsd_jax.plan import chips, expected, largest, measure, programs, report
from rcsd_jax.plan.lengths import Histogram
from rcsd_jax.plan.planned import NAMES
from rcsd_jax.settings.stage import Settings


def plan_stage(
    config: Settings,
    topology: str,
    *,
    title: dict[str, Any],
    progress: Callable[[str], None],
    folder: Path | None = None,
    only: Sequence[str] | None = None,
    search: bool = False,
    decode_steps: int | None = None,
    lengths: Histogram | None = None,
) -> dict[str, Any]:
    """Plans one stage.

    Args:
      config: of the stage.
      topology: the slice, such as "v5e:4x4".
      title: what the plan is of, for its reader.
      progress: is given lines to show meanwhile.
      folder: keeps the compiler's answers; None: nothing does.
      only: the programs to compile; None: all.
      search: find the largest batch and completion that fit.
      decode_steps: tokens of a batch's longest completion; None: the config's limit.
      lengths: what a step on such lengths is expected to take.

    Returns:
      What `report.as_json` documents, with "largest" after a search, and "expected" of `lengths`.

    Raises:
      UserError: settings that cannot run, an unknown slice or model, or libtpu is missing.
    """
    names = [name.strip() for name in only or NAMES]
    for name in names:
        if name not in NAMES:
            remedy = f"use some of {', '.join(NAMES)}"
            raise UserError("no such program", field="--only", value=name, remedy=remedy)
    chip, devices = chips.chip_of(topology), chips.open_topology(topology)
    planned = programs.plan(config, devices)
    if lengths:
        expected.check(config, lengths)
    names = [name for name in names if name in planned.programs]  # a method may do without a teacher
    measured = measure.measure(planned, chip, names, decode_steps=decode_steps, report=progress, folder=folder)
    data = report.as_json(planned, chip, measured, title=title)
    if search:
        step = measured.get("train step")
        own = step.memory.needed if step and step.memory else None  # else it is asked for
        data["largest"] = largest.search(config, devices, chip.capacity, progress, own=own, folder=folder)
    if lengths:
        data["expected"] = expected.expected(config, devices, chip, lengths, progress=progress, folder=folder)
    return data


def without_data(stage: ConfigDict) -> ConfigDict:
    """The stage's config; data and rubric writer, which no program depends on, need not be named."""
    stage = stage.copy_and_resolve_references()
    for section, key in (("data", "path"), ("rubric", "writer")):
        stage[section][key] = stage[section][key] or "(not read by the planner)"
    return stage
