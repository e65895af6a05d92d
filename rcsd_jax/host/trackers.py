"""Experiment trackers (W&B, MLflow, Trackio): opens a run at one, and logs to it without holding up or ending the program.

`CLIENTS` has one function for each tracker. It opens a run there, or goes on with one, and returns what logs to it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rcsd_jax.host.errors import UserError, first_line

Rows = Sequence[Mapping[str, Any]]
"""A table: column -> value for each row, the same columns in all rows; empty: no table."""

_WAIT_S = 180.0  # for what is not sent yet, at the end of a run
_HELD = 10_000  # entries that wait to be sent; more are left out


class Described(NamedTuple):
    """A run that a tracker should show.

    Attributes:
      project: W&B's PROJECT or ENTITY/PROJECT, MLflow's experiment, Trackio's project.
      name: shown to the user.
      config: dotted key -> value.
      folder: a local folder for the client's own files, or None for its default.
      id: of the run to go on with; None: a new one.
    """

    project: str
    name: str
    config: Mapping[str, Any]
    folder: Path | None = None
    id: str | None = None


class Opened(NamedTuple):
    """A run at a tracker."""

    id: str
    log: Callable[[int, Mapping[str, float], Rows], None]  # (step, scalars, table "completions")
    finish: Callable[[bool], None]  # whether the run is complete; if not, another start goes on with it


def _table(rows: Rows) -> dict[str, Any]:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


def _entry(scalars: Mapping[str, float], rows: Rows, table: Callable[..., Any]) -> dict[str, Any]:
    """Scalars, and the rows as the client's own kind of table."""
    return {**scalars, **({"completions": table(**_table(rows))} if rows else {})}


def _wandb(asked: Described) -> Opened:
    import wandb  # late: an extra

    entity, _, project = asked.project.rpartition("/")
    run = wandb.init(
        project=project,
        entity=entity or None,
        name=asked.name,
        config=dict(asked.config),
        id=asked.id or uuid.uuid4().hex[:12],
        resume="allow",
        dir=os.environ.get("WANDB_DIR") or asked.folder,
        settings=wandb.Settings(finish_timeout=_WAIT_S),  # by default, the end waits for the network forever
    )

    def log(step: int, scalars: Mapping[str, float], rows: Rows) -> None:
        run.log(_entry(scalars, rows, wandb.Table), step=step)

    return Opened(run.id, log, lambda complete: run.finish(exit_code=0 if complete else 1))


def _mlflow(asked: Described) -> Opened:
    from mlflow import MlflowClient  # late: an extra
    from mlflow.entities import Metric, Param  # late: an extra

    client, id = MlflowClient(), asked.id
    if id is None:
        found = client.get_experiment_by_name(asked.project)
        experiment = client.create_experiment(asked.project) if found is None else found.experiment_id
        id = client.create_run(experiment, run_name=asked.name).info.run_id
        params = [Param(key, str(value)) for key, value in asked.config.items()]
        for first in range(0, len(params), 100):  # the server's limit of a batch
            client.log_batch(id, params=params[first : first + 100])
    else:
        client.update_run(id, status="RUNNING")
    client.log_dict(id, dict(asked.config), "config.json")  # parameters cannot change, and this start's may differ

    def log(step: int, scalars: Mapping[str, float], rows: Rows) -> None:
        now = int(1000 * time.time())
        name = lambda key: re.sub(r"[^\w\-. /:]", "_", key)
        client.log_batch(id, metrics=[Metric(name(key), float(x), now, step) for key, x in scalars.items()])
        if rows:  # the form that `mlflow.load_table` reads
            client.log_dict(id, _table(rows), f"completions/step_{step:07d}.json")

    return Opened(id, log, lambda complete: client.set_terminated(id, "FINISHED" if complete else "KILLED"))


def _trackio(asked: Described) -> Opened:
    import trackio  # late: an extra

    name = asked.id or f"{asked.name}-{uuid.uuid4().hex[:6]}"  # a run is resumed by its name
    run = trackio.init(project=asked.project, name=name, config=dict(asked.config), resume="allow", embed=False)

    def log(step: int, scalars: Mapping[str, float], rows: Rows) -> None:
        run.log(_entry(scalars, rows, trackio.Table), step=step)

    return Opened(name, log, lambda complete: run.finish())


CLIENTS: dict[str, Callable[[Described], Opened]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
"""Name of a tracker, its Python module and its extra -> what opens a run there."""


def need_installed(name: str) -> None:
    """Raises UserError, which names no field, if the client of a tracker is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError("its client is not installed", remedy=f"pip install 'rcsd_jax[{name}]', or leave it out")


class Tracker:
    """Logs to a tracker from a thread of its own: the program never waits for the network, and no failure of it ends the program.

    What a tracker does not take is left out, and the next entry is tried again. One line says so at the first failure, and
    one at the end how much is missing.
    """

    def __init__(self, name: str, opened: Opened, say: Callable[[str], None], *, wait_s: float = _WAIT_S):
        self._name, self._opened, self._say, self._wait_s = name, opened, say, wait_s
        self._entries: queue.Queue[tuple[int, Mapping[str, float], Rows] | None] = queue.Queue(_HELD)
        self._logged = self._taken = 0
        self._complete, self._failed = False, False
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, scalars: Mapping[str, float], rows: Rows = ()) -> None:
        """Hands over scalars and a table of completions as of `step`; returns at once."""
        self._logged += 1
        with contextlib.suppress(
            queue.Full
        ):  # it has not answered for thousands of steps; `close` says how many are missing
            self._entries.put_nowait((step, dict(scalars), list(rows)))

    def close(self, *, complete: bool) -> None:
        """Ends the run there, once all is sent; waits for that a limited time."""
        self._complete = complete
        deadline = time.monotonic() + self._wait_s
        with contextlib.suppress(queue.Full):
            self._entries.put(None, timeout=self._wait_s)
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        missing = self._logged - self._taken
        if self._thread.is_alive() or missing:
            self._say(f"{self._name}: {missing} of {self._logged} entries are missing there; metrics.jsonl has all")

    def _send(self) -> None:
        while (entry := self._entries.get()) is not None:
            step, scalars, rows = entry
            # Not every client stores what is not a number.
            finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
            self._taken += self._try(lambda: self._opened.log(step, finite, rows), f"step {step}")  # noqa: B023
        self._try(lambda: self._opened.finish(self._complete), "the end of the run")

    def _try(self, act: Callable[[], None], what: str) -> bool:
        try:
            act()
        except Exception as error:  # of many types: each client has its own
            if not self._failed:
                told = f"{self._name}: did not take {what} ({type(error).__name__}: {first_line(error, 160)})"
                self._say(f"{told}; the run goes on")
            self._failed = True
            return False
        return True
