"""An evaluation without training, and its table."""

from __future__ import annotations

from ml_collections import ConfigDict

from rcsd_jax.host import multihost
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.report.summary import print_evaluation, print_judged
from rcsd_jax.run.check import check_evaluation
from rcsd_jax.run.evaluate_model import evaluate_model
from rcsd_jax.settings.unpack import unpack


def run_evaluation(config: ConfigDict, workdir: AnyPath) -> None:
    """Runs or continues an evaluation under `workdir` and prints its table.

    Raises:
      UserError: bad input or settings. Preempted: SIGTERM or Ctrl-C; what is done is saved.
    """
    console = Console(quiet=not multihost.is_main())
    with StopRequest() as stop:
        evaluation = evaluate_model(config, workdir, console, stop)
    names = {"base": "student"}  # nothing was trained here
    print_evaluation(console, evaluation, names=names)
    print_judged(console, evaluation, names=names)
    console.print(f"completions and scores: {workdir}", soft_wrap=True)


def check_only(config: ConfigDict) -> None:
    """Checks that the evaluation could run; nothing is written.

    Raises:
      UserError: what is wrong.
    """
    console = Console(quiet=not multihost.is_main())
    check_evaluation(unpack(config, trains=False), console)
    console.print("checked: config, model and questions can be used; nothing was run")
