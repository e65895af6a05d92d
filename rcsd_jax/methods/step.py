"""The train step: draw, assemble, weigh, score both roles, loss, update. Pure functions; `jit_step` compiles them.

    draw     completions of both roles' prompts        rollout.py
    learn    how much each token weighs                contract.py
             both roles' scores of the completions     packed_learning.py; score_both.py without packing
             the loss and its gradient                 the method's own file
             the update                                state.py

If the host grades completions, or several updates learn from them, `draw` and `learn` are two programs. Otherwise `train_step` is both
in one program.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.methods import dealing, packed_learning, rollout
from rcsd_jax.methods.contract import Completions, Thoughts, Weights, tokens_of, weigh
from rcsd_jax.methods.gradient import loss_and_gradient as gradient_of
from rcsd_jax.methods.microbatches import summed
from rcsd_jax.methods.networks import Frozen, Teacher
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import Batch
from rcsd_jax.methods.score_both import score_student_and_report, scored_tokens, teacher_scores
from rcsd_jax.methods.state import Params, TrainState, update
from rcsd_jax.methods.teacher_scores import after_teacher
from rcsd_jax.models import sharding


def draw(recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array) -> Completions:
    """The completions of a rollout. Random keys come from (seed, step, row), so any rollout can be recomputed by itself.

    A rollout of several batches (`recipe.rollout.batches`) has the keys that each batch has when it is drawn by its own step; see
    `dealing`, which also says how their rows lie.
    """
    return draw_and_metrics(recipe, state, frozen, batch, seed)[0]


def draw_and_metrics(
    recipe: Recipe, state: TrainState, frozen: Frozen, batch: Batch, seed: jax.Array
) -> tuple[Completions, dict[str, jax.Array]]:
    """As `draw`, and scalar metrics if a role writes: `occupancy`, the share of the sampler's slots that were busy, and

    tokens_per_draw: with drafts, the tokens that a busy slot writes in a step.
    """
    networks, options = recipe.roles.at(state, frozen), recipe.rollout
    key = jax.random.key(seed)
    keys = dealing.row_keys(batch.row, key, state.step, batches=options.batches, group=options.group)
    samples, metrics = rollout.draw_and_metrics(networks, batch, keys, options)
    analysis = rollout.draw_analysis(rollout.analyst(networks, options), batch, keys, options)
    completions = rollout.assemble(batch, samples, analysis, options)
    return completions, metrics


def learn(
    recipe: Recipe, state: TrainState, frozen: Frozen, completions: Completions
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from completions; the new state, and scalar metrics (and `row_loss` [B]).

    A non-finite loss, gradient or update leaves the state as it was and reports `finite` = 0: the caller stops.
    """
    weights = weigh(completions, recipe.loss.reduction, recipe.loss.emphasis)  # of the whole batch, before it is split
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
        if teacher is None:
            return loss_and_gradient(recipe, state, frozen, None, None, *rows)
        scores = teacher_scores(teacher, rows[0], recipe.loss)
        return loss_and_gradient(
            recipe, state, frozen, teacher, scores.hidden, *after_teacher(*rows, scores, recipe.loss)
        )

    (loss, sums), gradient = summed(of_rows, (completions, weights), recipe.microbatches)
    sums["scored"] = scored_tokens(completions, teacher, recipe.loss)
    return (loss, sums), gradient


def loss_and_gradient(
    recipe: Recipe,
    state: TrainState,
    frozen: Frozen,
    teacher: Teacher | None,
    teacher_hidden: Any,
    completions: Completions,
    weights: Weights,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) of the method on rows that the teacher has scored: `teacher_hidden` of `score_teacher`."""

    student_hidden = functools.partial(score_student_and_report, completions=completions)
    of_tokens = student_hidden, tokens_of(completions), weights
    (loss, sums), gradient = gradient_of(recipe, state, frozen, teacher, teacher_hidden, *of_tokens)
    sums["row_loss"] = sums.pop("token_loss").sum(axis=1)
    return (loss, sums), gradient


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
    row_loss, (real, places) = sums.pop("row_loss"), sums.pop("scored")
    of_experts = _of_experts(sums.pop("expert_load", None), sums.pop("rerouted", None))
    by_part = {} if completions.thoughts is None else _lengths_of_parts(mask, completions.thoughts)
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "finite": finite,
        **{name: value / jnp.maximum(count, 1) for name, (value, count) in sums.items()},
        "completion_length": mask.sum(axis=1).mean(),
        "share_cut": cut.mean(),
        **by_part,
        **of_experts,
        "completion_tokens": mask.sum(),
        "real_tokens": real,
        "padded_tokens": places,
        "row_loss": row_loss,
    }


def _lengths_of_parts(mask: jax.Array, thoughts: Thoughts) -> dict[str, jax.Array]:
    return {
        "thought_length": thoughts.mask.sum(axis=1).mean(),
        "answer_length": (mask & ~thoughts.mask).sum(axis=1).mean(),
        "share_unended_thoughts": 1.0 - thoughts.ended.mean(),
    }


def _of_experts(load: jax.Array | None, rerouted: jax.Array | None) -> dict[str, jax.Array]:
    """How evenly a mixture's experts are used, on average over its layers, and how many choices of recorded experts are others now.

    Args:
      load: [L, E], tokens of each expert; None if the model is dense.
      rerouted: [L, 2], as of `router.routes`; None if none are recorded.
    """
    metrics = {}
    if load is not None:
        shares = load / jnp.maximum(load.sum(axis=1, keepdims=True), 1)
        entropy = -jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0).sum(axis=1)
        metrics["busiest_expert"] = shares.max(axis=1).mean()
        metrics["expert_entropy"] = entropy.mean() / jnp.log(load.shape[1])
    if rerouted is not None:
        metrics["rerouted"] = rerouted[:, 0].sum() / jnp.maximum(rerouted[:, 1].sum(), 1)
    return metrics
