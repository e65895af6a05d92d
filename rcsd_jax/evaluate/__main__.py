"""`python -m rcsd_jax.evaluate --config=configs/evaluate.py --config.model.path=DIR [--workdir=DIR] [--config.key=value ...]`."""

from __future__ import annotations

from rcsd_jax import main as job
from rcsd_jax.console import Console


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    config, workdir = job.start(argv, example="configs/evaluate.py", trains=False)
    from rcsd_jax import processes
    from rcsd_jax.evaluate.model import evaluate_model
    from rcsd_jax.preemption import StopRequest
    from rcsd_jax.summary import print_evaluation

    console = Console(quiet=not processes.is_main())
    with StopRequest() as stop:
        evaluation = evaluate_model(config, workdir, console, stop)
    print_evaluation(console, evaluation, names={"base": "student"})  # nothing was trained here
    console.print(f"completions and scores: {workdir}", soft_wrap=True)


if __name__ == "__main__":
    job.run(main, "rcsd_jax.evaluate")
