"""`python -m rcsd_jax.evaluate --config=configs/evaluate.py --config.model.path=DIR [--workdir=DIR] [--config.key=value ...]`.

Evaluates a model or a LoRA adapter without training.
"""

from __future__ import annotations

from rcsd_jax import main as job
from rcsd_jax.host.console import Console


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config, workdir = job.start(argv, example="configs/evaluate.py", trains=False)
    from rcsd_jax.host import multihost
    from rcsd_jax.host.preemption import StopRequest
    from rcsd_jax.report.summary import print_evaluation
    from rcsd_jax.run.check import check_evaluation
    from rcsd_jax.run.evaluate_model import evaluate_model
    from rcsd_jax.settings.unpack import unpack

    console = Console(quiet=not multihost.is_main())
    if job.only_checks():
        check_evaluation(unpack(config, trains=False), console)
        console.print("checked: config, model and questions can be used; nothing was run")
        return
    with StopRequest() as stop:
        evaluation = evaluate_model(config, workdir, console, stop)
    print_evaluation(console, evaluation, names={"base": "student"})  # nothing was trained here
    console.print(f"completions and scores: {workdir}", soft_wrap=True)


if __name__ == "__main__":
    job.run(main, "rcsd_jax.evaluate", __doc__ or "")
