"""The train step: draw, assemble, weigh, score both roles, loss, update. Pure functions; `jit_step` compiles them.

    draw     completions of both roles' prompts        rollout.py
    learn    how much each token weighs                contract.py
             both roles' scores of the completions     packed_learning.py; score_both.py without packing
             the loss and its gradient                 the method's own file
             the update                                state.py

If the host grades completions, `draw` and `learn` are two programs. Otherwise `train_step` is both in one program.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.methods import METHODS, packed_learning, rollout
from rcsd_jax.methods.contract import Completions, Weights, tokens_of, weigh
from rcsd_jax.methods.microbatches import summed
from rcsd_jax.methods.networks import Frozen, Network
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.methods.score_both import score, score_teacher, scored_tokens
from rcsd_jax.methods.state import Params, TrainState, update


def draw(recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array) -> Completions:
    """The completions of one step. Random keys come from (seed, step, row), so any step can be recomputed by itself."""
    networks = recipe.roles.at(state, frozen)
    keys = rollout.row_keys(batch, jax.random.fold_in(jax.random.key(seed), state.step))
    samples = rollout.draw(networks, batch, keys, recipe.rollout)
    analysis = rollout.draw_analysis(networks.teacher, batch, keys, recipe.rollout)
    return rollout.assemble(batch, samples, analysis, recipe.rollout)


def learn(
    recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from completions; the new state, and scalar metrics (and `row_loss` [B]).

    A non-finite loss, gradient or update leaves the state as it was and reports `finite` = 0: the caller stops.
    """
    weights = weigh(completions, recipe.loss.reduction)  # of the whole batch, before it is split
    of_batch = packed_learning.loss_and_gradient if recipe.row_lengths else padded_loss_and_gradient
    (loss, sums), gradient = of_batch(recipe, state, frozen, completions, weights)
    new_state, grad_norm, finite = update(state, loss, gradient, recipe.optimizer, ema_decay=recipe.ema_decay)
    return new_state, _metrics(loss, grad_norm, finite, sums, completions)


def padded_loss_and_gradient(
    recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions, weights: Weights
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """As `packed_learning.loss_and_gradient`, with a row for every sequence."""
    teacher = jax.lax.stop_gradient(recipe.roles.at(state, frozen).teacher)

    def of_rows(rows: tuple[Completions, Weights]) -> Any:
        hidden = score_teacher(teacher, rows[0], guidance=recipe.loss.guidance)
        return loss_and_gradient(recipe, state, frozen, teacher, hidden, *rows)

    (loss, sums), gradient = summed(of_rows, (completions, weights), recipe.microbatches)
    sums["scored"] = scored_tokens(completions, teacher=teacher is not None, guidance=recipe.loss.guidance)
    return (loss, sums), gradient


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
        loss, sums = METHODS[recipe.method].loss_and_sums(scored, tokens_of(completions), weights, recipe.loss)
        return loss, sums | {"row_loss": sums.pop("token_loss").sum(axis=1)}

    return jax.value_and_grad(loss_fn, has_aux=True)(state.trained)


def train_step(
    recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array
) -> tuple[TrainState, dict[str, jax.Array], Completions]:
    """`draw` and `learn` in one."""
    completions = draw(recipe, state, frozen, batch, seed)
    return *learn(recipe, state, frozen, completions), completions


class JittedStep(NamedTuple):
    """The step's programs, each compiled when it is first called. `learn` and `train_step` donate the state they are given."""

    draw: jax.stages.Wrapped  # (state, frozen, batch, seed) -> completions
    learn: jax.stages.Wrapped  # (state, frozen, completions) -> (state, metrics)
    train_step: jax.stages.Wrapped  # (state, frozen, batch, seed) -> (state, metrics, completions)


def jit_step(recipe: Recipe, shardings: TrainState | None = None) -> JittedStep:
    """Compiles the step for a recipe. Over a mesh, give the state's `shardings`, which the new state keeps."""
    out = lambda *others: None if shardings is None else (shardings, *others)
    return JittedStep(
        jax.jit(functools.partial(draw, recipe)),
        jax.jit(functools.partial(learn, recipe), donate_argnums=0, out_shardings=out(None)),
        jax.jit(functools.partial(train_step, recipe), donate_argnums=0, out_shardings=out(None, None)),
    )


def _metrics(
    loss: jax.Array, grad_norm: jax.Array, finite: jax.Array, sums: dict[str, jax.Array], completions: Completions
) -> dict[str, jax.Array]:
    mask, cut = completions.samples.mask, completions.samples.cut
    row_loss, (real, places) = sums.pop("row_loss"), sums.pop("scored")
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "finite": finite,
        **{name: value / jnp.maximum(count, 1) for name, (value, count) in sums.items()},
        "completion_length": mask.sum(axis=1).mean(),
        "share_cut": cut.mean(),
        "completion_tokens": mask.sum(),
        "real_tokens": real,
        "padded_tokens": places,
        "row_loss": row_loss,
    }
