"""`python -m rcsd_jax.main --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...]`: reads flags, runs stages."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rcsd_jax.cli import command_line
from rcsd_jax.host import distributed
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import Preempted, UserError, WriteFailed, first_line
from rcsd_jax.host.files import AnyPath, as_path, modified
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
    "folder of the user's cache, or one beside a workdir behind a URL.",
)
_CHECK = flags.DEFINE_bool("check", False, "Read config, model and data, say what is wrong with them, and stop.")
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print all settings as JSON and stop; with --check, go on to that."
)
_REPORT = flags.DEFINE_bool("report", True, "Write WORKDIR/report.html at the end; see python -m rcsd_jax.report.")


def run_job(config: ConfigDict, workdir: AnyPath) -> dict[str, dict]:
    """Runs or continues all stages of `config` under `workdir`, prints the table, returns stage name -> summary.

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    from rcsd_jax.host import multihost
    from rcsd_jax.host.preemption import StopRequest
    from rcsd_jax.report.summary import print_summary
    from rcsd_jax.run.stage import run_stage
    from rcsd_jax.run.workdir import check_later_stages
    from rcsd_jax.settings.unpack import check

    check(config)
    console = Console(quiet=not multihost.is_main())
    began, results = time.monotonic(), {}
    stages = [(name, _with_workdir(stage, workdir)) for name, stage in keys.stages_of(config)]
    check_later_stages([(name, stage.to_dict()) for name, stage in stages], as_path(workdir))
    with StopRequest() as stop:
        for name, stage in stages:
            stop.raise_if_set(f"before {name}")
            results[name] = run_stage(stage, workdir / name, console, stop, name=name)
    fields = {n: tuple(f for f in s.teacher.fields if f != "question") for n, s in keys.stages_of(config)}
    print_summary(console, results, fields)
    console.print(f"done in {time.monotonic() - began:.0f} s, peak memory {_peak_memory_gib():.1f} GiB")
    return results


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config, workdir = start(argv, example="configs/tiny.py")
    if only_checks():
        _check(config, workdir)
        return
    results = run_job(config, workdir)
    if _REPORT.value:
        _report(workdir, [workdir / name / "summary.json" for name in results])


def only_checks() -> bool:
    """Whether the flags ask for nothing but to see that a run could start."""
    return _CHECK.value


def _check(config: ConfigDict, workdir: AnyPath) -> None:
    from rcsd_jax.host import multihost
    from rcsd_jax.run.check import check_stage
    from rcsd_jax.settings.unpack import unpack

    console = Console(quiet=not multihost.is_main())
    stages = keys.stages_of(config)
    for i, (name, stage) in enumerate(stages):
        earlier = [workdir / before for before, _ in stages[:i]]
        settings = unpack(_with_workdir(stage, workdir), name=name)
        check_stage(settings, console, name, earlier=earlier)
    console.print("checked: config, model and data can be used; nothing was run")


def _report(workdir: AnyPath, summaries: list[AnyPath]) -> None:
    """Writes the report where none is newer than the runs. What goes wrong there is told, and no reason for a run to fail."""
    from rcsd_jax.host import multihost
    from rcsd_jax.report.write import report_path, write_report

    if not multihost.is_main():
        return
    console = Console()
    path = report_path(workdir)
    try:
        if not path.exists() or modified(path) < max(map(modified, summaries)):
            write_report(workdir, tokens=multihost.count() == 1, console=console)
    except Exception as error:
        problem = f"no report ({type(error).__name__}: {first_line(error, 200)})"
        console.print(f"{problem}; python -m rcsd_jax.report {shlex.quote(str(workdir))} tries again", soft_wrap=True)
        return
    console.print(f"report: {path}", soft_wrap=True)


def start(argv: list[str], *, example: str, trains: bool = True) -> tuple[ConfigDict, AnyPath]:
    """The config, checked, and the workdir that the flags name; the process has joined the others of its job, if any."""
    config = command_line.one_config(argv, _CONFIG.value, example=example)
    if _PRINT_CONFIG.value:
        Console().print(keys.to_json(config), soft_wrap=True)
        if not only_checks():
            sys.exit(0)
    config_flag: Any = flags.FLAGS["config"]  # of `config_flags`
    workdir = as_path(_WORKDIR.value or Path("runs") / Path(config_flag.config_filename).stem)
    if not _DISTRIBUTED.value:
        Console().print(f"{workdir}: starting JAX", soft_wrap=True)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)  # orbax tells of every file it writes, and of errors that it raises too
    _join_processes()
    _check_settings(config, trains)
    if not only_checks():
        _keep_compiled_programs(workdir)
    return config, workdir


