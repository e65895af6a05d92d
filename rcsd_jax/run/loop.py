"""The training loop of a stage: step by step, with metrics, checkpoints and evaluation on the way."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.metrics import MetricWriter, Progress, compilations
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.methods.state import TrainState, shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.roles.encode import Encoded
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from rcsd_jax.run.grading import graded
from rcsd_jax.run.rows import Rows
from rcsd_jax.run.training_state import Setup, Start
from rcsd_jax.settings.stage import Settings


def train_loop(
    state: TrainState,
    start: Start,
    setup: Setup,
    model: Model,
    rows: Rows,
    checkpoints: Checkpoints,
    run: Run,
    evaluate_at: Callable[[int, TrainState], None],
    examples: Mapping[str, Example],
) -> TrainState:
    """Trains from `start` to the last step and returns its state; `state` is donated.

    `examples` are the data's by id, as they are graded: with their own rubrics, whatever rubrics the teacher sees.

    `evaluate_at(step, state)` is called after every `eval.every` steps but the last; a run that ended in it begins with
    it.

    Raises:
      UserError: the loss is not finite. Preempted: asked to stop; the state is saved.
    """
    config = run.config
    steps = config.train.steps
    step_fn = _step_function(setup, model, run, examples)
    take = functools.partial(rows.take, count=config.questions_per_step)

    def evaluated_after(step: int) -> bool:
        return bool(config.eval.every) and step % config.eval.every == 0 and 0 < step < steps

    # A checkpoint also holds what the remaining steps depend on. Their random keys follow from seed and step.
    position = {"seed": config.seed, "data": rows.digest, "rubric_cache": "rubrics.jsonl"}

    def save(step: int, place: int, writer: MetricWriter) -> None:
        try:
            writer.sync()  # a run that goes on from this checkpoint has the rows of all steps before it
        finally:
            checkpoints.save(step, state, position | {"place": place})

    first, place = start
    if evaluated_after(first):
        evaluate_at(first, state)
    if first < steps:
        told = f"compiling a step of {config.train.batch_size} completions, then training steps {first + 1} to {steps}"
        run.console.print(f"{run.name}: {told}")
    progress = Progress(run.console, f"{run.name}: train", steps, done=first)
    with progress, contextlib.closing(MetricWriter(run.workdir, first_step=first)) as writer:
        if first < steps:
            upcoming = take(place)
        for step in range(first, steps):
            began = time.monotonic()
            at, (data, place) = place, upcoming
            state, metrics = step_fn(state, data)
            if step + 1 < steps:
                upcoming = take(place)  # while the devices work
            scalars = _scalars(metrics, setup.rate(step), began) | _by_source(metrics, data, config)
            if not metrics["finite"]:
                save(step, at, writer)  # the step kept the state that it was given
                checkpoints.wait()
                raise _not_finite(step, metrics, [data.examples[i] for i in _batch_rows(data, config)])
            if step % config.train.log_every == 0 or step == steps - 1:
                writer.write(step, scalars)
            progress.advance(1, int(scalars["completion_tokens"]), f"loss {scalars['loss']:.4f}")
            done, stopping = step + 1, run.stop.is_set()  # read once: what is saved and whether to go on must agree
            if done % config.checkpoint.every == 0 or done == steps or stopping or evaluated_after(done):
                save(done, place, writer)
            if stopping:
                checkpoints.wait()
                run.stop.raise_if_set(f"saved at step {done} of {steps}")
            if evaluated_after(done):
                evaluate_at(done, state)
    return state


def _batch_rows(data: Encoded, config: Settings) -> list[int]:
    """The rows of a step's data as they are in its batch: each as often as it has completions."""
    return [i for i in range(len(data.examples)) for _ in range(config.sampling.group)]


def _step_function(setup: Setup, model: Model, run: Run, examples: Mapping[str, Example]) -> Callable:
    """(state, a step's data) -> (state, metrics): a step with everything else bound; the state is donated.

    One program, unless completions are graded: then the host does so between the program that draws and the one that learns.
    """
    config, recipe = run.config, setup.recipe
    programs = jit_step(recipe, shardings_of(setup.abstract))

    def batch_of(data: Encoded) -> tuple[Batch, np.uint32]:
        batch = make_batch(_batch_rows(data, config), data, config, model.pad_id, run.mesh)
        return sharding.to_mesh(batch, run.mesh), np.uint32(config.seed)

    def plain_step(state: TrainState, data: Encoded) -> tuple[TrainState, dict[str, Any]]:
        return programs.train_step(state, setup.frozen, *batch_of(data))[:2]

    def graded_step(state: TrainState, data: Encoded) -> tuple[TrainState, dict[str, Any]]:
        completions = programs.draw(state, setup.frozen, *batch_of(data))
        shown = [data.examples[i] for i in _batch_rows(data, config)]
        asked = [examples[example.id] for example in shown]
        completions, grades = graded(completions, asked, shown, recipe, model, run)
        state, metrics = programs.learn(state, setup.frozen, completions)
        return state, metrics | grades

    return graded_step if config.reward.grader else plain_step


def _scalars(metrics: dict[str, jax.Array], rate: Any, began: float) -> dict[str, float]:
    scalars = {k: float(v) for k, v in metrics.items() if k not in ("row_loss", "finite")}
    seconds = time.monotonic() - began  # read when the values are here: until then the step still runs
    return scalars | {
        "learning_rate": float(rate),
        "step_seconds": seconds,
        "tokens_per_second": scalars["completion_tokens"] / seconds,
        "compilations": compilations(),
    }


def _by_source(metrics: Mapping[str, jax.Array], data: Encoded, config: Settings) -> dict[str, float]:
    """The mean of `row_loss` over the completions of each source of a mixture; empty if the data is none."""
    sources = [data.examples[i].source for i in _batch_rows(data, config)]
    if not all(sources):
        return {}
    row_loss = multihost_utils.process_allgather(metrics["row_loss"], tiled=True)
    return means_by_source(row_loss, sources)


def means_by_source(row_loss: np.ndarray, sources: Sequence[str]) -> dict[str, float]:
    """row_loss_<source> -> the mean over its rows.

    Examples:
      >>> means_by_source(np.array([1.0, 2.0, 3.0]), ["a", "b", "a"])
      {'row_loss_a': 2.0, 'row_loss_b': 2.0}
    """
    of = np.asarray(sources)
    return {f"row_loss_{name}": float(np.mean(np.asarray(row_loss)[of == name])) for name in dict.fromkeys(sources)}


def _not_finite(step: int, metrics: Mapping[str, jax.Array], examples: Sequence[Example]) -> UserError:
    row_loss = multihost_utils.process_allgather(metrics["row_loss"], tiled=True)
    bad = [e.origin for e, x in zip(examples, row_loss, strict=True) if not np.isfinite(x)]
    return UserError(
        f"non-finite loss, gradient or update at step {step}; the state before it is saved; "
        f"offending rows: {', '.join(bad) or 'no single row, the gradient or the update overflowed'}",
        field="loss",
        value=float(metrics["loss"]),
        remedy="lower optimizer.learning_rate, or take the rows out, and start anew with another --workdir",
    )
