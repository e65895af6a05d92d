"""Runs a program and ends it: flags, one line for a user's error, exit statuses, the other processes of its job."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app

from rcsd_jax.cli.failures import disk_full, resource_spent
from rcsd_jax.cli.flag_parser import parser
from rcsd_jax.host import distributed
from rcsd_jax.host.console import to_stderr
from rcsd_jax.host.errors import Preempted, UserError, WriteFailed, first_line


def run_program(program: Callable[[list[str]], int | None], name: str, usage: str) -> None:
    """Runs a program with the defined flags, and ends the process if anything goes wrong.

    A `UserError` becomes one line on stderr and exit status 2, a signal status 128 + its number.

    Args:
      program: its entry point, called after the flags are read; the exit status, or None for 0.
      name: its module.
      usage: its command line and purpose, the docstring of the module.
    """
    without_torch()
    # Otherwise its advice to install torch would be the first line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app.run(functools.partial(_and_finish, program), flags_parser=parser(name, usage))
    except UserError as error:
        said = (disk_full(error.__cause__) if error.__cause__ else None) or str(error)
        if distributed.told() or isinstance(error, WriteFailed):
            distributed.end(said, 2)  # otherwise writing threads would end with their own tracebacks
        to_stderr(f"error: {said}")
        sys.exit(2)
    except Preempted as stopped:
        to_stderr(f"stopped: {stopped}; the same command continues")
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if (line := resource_spent(error)) is not None:
            distributed.end(line, 2)
        if distributed.told():
            _end_all(error)
        raise
    except KeyboardInterrupt:  # before anything ran, or a second Ctrl-C
        line = "stopped at once; the same command continues from what was saved"
        if distributed.told():
            distributed.end(line, 128 + signal.SIGINT)
        to_stderr(line)
        sys.exit(128 + signal.SIGINT)


def without_torch() -> None:
    """Makes torch look as if it were not installed: transformers and tensorboardX would import it, and no program uses it.

    The import takes two seconds of every start. Only our own programs call this, before they import either.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _and_finish(program: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    """Runs a program and returns its exit status; the processes then leave together."""
    try:
        status = program(argv)
    except Preempted:
        distributed.finish()
        raise
    distributed.finish()
    return status


def _end_all(error: Exception) -> None:
    """Ends a process of several that cannot continue: it reports a missing process, or prints its traceback."""
    try:
        distributed.raise_or_end(error)
    except Exception:
        traceback.print_exc()
        distributed.end(f"{type(error).__name__}: {first_line(error)}", 1)
