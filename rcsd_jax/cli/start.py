"""The start of a job, before any stage: its config is checked, its processes are joined, compiled programs have a place."""

from __future__ import annotations

from absl import logging
from ml_collections import ConfigDict

from rcsd_jax.cli.join_processes import Processes, join_processes
from rcsd_jax.host import compiled_programs
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import AnyPath


def start_job(
    config: ConfigDict,
    workdir: AnyPath,
    *,
    trains: bool,
    processes: Processes,
    compilation_cache: str | None,
    quiet: bool,
) -> None:
    """Starts JAX and what the job needs of it.

    Args:
      config: of the job.
      workdir: where its results go.
      trains: False for a job that only evaluates, and needs no data.
      processes: which there are.
      compilation_cache: as in `compiled_programs.keep`; None leaves JAX as it is.
      quiet: silence what libraries log.

    Raises:
      UserError: settings that no run can have, or processes that cannot be joined.
    """
    if not processes.several:
        Console().print(f"{workdir}: starting JAX", soft_wrap=True)
    if quiet:
        logging.set_verbosity(logging.FATAL)  # orbax tells of every file it writes, and of errors that it raises too
    join_processes(processes)
    from rcsd_jax.settings.unpack import check  # it imports JAX: the line above comes before

    check(config, trains=trains)  # after joining, so that all hear of one that has other settings
    if compilation_cache is not None:
        line = compiled_programs.keep(compilation_cache, workdir)
        from rcsd_jax.host import multihost  # it imports JAX

        if multihost.is_main():
            Console().print(line, soft_wrap=True)
