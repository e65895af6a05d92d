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
from rcsd_jax.methods.state import TrainState
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run import rollouts
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from rcsd_jax.run.rollouts import Rollout
from rcsd_jax.run.rows import Rows
from rcsd_jax.run.tracking import completions_table, table_due
from rcsd_jax.run.training_state import Setup, Start


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
    programs = rollouts.programs_of(setup, model, run, examples)
    take = functools.partial(rows.take, count=config.questions_per_rollout)

    def evaluated_after(step: int) -> bool:
        return bool(config.eval.every) and step % config.eval.every == 0 and 0 < step < steps

    # A checkpoint also holds what the remaining steps depend on. Their random keys follow from seed and step.
    position: dict[str, Any] = {"seed": config.seed, "data": rows.digest, "rubric_cache": "rubrics.jsonl"}
    if setup.teachers:
        position["teachers"] = dict(setup.teachers)

    def save(step: int, place: int, rollout: Rollout | None, writer: MetricWriter) -> None:
        """Saves the state of `step`; `rollout`: from which the next step learns, None if that draws its own, from `place` on."""
        try:
            writer.sync()  # a run that goes on from this checkpoint has the rows of all steps before it
        finally:
            held = None if rollout is None else rollouts.kept(rollout)
            of_rollout = {} if held is None else {"rollout": held.position}
            arrays = None if held is None else held.arrays
            checkpoints.save(step, state, position | {"place": place} | of_rollout, arrays)

    first, place, held = start
    rollout: Rollout | None = None
    if held is not None:
        rollout = programs.again(state, held, take(held.position["place"])[0])
    if evaluated_after(first):
        evaluate_at(first, state)
    if first < steps:
        told = f"compiling a step of {config.train.batch_size} completions, then training steps {first + 1} to {steps}"
        run.console.print(f"{run.name}: {told}")
        if line := rollouts.note(config):
            run.console.print(f"{run.name}: {line}", soft_wrap=True)
    progress = Progress(run.console, f"{run.name}: train", steps, done=first)
    with progress, contextlib.closing(MetricWriter(run.workdir, first_step=first)) as writer:
        if first < steps and rollout is None:
            upcoming = take(place)
        for step in range(first, steps):
            before = rollout
            if rollout is None:
                at, (data, place) = place, upcoming
                rollout = programs.begin(state, data, step, at)
            share = rollout.seconds / config.train.updates_per_rollout  # of the time that its updates have in common
            began = time.monotonic() - share
            state, metrics, completions = programs.update(state, rollout, step)
            current, ends = rollout, (step + 1) % config.train.updates_per_rollout == 0
            if ends:
                rollout = None
                if step + 1 < steps:
                    upcoming = take(place)  # while the devices work
            learned = rollouts.examples_of(current, step, config)
            scalars = _scalars(metrics, setup.rate(step), began) | _by_source(metrics, learned)
            if not metrics["finite"]:  # the step kept the state that it was given
                save(step, current.place if before is None else place, before, writer)
                checkpoints.wait()
                raise _not_finite(step, metrics, learned)
            due = step % config.train.log_every == 0 or step == steps - 1
            if due:
                writer.write(step, scalars)
            shown = (
                completions_table(
                    completions, metrics["row_loss"], learned, model, setup.recipe.rollout.sampling.eos_ids
                )
                if table_due(step, config)
                else ()
            )
            del completions  # the next step needs the memory
            if due or shown:
                run.track(step, scalars if due else {}, shown)
            progress.advance(1, int(scalars["completion_tokens"]), f"loss {scalars['loss']:.4f}")
            done, stopping = step + 1, run.stop.is_set()  # read once: what is saved and whether to go on must agree
            if done % config.checkpoint.every == 0 or done == steps or stopping or evaluated_after(done):
                save(done, place, rollout, writer)
            if stopping:
                checkpoints.wait()
                run.stop.raise_if_set(f"saved at step {done} of {steps}")
            if evaluated_after(done):
                evaluate_at(done, state)
    return state


def _scalars(metrics: dict[str, jax.Array], rate: Any, began: float) -> dict[str, float]:
    scalars = {k: float(v) for k, v in metrics.items() if k not in ("row_loss", "finite")}
    seconds = time.monotonic() - began  # read when the values are here: until then the step still runs
    return scalars | {
        "learning_rate": float(rate),
        "step_seconds": seconds,
        "tokens_per_second": scalars["completion_tokens"] / seconds,
        **{
            f"{name}_per_second": scalars[name] / seconds
            for name in ("real_tokens", "padded_tokens")
            if name in scalars
        },
        "compilations": compilations(),
    }


def _by_source(metrics: Mapping[str, jax.Array], examples: Sequence[Example]) -> dict[str, float]:
    """The mean of `row_loss` over the completions of each source of a mixture; empty if the data is none."""
    sources = [example.source for example in examples]
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
