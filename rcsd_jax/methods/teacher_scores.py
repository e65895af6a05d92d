"""What follows from a teacher's scores before the student is scored: its target token by token, emphases, and contrasts of hints."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.losses import better_of_two, emphasis
from rcsd_jax.methods.contract import Completions, LossOptions, Weights


class TeacherScores(NamedTuple):
    """Of completions [..., N]; the leading axes are [B], or [G, B / G] of packed rows.

    Attributes:
      hidden: [..., N, D] that predict the tokens; of several teachers, and of the better of two, a tuple.
      log_probs: [..., 1 + K, N] float32, the tokens' after the teacher's own context and after each further one; None: not needed.
      strength: [..., N] float32, how much each token's target counts; None: all alike.
    """

    hidden: Any
    log_probs: jax.Array | None = None
    strength: jax.Array | None = None


def better(teacher: TeacherScores, student: TeacherScores) -> TeacherScores:
    """For each token the better of two: the hidden states of the other one are 0 there, so that its logits are."""
    assert teacher.log_probs is not None and student.log_probs is not None, "both were asked for them"
    of_teacher, strength = better_of_two.route(teacher.log_probs[..., 0, :], student.log_probs[..., 0, :])
    here = of_teacher[..., None]
    return TeacherScores((jnp.where(here, teacher.hidden, 0), jnp.where(here, 0, student.hidden)), None, strength)


def after_teacher(
    completions: Completions, weights: Weights, scores: TeacherScores, loss: LossOptions
) -> tuple[Completions, Weights]:
    """The completions with their contrasts, and the weights [..., N] with what the teacher's scores say of them.

    A contrast is log p_T(token after a right hint) - log p_T(token after a wrong one): 0 where there is no wrong one.
    """
    if scores.strength is not None:
        weights = weights._replace(taught_rows=weights.taught_rows * scores.strength)
    if scores.log_probs is None or not loss.by_context:
        return completions, weights
    changes = emphasis.attribution(scores.log_probs)  # [..., K, N]
    there = completions.without.weights != 0
    if loss.contrasts:
        completions = completions._replace(contrast=jnp.where(there[..., None], changes, 0.0).sum(axis=-2))
    if loss.emphasis.kind == "agreement":
        weights = _times(weights, emphasis.softened(emphasis.by_agreement(changes, there), loss.emphasis.strength))
    elif loss.emphasis.kind == "credit":
        assert completions.failed is not None, "criterion by criterion, they were graded"
        failed = jnp.where(there, completions.failed, 0.0)
        factor = emphasis.by_credit(changes, failed, completions.completion_mask)
        weights = _times(weights, emphasis.softened(factor, loss.emphasis.strength))
    return completions, weights


def _times(weights: Weights, factor: jax.Array) -> Weights:
    factor = jax.lax.stop_gradient(factor)
    return Weights(*(jnp.where(x == 0, 0.0, x * factor) for x in weights))
