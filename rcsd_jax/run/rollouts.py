"""Rollouts in a run: which updates learn from one, how it is drawn and graded, and what a checkpoint holds of it.

A rollout begins at every `train.updates_per_rollout`-th update. Its batches are learned from in order, as often as there are passes.
Its completions, masks and advantages lie on the mesh until its last update. A checkpoint between two of its updates holds them, so the
remaining updates are the same after a stop; a checkpoint at its end does not need them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import METHODS, dealing
from rcsd_jax.methods.contract import Completions
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.methods.state import TrainState, shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.roles.encode import Encoded
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run import endpoint_teacher
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.dropout import with_dropout
from rcsd_jax.run.environment import Run
from rcsd_jax.run.grading import graded
from rcsd_jax.run.training_state import Kept, Setup
from rcsd_jax.settings.stage import Settings


class Rollout(NamedTuple):
    """A rollout from its first update to its last.

    Attributes:
      first: the first update that learns from it.
      place: of its rows in the order of the data, see `rows.Rows.take`.
      data: its rows, batch after batch.
      completions: of k * B rows, see `dealing`; None if the update that learns from it also draws it.
      metrics: of each batch: grades, and the sampler's.
      seconds: how long it was drawn and graded.
    """

    first: int
    place: int
    data: Encoded
    completions: Completions | None = None
    metrics: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0


class Programs(NamedTuple):
    """The functions of a run's updates; a state that is given to `update` is donated.

    Attributes:
      begin: (state, data, first update, place of the data) -> the rollout that begins there.
      update: (state, rollout, update's number) -> (state, metrics, the completions that it learned from).
      again: (state, what a checkpoint holds, data) -> the rollout that it holds.
    """

    begin: Callable[[TrainState, Encoded, int, int], Rollout]
    update: Callable[[TrainState, Rollout, int], tuple[TrainState, dict[str, Any], Completions]]
    again: Callable[[TrainState, Kept, Encoded], Rollout]


def programs_of(setup: Setup, model: Model, run: Run, examples: Mapping[str, Example]) -> Programs:
    """The functions of a run's updates, with everything else bound.

    An update is one program if it is the only one that learns from its rollout, and if nothing is graded. Otherwise one program draws,
    the host grades, and asks a teacher at an endpoint, and another program learns.

    Args:
      setup, model, run: of the run.
      examples: the data's by id, as they are graded.
    """
    config, recipe, frozen = run.config, setup.recipe, setup.frozen
    step = jit_step(recipe, shardings_of(setup.abstract))
    dealt: dict[str, Any] = dict(batches=recipe.rollout.batches, group=recipe.rollout.group)
    place = sharding.batch_sharding(run.mesh)
    batch_of = jax.jit(functools.partial(dealing.batch_of, **dealt), out_shardings=place)
    asks = config.teacher_weights == "endpoint"
    fused = config.train.updates_per_rollout == 1 and not config.reward.grader and not asks

    def prompts(data: Encoded) -> tuple[Batch, np.uint32]:
        rows = dealing.questions(config.questions_per_step, **dealt)
        batch = make_batch(rows, data, config, model.pad_id, run.mesh)
        return sharding.to_mesh(batch, run.mesh), np.uint32(config.seed)

    def begin(state: TrainState, data: Encoded, first: int, place: int) -> Rollout:
        rollout = Rollout(first, place, data)
        if fused:
            return rollout
        began = time.monotonic()
        completions, drawn = step.draw(state, frozen, *prompts(data))
        metrics: list[dict[str, float]] = [{}] * dealt["batches"]
        shown = [data.examples[i] for i in dealing.questions(config.questions_per_step, **dealt)]
        if config.reward.grader:
            asked = with_dropout([examples[example.id] for example in shown], place, config)
            completions, metrics = graded(completions, asked, shown, recipe, model, run)
        if asks:  # after grading: the teacher may see attempts
            vocabulary = model.decoder.config.vocab_size
            completions = endpoint_teacher.scored(completions, shown, first, vocabulary, run)
        of_all = {name: float(value) for name, value in drawn.items()}
        jax.block_until_ready(completions)
        seconds = time.monotonic() - began
        metrics = [of_batch | of_all for of_batch in metrics]
        return rollout._replace(completions=completions, metrics=tuple(metrics), seconds=seconds)

    def update(state: TrainState, rollout: Rollout, number: int) -> tuple[TrainState, dict[str, Any], Completions]:
        since = {"updates_since_rollout": number - rollout.first}
        if rollout.completions is None:
            state, metrics, completions = step.train_step(state, frozen, *prompts(rollout.data))
            return state, metrics | since, completions
        batch = batch_number(rollout, number, config)
        completions = rollout.completions
        if dealt["batches"] > 1:
            completions = batch_of(completions, np.int32(batch))
        state, metrics = step.learn(state, frozen, completions)
        return state, metrics | rollout.metrics[batch] | since, completions

    def again(state: TrainState, kept: Kept, data: Encoded) -> Rollout:
        like = jax.eval_shape(step.draw, state, frozen, *prompts(data))[0]
        if asks:
            like = like._replace(known=endpoint_teacher.unknown(like.samples.tokens.shape, config))
        if config.loss.emphasis == "credit":
            like = like._replace(failed=jax.ShapeDtypeStruct(like.without.weights.shape, jnp.float32))
        named, structure = _named(like), jax.tree.structure(like)
        needed = {name for name, x in named.items() if x.size}
        if differing := sorted(needed ^ set(kept.arrays)):
            raise UserError(
                f"the checkpoint's completions are of another version, which differs in {', '.join(differing[:3])}",
                file=run.workdir / "checkpoints",
                remedy="continue with the version that wrote it, or remove its newest checkpoint to go on from the one before",
            )
        leaves = [kept.arrays[name] if x.size else jnp.zeros(x.shape, x.dtype) for name, x in named.items()]
        completions, rest = jax.tree.unflatten(structure, leaves), kept.position
        return Rollout(rest["first"], rest["place"], data, completions, tuple(rest["metrics"]))

    return Programs(begin, update, again)


def kept(rollout: Rollout) -> Kept:
    """What a checkpoint between two updates of a rollout holds of it."""
    arrays = {name: x for name, x in _named(rollout.completions).items() if x.size}
    return Kept(arrays, {"first": rollout.first, "place": rollout.place, "metrics": list(rollout.metrics)})


def batch_number(rollout: Rollout, update: int, config: Settings) -> int:
    """The number of the rollout's batch from which an update learns."""
    return (update - rollout.first) % config.train.batches_per_rollout


def examples_of(rollout: Rollout, update: int, config: Settings) -> list[Example]:
    """The examples of the batch from which an update learns, each as often as it has completions."""
    count = config.questions_per_step
    start = batch_number(rollout, update, config) * count
    return [example for example in rollout.data.examples[start : start + count] for _ in range(config.sampling.group)]


def note(config: Settings) -> str | None:
    """A line for the user if updates learn from an earlier policy's completions without importance weights."""
    updates = config.train.updates_per_rollout
    distils = METHODS[config.method].teacher and config.sampling.source == "student"
    if updates == 1 or not distils or config.loss.importance_clip is not None:
        return None
    return f"{updates} updates learn from each rollout without importance weights; loss.importance_clip=2 adds them"


def _named(completions: Any) -> dict[str, Any]:
    """Completions' arrays by name, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_leaves_with_path(completions)
    return {".".join(key.name for key in path): x for path, x in paths}
