"""`python -m rcsd_jax.plan --config=configs/stage2.py --topology=v5e:4x4 [--json[=FILE]] [--config.key=value ...]`.

Asks the TPU compiler what a run needs on a slice: memory, modelled time, cost. No TPU and no weights are needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before JAX is imported: nothing runs on a device, and libtpu must not look for the metadata of a cloud machine.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # several plans at once, or beside a run: no device is opened
os.environ["TPU_ACCELERATOR_TYPE"], os.environ["TPU_WORKER_HOSTNAMES"] = "v5litepod-16", "localhost"  # else it warns

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rcsd_jax.cli import command_line
from rcsd_jax.host import compiled_programs
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys, sizes

if TYPE_CHECKING:
    from rcsd_jax.settings.stage import Settings

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(); see configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The slice: v5e:4x4, v5p:2x2x2, ...; by default that of the config's size."
)
_JSON = flags.DEFINE_string("json", None, "Write JSON to this file; --json alone prints it instead of the table.")
_ONLY = flags.DEFINE_list("only", None, "Compile only these programs.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch and completion that fit; takes minutes more.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "A folder that keeps the compiler's answers for later plans, or 'off'; by default the user's cache.",
)
_DECODE_STEPS = flags.DEFINE_integer(
    "decode_steps", None, "Tokens of a batch's longest completion; by default sampling.max_new_tokens.", lower_bound=1
)


def plan_stage(
    config: Settings,
    topology: str,
    title: dict[str, Any],
    report: Callable[[str], None],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Plans one stage; returns what `report.as_json` documents, with "largest" after a search. `folder` keeps the compiler's answers.

    Raises:
      UserError: settings that cannot run, an unknown slice or model, or libtpu is missing.
    """
    from rcsd_jax.plan import chips, largest, measure, programs
    from rcsd_jax.plan import report as reports

    names = [name.strip() for name in _ONLY.value or programs.NAMES]
    for name in names:
        if name not in programs.NAMES:
            remedy = f"use some of {', '.join(programs.NAMES)}"
            raise UserError("no such program", field="--only", value=name, remedy=remedy)
    chip, devices = chips.chip_of(topology), chips.open_topology(topology)
    planned = programs.plan(config, devices)
    names = [name for name in names if name in planned.programs]  # a method may do without a teacher
    settings: dict[str, Any] = dict(decode_steps=_DECODE_STEPS.value, report=report, folder=folder)
    measured = measure.measure(planned, chip, names, **settings)
    data = reports.as_json(planned, chip, measured, title=title)
    if _SEARCH.value:
        step = measured.get("train step")
        own = step.memory.needed if step and step.memory else None
        data["largest"] = largest.search(config, devices, chip.capacity, report, own=own, folder=folder)
    return data


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config = command_line.one_config(argv, _CONFIG.value, example="configs/stage2.py")
    config_flag: Any = flags.FLAGS["config"]  # of `config_flags`
    filename: str = config_flag.config_filename
    topology = _TOPOLOGY.value or sizes.topology(filename.partition(":")[2])
    if topology is None:
        raise UserError("no slice given", field="--topology", remedy="pass --topology=v5e:4x4")
    logging.set_verbosity(logging.ERROR)
    from rcsd_jax.plan import chips, report  # late: JAX takes a second to import
    from rcsd_jax.settings.unpack import unpack

    chips.open_topology(topology)  # known before what the config lacks is
    stages = {name: unpack(_without_data(stage)) for name, stage in keys.stages_of(config)}
    console = Console()
    progress = Console(stderr=True)
    results, folder = {}, compiled_programs.folder_of_plans(_COMPILATION_CACHE.value)
    for name, stage in stages.items():
        title = {"config": filename, "stage": name, "topology": topology, "model": stage.model.path}
        results[name] = plan_stage(
            stage, topology, title, lambda line: progress.print(line, style="dim", soft_wrap=True), folder
        )
        if _JSON.value != "-":
            report.print_report(console, results[name])
    text = json.dumps(results[""] if "" in results else results, indent=1)
    if _JSON.value == "-":
        print(text)
    elif _JSON.value:
        Path(_JSON.value).write_text(text + "\n", encoding="utf-8")


def _without_data(stage: ConfigDict) -> ConfigDict:
    """The stage's config; data and rubric writer, which no program depends on, need not be named."""
    stage = stage.copy_and_resolve_references()
    for section, key in (("data", "path"), ("rubric", "writer")):
        stage[section][key] = stage[section][key] or "(not read by the planner)"
    return stage


def run() -> None:
    """Runs the program; a `UserError` becomes one line on stderr and exit status 2."""
    command_line.without_torch()
    argv = ["--json=-" if a == "--json" else a for a in sys.argv]
    try:
        app.run(main, argv=argv, flags_parser=command_line.parser("rcsd_jax.plan", __doc__ or ""))
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    run()
