"""Starts and ends the processes of a job together: none of them waits for a process that has failed.

A collective that waits for a missing process may wait forever (TPU), or fail with an error that hides the cause. So every
process has a thread, the watch, that talks to the coordination service of `jax.distributed`. It learns at once of a process that
announced its failure, and within `heartbeat_timeout` of a process that disappeared silently.

Exit statuses: 2 for bad input in any process, 3 if another process is gone, 1 for other exceptions.

JAX, which takes seconds to import, is imported inside the functions that need it, so that bad settings are reported first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from rcsd_jax.host.console import to_stderr
from rcsd_jax.host.errors import UserError, first_line

LOST = 3  # the exit status if another process is gone
_FAILED, _HEARD, _BEAT = "rcsd_jax/failed", "rcsd_jax/heard/", "rcsd_jax/beat/"
_GRACE_S = 5.0  # how long the coordinator stays so that the others learn why it failed
# Words in exceptions of any type (gloo, gRPC, the coordination service) if a process on the other side is gone.
_COMMUNICATION = re.compile(
    r"gloo|coordination|heartbeat|barrier|unavailable|deadline.exceeded|connection (closed|reset)|socket closed", re.I
)

_watch: _Watch | None = None
_keep: list[Any] = []  # C functions must outlive their registration


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 60,
) -> None:
    """Joins the processes of the job. Call it before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0. On TPU VMs, GKE, SLURM and Open MPI all three may be None: JAX finds them.
      num_processes, process_id: the number of processes, and the index of this one.
      heartbeat_timeout: seconds without a sign of life after which a process counts as gone.

    Raises:
      UserError: settings are missing or contradict each other.
    """
    global _watch
    import jax  # late: takes seconds

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is `rcsd_jax.host.preemption`'s
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Twice ours: JAX ends the process with a stack trace, the watch with a line.
            heartbeat_timeout_seconds=2 * heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the processes cannot be joined ({first_line(error)})",
            field="--distributed",
            remedy="give --coordinator=HOST:PORT --num_processes=N --process_id=I (on TPU VMs, GKE and SLURM none of them)",
        ) from error
    if jax.process_count() > 1:
        _watch = _Watch(heartbeat_timeout)
        _watch.start()
        _say_why_on_abort()


def finish() -> None:
    """Leaves the job in order: once all processes arrive here, the watch ends and JAX disconnects."""
    global _watch
    if _watch is None:
        return
    import jax  # late: takes seconds

    try:
        _watch.client.wait_at_barrier("rcsd_jax/finished", timeout_in_ms=_watch.timeout_s * 1000)
    except Exception as error:
        raise_or_end(error)
    _watch.end()
    _watch = None
    jax.distributed.shutdown()


def end(line: str, status: int) -> NoReturn:
    """Prints a line, informs the other processes, and ends this one without waiting for them."""
    if _watch is not None:
        _watch.announce(line, status)
    _exit(line, status)


def raise_or_end(error: BaseException) -> NoReturn:
    """Ends the process with one line if `error` means that another process is gone; raises it otherwise."""
    if _watch is None or not _COMMUNICATION.search(str(error)):
        raise error
    time.sleep(2 * _watch.interval_s)  # if that process announced why it failed, the watch ends this one
    _watch.announce("another process of the job is gone", LOST)
    _exit(_gone("another process of the job", first_line(error, 160)), LOST)


def told() -> bool:
    """Whether other processes must be informed if this one fails."""
    return _watch is not None


def _say_why_on_abort() -> None:
    """Prints a line after JAX's stack trace if the coordinator is gone and JAX aborts the process from its own thread.

    JAX's callback for this cannot be set (in jaxlib 0.10 it fails on its argument), and a handler of `signal` would run
    too late, so this installs a C handler.
    """
    from jax._src import distributed  # the address has no public name, where JAX found it by itself

    assert distributed.global_state.coordinator_address is not None, "JAX has just been started"
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            _exit(_gone("process 0, the coordinator,", "its connection closed"), LOST)
        # The coordinator is there, so the abort has another cause: returning lets it continue.

    _keep.append(on_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)


class _Watch(threading.Thread):
    """Sends beats, and ends this process if another one failed or stopped beating."""

    def __init__(self, timeout_s: int):
        super().__init__(name="watch", daemon=True)
        import jax  # late: takes seconds
        from jax._src import distributed  # the key-value store has no public name

        self.client: Any = distributed.global_state.client
        self.timeout_s, self.interval_s = timeout_s, min(1.0, timeout_s / 6)
        self._me, self._count = jax.process_index(), jax.process_count()
        self._ended, self._ending = threading.Event(), threading.Lock()

    def end(self) -> None:
        """Stops watching; returns when the thread has ended."""
        self._ended.set()
        self.join()

    def announce(self, line: str, status: int) -> None:
        """Tells the others why this process ends; they end with the same line. Only the first announcement counts."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # the watch is ending this process already
        with contextlib.suppress(Exception):  # announced by another, or the coordinator is gone
            self.client.key_value_set(_FAILED, json.dumps([self._me, line, status]))
        deadline = time.monotonic() + _GRACE_S
        while self._me == 0 and time.monotonic() < deadline:  # process 0 is the coordinator: it goes last
            with contextlib.suppress(Exception):
                if len(self.client.key_value_dir_get(_HEARD)) >= self._count - 1:
                    time.sleep(1)  # time for them to end: JAX aborts processes without a coordinator
                    return
            time.sleep(0.05)

    def run(self) -> None:
        """The thread: waits for a failure to be announced, and counts beats in between."""
        beats: dict[str, tuple[str, float]] = {}
        beat = 0
        while not self._ended.is_set():
            try:
                beat += 1
                self.client.key_value_set(f"{_BEAT}{self._me}", str(beat), allow_overwrite=True)
                self._check(beats)
                failed = self.client.blocking_key_value_get(_FAILED, int(1000 * self.interval_s))
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                if not self._ended.is_set() and self._ending.acquire(blocking=False):
                    _exit(_gone("process 0, the coordinator,", "its connection closed"), LOST)
                return
            with contextlib.suppress(Exception):
                self.client.key_value_set(f"{_HEARD}{self._me}", "1", allow_overwrite=True)
            who, line, status = json.loads(failed)
            if who != self._me and self._ending.acquire(blocking=False):
                _exit(f"process {who}: {line}", status)
            return

    def _check(self, beats: dict[str, tuple[str, float]]) -> None:
        now = time.monotonic()
        current = {key.rsplit("/", 1)[-1]: value for key, value in self.client.key_value_dir_get(_BEAT)}
        for process in map(str, range(self._count)):
            value = current.get(process, "")
            if process not in beats or beats[process][0] != value:
                beats[process] = (value, now)
        silent = [p for p, (_, since) in beats.items() if now - since > self.timeout_s]
        if silent and self._ending.acquire(blocking=False):
            what = f"process {', '.join(silent)}"
            _exit(_gone(what, f"no sign of life for {self.timeout_s} s"), LOST)


def _gone(who: str, how: str) -> str:
    return f"{who} is gone ({how}): killed, preempted, or cut off; the same command continues from the last checkpoint"


def _exit(line: str, status: int) -> NoReturn:
    sys.stdout.flush()
    to_stderr(f"error: {line}")
    os._exit(status)  # an orderly exit would wait for the other processes
