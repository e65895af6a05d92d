"""The flags and environment variables with which a process finds the others of its job."""

from __future__ import annotations

import os
from typing import NamedTuple

from rcsd_jax.host import distributed
from rcsd_jax.host.errors import UserError


class Processes(NamedTuple):
    """The flags' values; None for a flag that is not set."""

    several: bool
    coordinator: str | None  # HOST:PORT of process 0
    num_processes: int | None
    process_id: int | None
    heartbeat_timeout: int  # seconds


def join_processes(processes: Processes) -> None:
    """Joins the processes of the job, if there are several. Call it before anything else of JAX.

    Raises:
      UserError: flags or variables are missing or contradict each other.
    """
    if not processes.several:
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(processes, name) is not None:
                raise UserError(
                    "has an effect only with several processes", field=f"--{name}", remedy="add --distributed"
                )
        return
    distributed.start(
        coordinator=processes.coordinator,
        num_processes=_number(processes.num_processes, "JAX_NUM_PROCESSES"),
        process_id=_number(processes.process_id, "JAX_PROCESS_ID"),
        heartbeat_timeout=processes.heartbeat_timeout,
    )


def _number(flag: int | None, variable: str) -> int | None:
    """The value of a flag or of an environment variable."""
    if flag is not None or variable not in os.environ:
        return flag
    try:
        return int(os.environ[variable])
    except ValueError as error:
        value = os.environ[variable]
        raise UserError("not a number", field=variable, value=value, remedy="set a number") from error
