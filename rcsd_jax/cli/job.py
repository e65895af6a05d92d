"""A job: all stages of a config, one after another, and the report of what they did."""

from __future__ import annotations

import resource
import shlex
import time

from ml_collections import ConfigDict

from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import first_line
from rcsd_jax.host.files import AnyPath, as_path, modified
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.report.summary import print_summary
from rcsd_jax.report.write import report_path, write_report
from rcsd_jax.run.check import check_stage
from rcsd_jax.run.stage import run_stage
from rcsd_jax.run.starts import READ
from rcsd_jax.run.tracking import check_installed
from rcsd_jax.run.workdir import check_later_stages
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import check, unpack


def run_job(config: ConfigDict, workdir: AnyPath, *, report: bool = False) -> dict[str, dict]:
    """Runs or continues all stages of `config` under `workdir` and prints the table.

    Args:
      config: of one stage or several.
      workdir: where results go.
      report: write WORKDIR/report.html at the end.

    Returns:
      Stage name -> summary.

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    check(config)
    console = Console(quiet=not multihost.is_main())
    began, results = time.monotonic(), {}
    stages = [(name, with_workdir(stage, workdir)) for name, stage in keys.stages_of(config)]
    check_later_stages([(name, stage.to_dict()) for name, stage in stages], as_path(workdir))
    for name, stage in stages:
        check_installed(unpack(stage, name=name), name)  # of all stages, before the first takes its hours
    with StopRequest() as stop:
        for name, stage in stages:
            stop.raise_if_set(f"before {name}")
            results[name] = run_stage(stage, workdir / name, console, stop, name=name)
    fields = {n: tuple(f for f in s.teacher.fields if f != "question") for n, s in keys.stages_of(config)}
    print_summary(console, results, fields)
    console.print(f"done in {time.monotonic() - began:.0f} s, peak memory {_peak_memory_gib():.1f} GiB")
    if report:
        _write_newer_report(workdir, [workdir / name / "summary.json" for name in results])
    return results


def check_job(config: ConfigDict, workdir: AnyPath) -> None:
    """Checks that all stages could run; nothing is written.

    Raises:
      UserError: what is wrong.
    """
    console = Console(quiet=not multihost.is_main())
    stages = keys.stages_of(config)
    for i, (name, stage) in enumerate(stages):
        earlier = [workdir / before for before, _ in stages[:i]]
        check_stage(unpack(with_workdir(stage, workdir), name=name), console, name, earlier=earlier)
    console.print("checked: config, model and data can be used; nothing was run")


def with_workdir(stage: ConfigDict, workdir: AnyPath) -> ConfigDict:
    """The stage's config with {workdir} in its paths replaced, so that a later stage finds what an earlier one wrote."""
    stage = stage.copy_and_resolve_references()
    for section, key in READ:
        stage[section][key] = stage[section][key].replace("{workdir}", str(workdir))
    for name, path in stage.teacher.paths.items():
        stage.teacher.paths[name] = path.replace("{workdir}", str(workdir))
    return stage


def _write_newer_report(workdir: AnyPath, summaries: list[AnyPath]) -> None:
    """Writes the report unless it is newer than all summaries. If it fails, a line says so: the run itself is complete."""
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


def _peak_memory_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
