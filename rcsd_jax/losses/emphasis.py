"""How much a token's loss counts next to others: emphases [..., T] float32, without gradient, which multiply the weights of a mean.

Most lie between 0 and 1; `by_credit` is 1 on average over a completion. `softened` mixes one with 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rcsd_jax.losses.array_checks import check_same_shape, check_shape

MIDDLE, WIDTH = 0.3, 0.1  # of the rise of `by_position`, as shares of a completion

OF_COMPLETIONS = ("position", "low_probability")
"""Kinds that follow from completions before anything is scored."""

OF_CONTEXTS = ("agreement", "credit")
"""Kinds that follow from the teacher's log-probabilities after several contexts."""


def softened(emphasis: jax.Array, strength: float) -> jax.Array:
    """1 - strength + strength * emphasis: with strength 0 all tokens count alike.

    Examples:
      >>> softened(jnp.array([0.0, 1.0]), 0.75).tolist()
      [0.25, 1.0]
    """
    return 1.0 - strength + strength * emphasis


def by_position(mask: jax.Array) -> jax.Array:
    """Rises along a completion: sigmoid((place - 0.3) / 0.1), with the place of its n tokens at 1/2n, 3/2n, and so on.

    Softened by 0.75, this is PW-OPSD's weight (arXiv 2605.21606), which begins at 0.25.

    Args:
      mask: [B, T], the tokens that count; the others get 0.

    Examples:
      >>> [round(x, 2) for x in by_position(jnp.array([[1, 1, 1, 1, 0]]))[0].tolist()]
      [0.15, 0.68, 0.96, 1.0, 0.0]
    """
    there = jnp.asarray(mask).astype(bool)
    place = (jnp.cumsum(there, axis=-1) - 0.5) / jnp.maximum(there.sum(axis=-1, keepdims=True), 1)
    return jnp.where(there, jax.nn.sigmoid((place - MIDDLE) / WIDTH), 0.0)


def low_probability(log_probs: jax.Array, mask: jax.Array, *, share: float) -> jax.Array:
    """1 for the share of a batch's tokens that were least likely (at least one token), and 0 for the others (arXiv 2608.31046).

    Args:
      log_probs: [B, T], of the sampled tokens.
      mask: [B, T], the tokens that count.
      share: of these tokens, rounded down; of equally likely ones the first count.

    Examples:
      >>> low_probability(jnp.array([[-1.0, -9.0, -2.0, -3.0]]), jnp.array([[1, 0, 1, 1]]), share=0.5).tolist()
      [[0.0, 0.0, 0.0, 1.0]]
    """
    check_same_shape(log_probs=log_probs, mask=mask)
    there = jnp.asarray(mask).astype(bool).reshape(-1)
    values = jnp.where(there, jax.lax.stop_gradient(log_probs).astype(jnp.float32).reshape(-1), jnp.inf)
    count = jnp.maximum(jnp.floor(share * there.sum() + 1e-4), 1)  # 0.2 * 35 is below 7 in float32
    order = jnp.argsort(values, stable=True)
    rank = jnp.zeros(values.shape, jnp.int32).at[order].set(jnp.arange(values.size, dtype=jnp.int32))
    return (there & (rank < count)).astype(jnp.float32).reshape(log_probs.shape)


def teacher_sure(
    student: jax.Array, teacher: jax.Array, student_entropy: jax.Array, teacher_entropy: jax.Array
) -> jax.Array:
    """exp(-H_T): 1 where the teacher is sure of the next token; arguments as of `IN_PASS`.

    Examples:
      >>> zeros = jnp.zeros(2)
      >>> [round(x, 2) for x in teacher_sure(zeros, zeros, zeros, jnp.array([0.0, 2.0])).tolist()]
      [1.0, 0.14]
    """
    return jnp.exp(-teacher_entropy)


def student_unsure(
    student: jax.Array, teacher: jax.Array, student_entropy: jax.Array, teacher_entropy: jax.Array
) -> jax.Array:
    """1 - exp(-H_S): 0 where the student is sure, and near 1 where completions fork; arguments as of `IN_PASS`.

    Examples:
      >>> zeros = jnp.zeros(2)
      >>> [round(x, 2) for x in student_unsure(zeros, zeros, jnp.array([0.0, 2.0]), zeros).tolist()]
      [0.0, 0.86]
    """
    return -jnp.expm1(-student_entropy)


