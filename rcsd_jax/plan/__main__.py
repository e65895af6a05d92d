"""`python -m rcsd_jax.plan --config=configs/stage2.py --topology=v5e:4x4 [--json[=FILE]] [--config.key=value ...]`.

Asks the TPU compiler what a run needs on a slice: memory, modelled time, cost. No TPU and no weights are needed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before JAX is imported: nothing runs on a device, and libtpu must not look for the metadata of a cloud machine.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # several plans at once, or next to a run: no device is opened
os.environ["TPU_ACCELERATOR_TYPE"], os.environ["TPU_WORKER_HOSTNAMES"] = "v5litepod-16", "localhost"  # else it warns

from absl import app, flags, logging
from ml_collections import config_flags

from rcsd_jax.cli.flag_parser import one_config, parser
from rcsd_jax.cli.run_program import without_torch
from rcsd_jax.host import compiled_programs
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys, sizes

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(); see configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The slice: v5e:4x4, v5p:2x2x2, ...; by default the slice of the config's size."
)
_JSON = flags.DEFINE_string(
    "json", None, "Write JSON to this file; --json without a file prints it instead of the table."
)
_ONLY = flags.DEFINE_list("only", None, "Compile only these programs.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch and completion that fit; takes minutes more.")
_LENGTHS = flags.DEFINE_string(
    "lengths",
    None,
    "Also say what a step is expected to take on lengths like these: a histogram in a JSON file, or the name of one that ships, "
    "such as rar_science; takes minutes more. Whether the run fits is still said of the longest.",
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "A folder that keeps the compiler's answers for later plans, or 'off'; by default the user's cache.",
)
_DECODE_STEPS = flags.DEFINE_integer(
    "decode_steps", None, "Tokens of a batch's longest completion; by default sampling.max_new_tokens.", lower_bound=1
)


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config = one_config(argv, _CONFIG.value, example="configs/stage2.py")
    config_flag: Any = flags.FLAGS["config"]  # of `config_flags`
    filename: str = config_flag.config_filename
    topology = _TOPOLOGY.value or sizes.topology(filename.partition(":")[2])
    if topology is None:
        raise UserError("no slice given", field="--topology", remedy="pass --topology=v5e:4x4")
    logging.set_verbosity(logging.ERROR)
    from rcsd_jax.plan import chips, lengths, report  # they import JAX, which takes seconds: flags are read before
    from rcsd_jax.plan.stage import plan_stage, without_data
    from rcsd_jax.settings.unpack import unpack

    chips.open_topology(topology)  # known before what the config lacks is
    histogram = lengths.read(_LENGTHS.value) if _LENGTHS.value else None
    stages = {name: unpack(without_data(stage)) for name, stage in keys.stages_of(config)}
    console = Console()
    progress = Console(stderr=True)
    results = {}
    settings: dict[str, Any] = dict(
        progress=lambda line: progress.print(line, style="dim", soft_wrap=True),
        folder=compiled_programs.folder_of_plans(_COMPILATION_CACHE.value),
        only=_ONLY.value,
        search=_SEARCH.value,
        decode_steps=_DECODE_STEPS.value,
        lengths=histogram,
    )
    for name, stage in stages.items():
        title = {"config": filename, "stage": name, "topology": topology, "model": stage.model.path}
        results[name] = plan_stage(stage, topology, title=title, **settings)
        if _JSON.value != "-":
            report.print_report(console, results[name])
    text = json.dumps(results[""] if "" in results else results, indent=1)
    if _JSON.value == "-":
        print(text)
    elif _JSON.value:
        Path(_JSON.value).write_text(text + "\n", encoding="utf-8")


def run() -> None:
    """Runs the program; a `UserError` becomes one line on stderr and exit status 2."""
    without_torch()
    argv = ["--json=-" if a == "--json" else a for a in sys.argv]
    try:
        app.run(main, argv=argv, flags_parser=parser("rcsd_jax.plan", __doc__ or ""))
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    run()
