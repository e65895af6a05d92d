"""The loss of a recipe's method on scored tokens, and its gradient in what is trained: one place, however tokens lie in rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rcsd_jax.methods import METHODS
from rcsd_jax.methods.contract import CompletionTokens, Weights
from rcsd_jax.methods.networks import Frozen, Network, Teacher
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.score_both import scored_with
from rcsd_jax.methods.state import Params, TrainState
from rcsd_jax.models.layer import Statistics

REPORTED = ("expert_load", "rerouted")
"""What layers report, [L, ...] of each, that a step adds up: see `router.routes`."""


def loss_and_gradient(
    recipe: Recipe,
    state: TrainState,
    frozen: Frozen,
    teacher: Teacher | None,
    teacher_hidden: Any,
    student_hidden: Callable[[Network], tuple[jax.Array, Statistics]],
    tokens: CompletionTokens,
    weights: Weights,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, the method's sums), gradient) of completion tokens [R, T].

    Args:
      recipe, state, frozen: of the step.
      teacher: its network, of which the output matrix is read; None without a teacher.
      teacher_hidden: [R, T, D], its hidden states that predict the tokens, of several teachers a tuple; None without a teacher.
      student_hidden: the student's network -> its hidden states [R, T, D] that predict the tokens, differentiable, and what its
        layers report: those of `REPORTED` are added to the sums.
      tokens, weights: [R, T].
    """

    def loss_fn(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        student = recipe.roles.student.at(dataclasses.replace(state, trained=trained), frozen)
        hidden, reported = student_hidden(student)
        scored = scored_with(student, hidden, teacher, teacher_hidden)
        loss, sums = METHODS[recipe.method].loss_and_sums(scored, tokens, weights, recipe.loss)
        return loss, sums | {name: value for name, value in reported.items() if name in REPORTED}

    return jax.value_and_grad(loss_fn, has_aux=True)(state.trained)
