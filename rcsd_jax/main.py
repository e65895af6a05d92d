"""`python -m rcsd_jax.main --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...]`: reads flags, runs stages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rcsd_jax.cli.flag_parser import one_config
from rcsd_jax.cli.join_processes import Processes
from rcsd_jax.cli.run_program import run_program
from rcsd_jax.cli.start import start_job
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.settings import keys

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(); see configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go, a folder or a URL (gs://...); by default runs/<name of the config file>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This process is one of several; on TPU VMs, GKE and SLURM enough."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; also $JAX_COORDINATOR_ADDRESS.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are; also $JAX_NUM_PROCESSES.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; also $JAX_PROCESS_ID.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds without a sign of life after which another process counts as gone.", lower_bound=2
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "A folder or URL that keeps compiled programs for later starts, or 'off'; by default $JAX_COMPILATION_CACHE_DIR, else a "
    "folder of the user's cache, or one next to a workdir behind a URL.",
)
_CHECK = flags.DEFINE_bool("check", False, "Read config, model and data, say what is wrong with them, and stop.")
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print all settings as JSON and stop; with --check, go on to that."
)
_REPORT = flags.DEFINE_bool("report", True, "Write WORKDIR/report.html at the end; see python -m rcsd_jax.report.")


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config, workdir = start(argv, example="configs/tiny.py")
    if only_checks():
        from rcsd_jax.cli.job import check_job  # it imports JAX, as in `run_job`

        check_job(config, workdir)
        return
    run_job(config, workdir, report=_REPORT.value)


def run_job(config: ConfigDict, workdir: AnyPath, *, report: bool = False) -> dict[str, dict]:
    """Runs or continues all stages of a config; see `rcsd_jax.cli.job.run_job`."""
    from rcsd_jax.cli import job  # it imports JAX, which takes seconds: bad flags are reported before

    return job.run_job(config, workdir, report=report)


def start(argv: list[str], *, example: str, trains: bool = True) -> tuple[ConfigDict, AnyPath]:
    """The config, checked, and the workdir that the flags name; the process has joined the others of its job, if any."""
    config = one_config(argv, _CONFIG.value, example=example)
    if _PRINT_CONFIG.value:
        Console().print(keys.to_json(config), soft_wrap=True)
        if not only_checks():
            sys.exit(0)
    config_flag: Any = flags.FLAGS["config"]  # of `config_flags`
    workdir = as_path(_WORKDIR.value or Path("runs") / Path(config_flag.config_filename).stem)
    processes = Processes(
        _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT_TIMEOUT.value
    )
    start_job(
        config,
        workdir,
        trains=trains,
        processes=processes,
        compilation_cache=None if only_checks() else _COMPILATION_CACHE.value,
        quiet=not flags.FLAGS["verbosity"].present,
    )
    return config, workdir


def only_checks() -> bool:
    """Whether the flags ask for nothing but to see that a run could start."""
    return _CHECK.value


if __name__ == "__main__":
    run_program(main, "rcsd_jax.main", __doc__ or "")
