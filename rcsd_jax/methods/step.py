"""The train step: draw, assemble, weigh, score both roles, loss, update. Pure functions; `jit_step` compiles them.

    draw     completions of both roles' prompts        rollout.py
    learn    how much each token weighs                contract.py
             both roles' scores of the completions     score_both.py
             the loss and its gradient                 the method's own file, microbatches.py
             the update                                state.py

If the host grades completions, or several updates learn from them, `draw` and `learn` are two programs. Otherwise `train_step` is both
in one program.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rcsd_jax.methods import METHODS, dealing, rollout, token_counts
from rcsd_jax.methods.contract import Completions, LossOptions, Weights, weigh
from rcsd_jax.methods.microbatches import summed
from rcsd_jax.methods.networks import Frozen, Network, Roles
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.score_both import score, score_teacher
from rcsd_jax.methods.state import Params, TrainState, update
from rcsd_jax.models import sharding


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static choices of a step."""

    roles: Roles
    rollout: RolloutOptions
    loss: LossOptions
    optimizer: optax.GradientTransformation
    method: str = "self_distillation"  # of `METHODS`
    ema_decay: float = 0.999  # of the state's average, a step
    microbatches: int = 1  # parts of the batch that are processed one after the other


def draw(recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array) -> Completions:
    """The completions of a rollout. Random keys come from (seed, step, row), so any rollout can be recomputed by itself.

    A rollout of several batches (`recipe.rollout.batches`) has the keys that each batch has when it is drawn by its own step; see
    `dealing`, which also says how their rows lie.
    """
    return draw_and_metrics(recipe, state, frozen, batch, seed)[0]


def draw_and_metrics(
    recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array
) -> tuple[Completions, dict[str, jax.Array]]:
    """As `draw`, and scalar metrics: `occupancy`, the share of the sampler's slots that were busy, if a role writes."""
    networks, options = recipe.roles.at(state, frozen), recipe.rollout
    key = jax.random.key(seed)
    keys = dealing.row_keys(batch.row, key, state.step, batches=options.batches, group=options.group)
    samples, occupancy = rollout.draw_and_occupancy(networks, batch, keys, options)
    analysis = rollout.draw_analysis(networks.teacher, batch, keys, options)
    completions = rollout.assemble(batch, samples, analysis, options)
    return completions, {} if occupancy is None else {"occupancy": occupancy}


def learn(
    recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from completions; the new state, and scalar metrics (and `row_loss` [B]).

    A non-finite loss, gradient or update leaves the state as it was and reports `finite` = 0: the caller stops.
    """
    teacher = jax.lax.stop_gradient(recipe.roles.at(state, frozen).teacher)
    weights = weigh(completions, recipe.loss.reduction)  # of the whole batch, before it is split

    def of_rows(rows: tuple[Completions, Weights]) -> Any:
        hidden = score_teacher(teacher, rows[0], guidance=recipe.loss.guidance)
        return loss_and_gradient(recipe, state, frozen, teacher, hidden, *rows)

    (loss, sums), gradient = summed(of_rows, (completions, weights), recipe.microbatches)
    new_state, grad_norm, finite = update(state, loss, gradient, recipe.optimizer, ema_decay=recipe.ema_decay)
    counts = token_counts.of_scoring(recipe.roles, recipe.loss.guidance, completions)
    return new_state, _metrics(loss, grad_norm, finite, sums, completions) | counts


def loss_and_gradient(
    recipe: Recipe,
    state: TrainState,
    frozen: Frozen,
    teacher: Network | None,
    teacher_hidden: jax.Array | None,
    completions: Completions,
    weights: Weights,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) of the method on rows that the teacher has scored: `teacher_hidden` of `score_teacher`."""

    def loss_fn(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        student = recipe.roles.student.at(dataclasses.replace(state, trained=trained), frozen)
        scored = score(student, teacher, teacher_hidden, completions)
        return METHODS[recipe.method].loss_and_sums(scored, completions, weights, recipe.loss)

    return jax.value_and_grad(loss_fn, has_aux=True)(state.trained)


def train_step(
    recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array
) -> tuple[TrainState, dict[str, jax.Array], Completions]:
    """`draw` and `learn` in one, for a rollout of one batch that serves one update."""
    completions, drawn = draw_and_metrics(recipe, state, frozen, batch, seed)
    state, metrics = learn(recipe, state, frozen, completions)
    return state, metrics | drawn, completions


class JittedStep(NamedTuple):
    """The step's programs, each compiled when it is first called. `learn` and `train_step` donate the state they are given."""

    draw: jax.stages.Wrapped  # (state, frozen, batch, seed) -> (completions, metrics)
    learn: jax.stages.Wrapped  # (state, frozen, completions) -> (state, metrics)
    train_step: jax.stages.Wrapped  # (state, frozen, batch, seed) -> (state, metrics, completions)


def jit_step(recipe: Recipe, shardings: TrainState | None = None) -> JittedStep:
    """Compiles the step for a recipe. Over a mesh, give the state's `shardings`, which the new state keeps."""
    out = lambda *others: None if shardings is None else (shardings, *others)
    mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh
    rows = None if mesh is None else (sharding.batch_sharding(mesh), None)
    return JittedStep(
        jax.jit(functools.partial(draw_and_metrics, recipe), out_shardings=rows),
        jax.jit(functools.partial(learn, recipe), donate_argnums=0, out_shardings=out(None)),
        jax.jit(functools.partial(train_step, recipe), donate_argnums=0, out_shardings=out(None, None)),
    )


def _metrics(
    loss: jax.Array, grad_norm: jax.Array, finite: jax.Array, sums: dict[str, jax.Array], completions: Completions
) -> dict[str, jax.Array]:
    mask, cut = completions.samples.mask, completions.samples.cut
    row_loss = sums.pop("row_loss")
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "finite": finite,
        **{name: value / jnp.maximum(count, 1) for name, (value, count) in sums.items()},
        "completion_length": mask.sum(axis=1).mean(),
        "share_cut": cut.mean(),
        "completion_tokens": mask.sum(),
        "row_loss": row_loss,
    }