def _check_settings(config: ConfigDict, trains: bool) -> None:
    from rcsd_jax.settings.unpack import check  # late: JAX takes a second to import

    check(config, trains=trains)


def _keep_compiled_programs(workdir: AnyPath) -> None:
    from rcsd_jax.host import compiled_programs, multihost

    line = compiled_programs.keep(_COMPILATION_CACHE.value, workdir)
    if multihost.is_main():
        Console().print(line, soft_wrap=True)


def _join_processes() -> None:
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    if not _DISTRIBUTED.value:
        for name in ("coordinator", *names):
            if flags.FLAGS[name].present:
                raise UserError("is of use with several processes alone", field=f"--{name}", remedy="add --distributed")
        return
    numbers = {}
    for name, variable in names.items():
        value = flags.FLAGS[name].value
        try:
            numbers[name] = int(os.environ[variable]) if value is None and variable in os.environ else value
        except ValueError as error:
            problem: dict[str, Any] = dict(field=variable, value=os.environ[variable], remedy="set a number")
            raise UserError("not a number", **problem) from error
    distributed.start(coordinator=_COORDINATOR.value, **numbers, heartbeat_timeout=_HEARTBEAT_TIMEOUT.value)


def _with_workdir(stage: ConfigDict, workdir: AnyPath) -> ConfigDict:
    """The stage's config with {workdir} in its paths replaced, so that a later stage finds what an earlier one wrote."""
    stage = stage.copy_and_resolve_references()
    for section, key in (("model", "path"), ("data", "path"), ("rubric", "writer")):
        stage[section][key] = stage[section][key].replace("{workdir}", str(workdir))
    return stage


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last is the limit of a file's size


def _resource_spent(error: BaseException) -> str | None:
    """What to say of an error that means that memory or disk space ran out, in whatever it is wrapped; else None."""
    if (line := _disk_full(error)) is not None:
        return line
    for cause in _causes(error):
        if "RESOURCE_EXHAUSTED" in str(cause):
            remedy = "raise train.microbatches or the mesh, or lower batch sizes (train, eval, rubric) and token limits"
            return f"out of device memory; {remedy} ({first_line(cause)})"
    return None


def _disk_full(error: BaseException) -> str | None:
    for cause in _causes(error):
        if getattr(cause, "errno", None) in _FULL or any(os.strerror(number) in str(cause) for number in _FULL):
            return f"the disk is full, or a quota reached ({first_line(cause)}); free space, then the same command continues"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those in whose handling it arose."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _peak_memory_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _and_finish(program: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a program; however it ends in all processes alike, they then leave together."""
    try:
        program(argv)
    except Preempted:
        distributed.finish()
        raise
    distributed.finish()


def _end_all(error: Exception) -> None:
    """One of several processes cannot go on: where another one is gone it says so, else its traceback is printed."""
    try:
        distributed.raise_or_end(error)
    except Exception:
        traceback.print_exc()
        distributed.end(f"{type(error).__name__}: {first_line(error)}", 1)


def run(program: Callable[[list[str]], None], name: str, usage: str) -> None:
    """Runs a program of these flags; a `UserError` becomes one line on stderr and exit status 2, a signal status 128 + its
    number.
    """
    command_line.without_torch()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice to install torch would be the first line
    try:
        app.run(functools.partial(_and_finish, program), flags_parser=command_line.parser(name, usage))
    except UserError as error:
        said = (_disk_full(error.__cause__) if error.__cause__ else None) or str(error)
        if distributed.told() or isinstance(error, WriteFailed):
            distributed.end(said, 2)  # threads that were writing would end with tracebacks of their own
        to_stderr(f"error: {said}")
        sys.exit(2)
    except Preempted as stopped:
        to_stderr(f"stopped: {stopped}; the same command continues")
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if (line := _resource_spent(error)) is not None:
            distributed.end(line, 2)
        if distributed.told():
            _end_all(error)
        raise
    except KeyboardInterrupt:  # while nothing ran yet, or a second Ctrl-C
        line = "stopped at once; the same command continues from what was saved"
        if distributed.told():
            distributed.end(line, 128 + signal.SIGINT)
        to_stderr(line)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run(main, "rcsd_jax.main", __doc__ or "")
