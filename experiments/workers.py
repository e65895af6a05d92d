"""Runs by several processes, each on its own share of the cores: small models gain more from that than from threads."""

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
_ASK_SECONDS = 0.5  # between two looks at signals and at processes that died


class Task(NamedTuple):
    """A stage's run: its configuration, its folder, its name in what is printed, and where runs share written rubrics."""

    config: ConfigDict
    place: Path
    name: str
    rubrics: Path | None = None


Work = Callable[[Task, Console, StopRequest], Any]


def usable_cores() -> list[int]:
    """Those that this process may run on."""
    return sorted(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


def run_all(
    tasks: Sequence[Task], work: Work, prepare: Callable[[], None], *, count: int, console: Console,
    stop: StopRequest,
) -> None:  # fmt: skip
    """Does `work` on every task, in `count` processes on the CPU, and says when one is done.

    Args:
      tasks: in any order; none needs another.
      work: a function of a module.
      prepare: another, called in every process before its first task.
      count: of processes.
      console: for a line whenever a task is done.
      stop: whoever asks it, asks the processes.

    Raises:
      UserError: of the first task that fails so, or a process died. Preempted: asked to stop. In both cases the others have
      saved their state and ended.
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
        waiting.cancel_join_thread()  # tasks that nobody takes any more would keep this process from ending
        for process in processes:
            process.terminate()  # those at work save first; those that are done have ended
        for process in processes:
            process.join()


def _next(said, processes: Sequence[BaseProcess], stop: StopRequest) -> tuple[str, str | None]:
    """What a process says next: a task's name, and what went wrong."""
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
