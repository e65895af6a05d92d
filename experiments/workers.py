"""Runs tasks in several processes, each on its own share of the cores. Small models gain more from this than from threads."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import Preempted, UserError
from rcsd_jax.host.preemption import StopRequest

MOST_BY_DEFAULT = 4  # each takes up to 2 GiB of memory
_ASK_SECONDS = 0.5  # seconds between two checks for signals and dead processes


class Task(NamedTuple):
    """A stage's run: its configuration, its folder, its printed name, and the place where runs share written rubrics."""

    config: ConfigDict
    place: Path
    name: str
    rubrics: Path | None = None


Work = Callable[[Task, Console, StopRequest], Any]


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


def run_all(
    tasks: Sequence[Task], work: Work, prepare: Callable[[], None], *, count: int, console: Console,
    stop: StopRequest,
) -> None:  # fmt: skip
    """Does `work` on every task, in `count` processes on the CPU, and prints a line when a task is done.

    Args:
      tasks: independent tasks, in any order.
      work: a function at the top level of a module.
      prepare: another such function, called in every process before its first task.
      count: the number of processes.
      console: where the lines are printed.
      stop: a request to it is passed on to the processes.

    Raises:
      UserError: the error of the first task that fails, or a process died. Preempted: a stop was requested. In both cases the
        other processes have saved their state and ended.
    """
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    waiting, said = context.Queue(), context.Queue()
    for task in tasks:
        waiting.put(task)
    cores = usable_cores()
    processes = []
    for i in range(min(count, len(tasks))):
        waiting.put(None)
        share = cores[i::count] or cores
        process = context.Process(target=_serve, args=(waiting, said, work, prepare, share), daemon=True)
        process.start()
        processes.append(process)
    try:
        for done in range(1, len(tasks) + 1):
            name, problem = _next(said, processes, stop)
            if problem is not None:
                raise UserError(problem, remedy="the same command continues", field=name)
            console.print(f"{name}: done, {done} of {len(tasks)}")
    finally:
        waiting.cancel_join_thread()  # remaining tasks in the queue would keep this process from ending
        for process in processes:
            process.terminate()  # busy processes save first; the others have ended
        for process in processes:
            process.join()


def _next(said, processes: Sequence[BaseProcess], stop: StopRequest) -> tuple[str, str | None]:
    """The next message of a process: a task's name, and the error if there was one."""
    while True:
        try:
            return said.get(timeout=_ASK_SECONDS)
        except queue.Empty:
            stop.raise_if_set("every run has saved its state")
            died = [p.exitcode for p in processes if p.exitcode]
            if died:
                problem = f"a process ended with status {died[0]}"
                raise UserError(problem, remedy="see above, or the kernel's log if it was killed") from None


def _serve(waiting, said, work: Work, prepare: Callable[[], None], cores: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX counts them
    jax.config.update("jax_platforms", "cpu")  # an accelerator serves one process
    quiet = Console(quiet=True)
    prepare()
    with StopRequest() as stop:
        for task in iter(waiting.get, None):
            if stop.is_set():
                return
            problem = None
            try:
                work(task, quiet, stop)
            except Preempted:
                return
            except UserError as error:
                problem = str(error)
            said.put((task.name, problem))
