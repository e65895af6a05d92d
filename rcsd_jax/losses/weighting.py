"""How tokens weigh: means and sums over a batch's tokens, and importance weights."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rcsd_jax.losses.array_checks import check_log_probs, check_same_shape, check_shape, shape
from rcsd_jax.losses.log_probs import clamp
from rcsd_jax.losses.options import check_choice, number, whole_number
from rcsd_jax.losses.traced import is_traced

REDUCTIONS = ("tokens", "completions", "longest")


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` where `mask` is nonzero, a float32 scalar; 0 with zero gradient when the mask is empty.

    Values at masked-out positions never matter, even inf or NaN.

    Examples:
      >>> float(masked_mean(jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([[1, 1, 0]])))
      1.5
    """
    check_same_shape(values=values, mask=mask)
    mask = jnp.asarray(mask).astype(bool)
    return jnp.where(mask, jnp.asarray(values).astype(jnp.float32), 0.0).sum() / jnp.maximum(mask.sum(), 1)


def token_weights(
    mask: jax.Array, reduction: str, *, max_length: int | None = None, counted: jax.Array | None = None
) -> jax.Array:
    """The weight of each token in a batch's loss, [B, T] float32; 0 outside the mask.

    Args:
      mask: [B, T], the completions' tokens that count.
      reduction: "tokens": every token weighs the same, the mean over the batch's tokens. "completions": every completion
        weighs the same, whatever its length; an empty one counts as 0 (GRPO). "longest": every token weighs
        1 / (B max_length), as if all completions were that long (Dr. GRPO).
      max_length: for "longest"; None: T.
      counted: [B], which completions belong to the batch; the others count in neither numerator nor denominator. None: all.

    Raises:
      ValueError: an unknown reduction, or shapes that do not match.

    Examples:
      >>> mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]])
      >>> token_weights(mask, "completions").tolist()
      [[0.125, 0.125, 0.125, 0.125], [0.5, 0.0, 0.0, 0.0]]
      >>> token_weights(mask, "longest").tolist()
      [[0.125, 0.125, 0.125, 0.125], [0.125, 0.0, 0.0, 0.0]]
      >>> token_weights(mask, "completions", counted=jnp.array([1, 0])).tolist()
      [[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]]
      >>> [round(x, 3) for x in token_weights(mask, "tokens").sum(axis=1).tolist()]  # the longer one weighs more
      [0.8, 0.2]
    """
    check_choice("reduction", reduction, REDUCTIONS)
    mask = jnp.asarray(mask).astype(bool)
    if mask.ndim != 2:
        raise ValueError(f"mask must be [B, T], got {shape(mask)}")
    length = mask.shape[1] if max_length is None else whole_number("max_length", max_length)
    rows: int | jax.Array = mask.shape[0]
    if counted is not None:
        check_shape("counted", counted, mask.shape[:1], "mask [B, T]")
        mask &= counted.astype(bool)[:, None]
        rows = counted.astype(bool).sum()
    if reduction == "tokens":
        total = mask.sum()
    elif reduction == "completions":
        total = mask.sum(axis=1, keepdims=True) * rows
    else:
        total = jnp.asarray(rows * length)
    return mask / jnp.maximum(total, 1).astype(jnp.float32)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weights * values, a float32 scalar; values of weight 0 never matter, even inf or NaN, nor do gradients there.

    Examples:
      >>> float(weighted_sum(jnp.array([3.0, jnp.inf]), jnp.array([0.5, 0.0])))
      1.5
    """
    check_same_shape(values=values, weights=weights)
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    there = weights != 0
    return jnp.where(there, weights * jnp.where(there, values.astype(jnp.float32), 0.0), 0.0).sum()


def importance_weight(
    trainer_log_probs: jax.Array, sampler_log_probs: jax.Array, *, clip: ArrayLike = 2.0
) -> jax.Array:
    """Truncated importance weight min(exp(trainer - sampler), clip), [..., T] float32, without gradient.

    Examples:
      >>> trainer, sampler = jnp.log(jnp.array([0.5, 0.9])), jnp.log(jnp.array([0.4, 0.1]))
      >>> [round(x, 3) for x in importance_weight(trainer, sampler, clip=2.0).tolist()]
      [1.25, 2.0]
    """
    check_log_probs(trainer_log_probs=trainer_log_probs, sampler_log_probs=sampler_log_probs)
    limit = number("clip", clip)
    difference = trainer_log_probs.astype(jnp.float32) - sampler_log_probs.astype(jnp.float32)
    # The minimum is taken on the log, so that exp cannot overflow.
    log_limit = jnp.log(limit) if is_traced(limit) else math.log(limit)
    return jax.lax.stop_gradient(jnp.exp(clamp(difference, log_limit)))
