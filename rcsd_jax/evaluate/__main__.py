"""`python -m rcsd_jax.evaluate --config=configs/evaluate.py --config.model.path=DIR [--workdir=DIR] [--config.key=value ...]`.

Evaluates a model or a LoRA adapter without training.
"""

from __future__ import annotations

from rcsd_jax import main as job_flags
from rcsd_jax.cli.run_program import run_program


def main(argv: list[str]) -> None:
    """The entry point after flags were read, which are those of `rcsd_jax.main`."""
    config, workdir = job_flags.start(argv, example="configs/evaluate.py", trains=False)
    from rcsd_jax.cli import evaluation  # it imports JAX, which takes seconds: bad flags are reported before

    if job_flags.only_checks():
        evaluation.check_only(config)
    else:
        evaluation.run_evaluation(config, workdir)


if __name__ == "__main__":
    run_program(main, "rcsd_jax.evaluate", __doc__ or "")
