"""`python -m rcsd_jax.check --config=configs/stage2.py:qwen3_8b --workdir=DIR [--json[=FILE]] [--config.key=value ...]`.

Runs the config's own programs in small on the devices that are there, and compares them with what they should do: kernels,
collectives, sampler and trainer, time and memory, checkpoints. It needs no data, and trains nothing. Exit status 1: something failed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from absl import flags

from rcsd_jax import main as job_flags
from rcsd_jax.cli.run_program import run_program
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys

_STAGE = flags.DEFINE_string("stage", None, "Of a config with several stages, the one to check; by default the last.")
_JSON = flags.DEFINE_string(
    "json", None, "Write check.json to this file too; --json without a file prints it instead of the table."
)
_ONLY = flags.DEFINE_list("only", None, "Check only these parts, such as kernels,collectives.")
_FULL = flags.DEFINE_bool(
    "full", False, "Run the programs on prompts and completions as long as the config allows; takes minutes more."
)


def main(argv: list[str]) -> int:
    """The entry point after flags were read, which are those of `rcsd_jax.main` and a few more; the exit status."""
    config, workdir = job_flags.start(argv, example="configs/tiny.py", trains=False)
    began = time.monotonic()
    # They import JAX, which takes seconds: bad flags are reported before.
    from rcsd_jax.check import report, stage
    from rcsd_jax.check.finding import FAILED, total
    from rcsd_jax.host import multihost
    from rcsd_jax.plan.stage import without_data
    from rcsd_jax.settings.unpack import unpack

    stages = {name: unpack(without_data(of)) for name, of in keys.stages_of(config)}
    name = _STAGE.value or list(stages)[-1]
    if name not in stages:
        remedy = f"use one of {', '.join(stages)}" if "" not in stages else "leave it out: the config has one stage"
        raise UserError("no such stage", field="--stage", value=name, remedy=remedy)
    printed = multihost.is_main()
    progress = Console(stderr=True, quiet=not printed)
    findings = stage.check_stage(
        stages[name],
        workdir,
        stages,
        only=_ONLY.value,
        full=_FULL.value,
        progress=lambda line: progress.print(f"checking: {line}", style="dim", soft_wrap=True),
    )
    config_flag: Any = flags.FLAGS["config"]  # of `config_flags`
    title = {
        "config": config_flag.config_filename,
        "stage": name,
        "model": stages[name].model.path,
        "full": _FULL.value,
    }
    if printed:
        report.write(findings, workdir, title, seconds=time.monotonic() - began, json_file=_JSON.value)
    return int(total(findings) == FAILED)


if __name__ == "__main__":
    sys.argv = ["--json=-" if argument == "--json" else argument for argument in sys.argv]
    run_program(main, "rcsd_jax.check", __doc__ or "")
