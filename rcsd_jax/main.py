"""`python -m rcsd_jax.main --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...]`: reads flags, runs stages."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rcsd_jax import command_line
from rcsd_jax import config as configs
from rcsd_jax.errors import Preempted, UserError
from rcsd_jax.preemption import StopRequest

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(); see configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; by default runs/<name of the config file>.")


def run_job(config: ConfigDict, workdir: Path) -> dict[str, dict]:
    """Runs or continues all stages of `config` under `workdir`, prints the table, returns stage name -> summary.

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    import rich.console

    from rcsd_jax.stage import run_stage
    from rcsd_jax.summary import print_summary

    configs.check(config)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 140)
    began, results = time.monotonic(), {}
    with StopRequest() as stop:
        for name, stage in configs.stages_of(config):
            stop.raise_if_set(f"before {name}")
            results[name] = run_stage(_with_workdir(stage, workdir), workdir / name, console, stop, name=name)
    fields = {n: tuple(f for f in s.teacher.fields if f != "question") for n, s in configs.stages_of(config)}
    print_summary(console, results, fields)
    console.print(
        f"done in {time.monotonic() - began:.0f} s, peak memory {_peak_memory_gib():.1f} GiB", highlight=False
    )
    return results


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    if len(argv) > 1:
        raise UserError(
            "unknown argument", field="argv", value=argv[1], remedy="settings are given as --config.key=value"
        )
    if _CONFIG.value is None:
        raise UserError("no config given", field="--config", remedy="pass --config=configs/tiny.py")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(
            logging.FATAL
        )  # orbax tells of every file it writes, and of errors that it raises as well
    name = Path(flags.FLAGS["config"].config_filename).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name).absolute()
    run_job(_CONFIG.value, workdir)


def _with_workdir(stage: ConfigDict, workdir: Path) -> ConfigDict:
    """The stage's config with {workdir} in its paths replaced, so that a later stage finds what an earlier one wrote."""
    stage = stage.copy_and_resolve_references()
    for section, key in (("model", "path"), ("data", "path"), ("rubric", "writer")):
        stage[section][key] = stage[section][key].replace("{workdir}", str(workdir))
    return stage


def _resource_spent(error: BaseException | None) -> str | None:
    """What to say of an error that means that memory or disk space ran out, in whatever it is wrapped; else None."""
    while error is not None:
        first_line = (str(error).splitlines() or [""])[0]
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return f"the disk is full ({first_line}); free space, then the same command continues"
        if "RESOURCE_EXHAUSTED" in str(error):
            remedy = "raise train.microbatches or the mesh, or lower batch sizes (train, eval, rubric) and token limits"
            return f"out of device memory; {remedy} ({first_line})"
        error = error.__cause__ or error.__context__
    return None


def _peak_memory_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run() -> None:
    """Runs the program; a `UserError` becomes one line on stderr and exit status 2, a signal status 128 + its number."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice to install torch would be the first line
    try:
        app.run(main, flags_parser=command_line.parser("rcsd_jax.main"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stopped:
        print(f"stopped: {stopped}; the same command continues", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except Exception as error:
        line = _resource_spent(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(2)  # threads that write checkpoints would add their own tracebacks
    except KeyboardInterrupt:  # while nothing ran yet, or a second Ctrl-C
        print("stopped at once; the same command continues from what was saved", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run()