def gap(student: jax.Array, teacher: jax.Array, student_entropy: jax.Array, teacher_entropy: jax.Array) -> jax.Array:
    """1 - exp(-|log p_T - log p_S|) of the sampled token: 0 where the roles agree on it; arguments as of `IN_PASS`.

    Examples:
      >>> zeros = jnp.zeros(2)
      >>> [round(x, 2) for x in gap(jnp.array([-3.0, -3.0]), jnp.array([-3.0, -1.0]), zeros, zeros).tolist()]
      [0.0, 0.86]
    """
    return -jnp.expm1(-jnp.abs(teacher - student))


IN_PASS: dict[str, Callable[..., jax.Array]] = {
    "teacher_sure": teacher_sure,
    "student_unsure": student_unsure,
    "gap": gap,
}
"""Kinds that follow from both roles' scores, (log p_S, log p_T, H_S, H_T) -> [..., T]: log-probabilities of the sampled tokens, and
entropies, in nats."""


def attribution(log_probs: jax.Array) -> jax.Array:
    """What a token's log-probability loses without each criterion, [..., K, T], in nats.

    Args:
      log_probs: [..., 1 + K, T], the teacher's of the sampled tokens after the whole rubric, and after it without each of K criteria.
    """
    log_probs = jax.lax.stop_gradient(log_probs.astype(jnp.float32))
    return log_probs[..., :1, :] - log_probs[..., 1:, :]


def by_agreement(attributions: jax.Array, there: jax.Array) -> jax.Array:
    """exp(-s), s being the deviation of a token's log-probability over rubrics that each lack a criterion: 1 where they agree.

    Args:
      attributions: [..., K, T], of `attribution`.
      there: [..., K], which of the K criteria the rubric has; without any the result is 1.

    Examples:
      >>> changes = jnp.array([[0.0, 1.0], [0.0, -1.0], [9.0, 9.0]])
      >>> [round(x, 2) for x in by_agreement(changes, jnp.array([True, True, False])).tolist()]
      [1.0, 0.37]
    """
    check_shape("there", there, attributions.shape[:-1], "attributions [..., K, T] without the last axis")
    of = there.astype(jnp.float32)[..., None]
    count = jnp.maximum(of.sum(axis=-2, keepdims=True), 1.0)
    mean = (of * attributions).sum(axis=-2, keepdims=True) / count
    variance = (of * jnp.square(attributions - mean)).sum(axis=-2, keepdims=True) / count
    return jnp.exp(-jnp.sqrt(variance))[..., 0, :]


def by_credit(attributions: jax.Array, failed: jax.Array, mask: jax.Array) -> jax.Array:
    """Where the criteria that a completion fails speak: sum_k f_k |A_kt|, over its mean over the completion's tokens.

    A completion that fails no criterion, or whose failed criteria change no token, gets 1 everywhere.

    Args:
      attributions: A [..., K, T], of `attribution`.
      failed: f [..., K] float32, at least 0: how much each failed criterion weighs, and 0 for those that are met.
      mask: [..., T], the tokens that count; the others get 0.

    Examples:
      >>> changes = jnp.array([[0.5, -1.5, 0.0], [3.0, 3.0, 0.0]])
      >>> by_credit(changes, jnp.array([2.0, 0.0]), jnp.array([1, 1, 0])).tolist()
      [0.5, 1.5, 0.0]
      >>> by_credit(changes, jnp.array([0.0, 0.0]), jnp.array([1, 1, 0])).tolist()
      [1.0, 1.0, 0.0]
    """
    check_shape("failed", failed, attributions.shape[:-1], "attributions [..., K, T] without the last axis")
    counts = jnp.asarray(mask).astype(jnp.float32)
    credit = (failed.astype(jnp.float32)[..., None] * jnp.abs(attributions)).sum(axis=-2)
    mean = (counts * credit).sum(axis=-1, keepdims=True) / jnp.maximum(counts.sum(axis=-1, keepdims=True), 1.0)
    return counts * jnp.where(mean > 0, credit / jnp.where(mean > 0, mean, 1.0), 1.0)


KINDS = ("alike", *OF_COMPLETIONS, *IN_PASS, *OF_CONTEXTS)
"""How tokens are emphasised; "alike": not at all."""
