"""GRPO: advantages of a prompt's samples among each other, and the clipped loss of their tokens. Pure functions on arrays.

float32 out; one value per token, the reduction (`losses.token_weights`) apart. Gradient flows to `log_probs` only. Sources: GRPO
(arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783), and TRL's `GRPOTrainer`, whose values these are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rcsd_jax.losses.array_checks import check_log_probs, shape
from rcsd_jax.losses.options import number, whole_number

_SMALL = 1e-4  # added to a group's deviation, TRL's value


def group_advantages(rewards: ArrayLike, *, group_size: int, scale: bool = True) -> jax.Array:
    """How much better each sample is than its group's mean, in the group's standard deviations.

    Args:
      rewards: [B], the samples of a prompt one after another; NaN where a sample could not be graded.
      group_size: G, samples a prompt; divides B.
      scale: divide by the group's deviation (over G - 1) + 1e-4; False: Dr. GRPO, and the mean is only taken off.

    Returns:
      [B] float32, without gradient: 0 for a NaN reward, which the rest of its group does not see.

    Raises:
      ValueError: rewards are not [B], or B is no multiple of group_size.

    Examples:
      >>> rewards = jnp.array([1.0, 0.0, 0.0, 0.0, 1.0, jnp.nan, 1.0, 1.0])  # two groups of four
      >>> [round(x, 2) for x in group_advantages(rewards, group_size=4).tolist()]
      [1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0]
      >>> group_advantages(rewards, group_size=4, scale=False)[:4].tolist()
      [0.75, -0.25, -0.25, -0.25]
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be [B], got {shape(rewards)}")
    if rewards.shape[0] % whole_number("group_size", group_size):
        raise ValueError(f"group_size must divide the {rewards.shape[0]} rewards, got {group_size!r}")
    grouped = jax.lax.stop_gradient(rewards.astype(jnp.float32)).reshape(-1, group_size)
    graded = ~jnp.isnan(grouped)
    count = graded.sum(axis=1, keepdims=True)
    mean = jnp.where(graded, grouped, 0.0).sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(graded, grouped - mean, 0.0)
    if scale:
        variance = jnp.square(centred).sum(axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
        centred = centred / (jnp.sqrt(variance) + _SMALL)
    return centred.reshape(-1)


def clipped_policy_loss(
    log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: ArrayLike = 0.2,
    clip_high: ArrayLike = 0.2,
) -> jax.Array:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per token, with r = exp(log_probs - sampler_log_probs).

    Args:
      log_probs: [B, T], of the sampled tokens under the trained model.
      sampler_log_probs: [B, T], under the model that sampled them; no gradient.
      advantages: [B], or [B, T] of single tokens, no gradient.
      clip_low, clip_high: how far a token's ratio may fall below (in [0, 1]) and rise above 1 (>= 0) and still be rewarded
        for it. Numbers, or traced scalars as schedules are; a traced one out of its range makes the result NaN.

    Returns:
      [B, T] float32.

    Raises:
      ValueError: shapes do not belong together, or a clip is out of its range.

    Examples:
      >>> log_probs, sampler = jnp.log(jnp.array([[0.6, 0.5]])), jnp.log(jnp.array([[0.3, 0.5]]))  # ratios 2 and 1
      >>> [round(x, 3) for x in clipped_policy_loss(log_probs, sampler, jnp.array([1.0]))[0].tolist()]
      [-1.2, -1.0]
      >>> [round(x, 3) for x in clipped_policy_loss(log_probs, sampler, jnp.array([-1.0]))[0].tolist()]
      [2.0, 1.0]
    """
    low, high = number("clip_low", clip_low), number("clip_high", clip_high)
    check_log_probs(log_probs=log_probs, sampler_log_probs=sampler_log_probs)
    if log_probs.ndim != 2 or advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        shapes = f"log_probs {shape(log_probs)} and advantages {shape(advantages)}"
        raise ValueError(f"log_probs must be [B, T] and advantages [B] or [B, T], got {shapes}")
    old = jax.lax.stop_gradient(sampler_log_probs.astype(jnp.float32))
    advantages = jax.lax.stop_gradient(advantages.astype(jnp.float32))
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    ratio = jnp.exp(log_probs.astype(jnp.float32) - old)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)


def reference_kl(log_probs: jax.Array, reference_log_probs: jax.Array) -> jax.Array:
    """Schulman's k3 estimate of KL(model || reference) from sampled tokens, exp(d) - d - 1 with d = reference - model.

    Args: log_probs and reference_log_probs [..., T], the latter without gradient. Returns [..., T] float32, at least 0.

    Examples:
      >>> model, reference = jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([[0.5, 0.5]]))
      >>> [round(x, 3) for x in reference_kl(model, reference)[0].tolist()]  # the second: 2 - log 2 - 1
      [0.0, 0.307]
    """
    check_log_probs(log_probs=log_probs, reference_log_probs=reference_log_probs)
    difference = jax.lax.stop_gradient(reference_log_probs.astype(jnp.float32)) - log_probs.astype(jnp.float32)
    return jnp.expm1(difference) - difference
