"""Outputs for numbers: a JSONL file, TensorBoard event files (tensorboardX), and progress bars."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import rich.progress
import tensorboardX

from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console, printable
from rcsd_jax.host.files import AnyPath, Log, is_remote, told_if_refused, write_text

_programs = {"made": 0, "read": 0}  # "made" also counts programs read from the cache


def _count_made(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _programs["made"] += 1


def _count_read(event: str, **_: str | int) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _programs["read"] += 1


jax.monitoring.register_event_duration_secs_listener(_count_made)
jax.monitoring.register_event_listener(_count_read)


def compilations() -> int:
    """The number of programs that XLA has compiled in this process so far, without those read from the cache."""
    return _programs["made"] - _programs["read"]


class MetricWriter:
    """Appends scalars per step to `metrics.jsonl` and to TensorBoard event files in `directory`, in process 0 only.

    A resumed run continues at `first_step`: later rows of the interrupted run are dropped, so that the file looks like
    that of an uninterrupted run.
    """

    def __init__(self, directory: AnyPath, *, first_step: int):
        self._writes = multihost.is_main()
        if not self._writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        _keep_steps_before(path, first_step)
        self._log = Log(path)
        # For a URL, event files are written locally and copied once they are complete.
        self._copy_to = directory / "tensorboard" if is_remote(directory) else None
        self._folder = Path(tempfile.mkdtemp(prefix="rcsd_jax_")) if self._copy_to else directory / "tensorboard"
        self._events = tensorboardX.SummaryWriter(str(self._folder), purge_step=first_step or None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes `scalars` as of `step`, see `files.Log`."""
        if not self._writes:
            return
        self._log.write(json.dumps({"step": step, **scalars}))
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def sync(self) -> None:
        """Makes the rows of `metrics.jsonl` durable: they survive the loss of this machine."""
        if self._writes:
            self._log.sync()

    def close(self) -> None:
        """Flushes and closes both."""
        if not self._writes:
            return
        try:
            self._log.close()
        finally:
            self._events.close()
            if self._copy_to:
                try:
                    self._publish_events(self._copy_to)
                finally:
                    shutil.rmtree(self._folder)

    def _publish_events(self, folder: AnyPath) -> None:
        with told_if_refused(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for file in self._folder.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())


def read_metrics(directory: AnyPath) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, without unfinished lines and lines that are not rows."""
    rows = []
    for line in (directory / "metrics.jsonl").read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _keep_steps_before(path: AnyPath, first_step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] < first_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


class Progress:
    """A progress bar with tokens/s and ETA; if the stream is not a terminal, an occasional line instead."""

    def __init__(self, console: Console, title: str, total: int, *, done: int = 0, every_s: float = 15.0):
        self._console, self._title, self._total, self._every_s = console, title, total, every_s
        self._start = self._last = time.monotonic()
        self._first = self._done = self._said = done
        self._tokens = 0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(printable(title), total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._line()

    def extend(self, count: int) -> None:
        """Adds `count` units to the total."""
        self._total += count
        self._bar.update(self._task, total=self._total)

    def advance(self, count: int, tokens: int, note: str = "") -> None:
        """Adds `count` finished units, in which `tokens` tokens were sampled."""
        self._done += count
        self._tokens += tokens
        self._note = f"{self._tokens / max(time.monotonic() - self._start, 1e-9):,.0f} tokens/s  {note}"
        self._bar.update(self._task, advance=count, note=self._note)
        if not self._console.is_terminal and time.monotonic() - self._last > self._every_s:
            self._line()

    def _line(self) -> None:
        if self._console.is_terminal or self._done == self._said:
            return
        self._last, self._said = time.monotonic(), self._done
        rate = (self._done - self._first) / max(self._last - self._start, 1e-9)
        eta = (self._total - self._done) / rate
        self._console.print(f"{self._title}: {self._done}/{self._total}  {self._note}  ETA {eta:.0f} s", soft_wrap=True)
