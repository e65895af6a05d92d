"""RLCSD (arXiv 2606.11709): rewards decide the direction, and hints how far each token moves in it.

    e_t = log p_T(ŷ_t | x, right hint, ŷ_<t) - log p_T(ŷ_t | x, wrong hint, ŷ_<t)
    r_t = 0.5 tanh(e_t / 0.02), and 0 where it is at most 0.02
    A_t = A + r_t, but 0 where that has another sign than A

What both hints change alike, such as the style, is no part of e. The constants are those of the authors' runs with Qwen3. They take a
mean over tokens with r_t = 0 and one over the others, and add both; here all tokens have one mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.methods import grpo
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights, total

STEEPNESS, MOST, LEAST = 0.02, 0.5, 0.02  # the authors' tau, beta * lambda and delta


def modulated(advantages: jax.Array, contrast: jax.Array) -> jax.Array:
    """The advantages A_t [..., T] of the tokens, from those of their completions and e [..., T]; no gradient.

    Examples:
      >>> advantages, contrast = jnp.array([[1.0, 1.0, -0.2, 0.0]]), jnp.array([[9.0, 0.0, 9.0, 9.0]])
      >>> [round(x, 2) for x in modulated(advantages, contrast)[0].tolist()]
      [1.5, 1.0, -0.0, 0.0]
    """
    advantages, contrast = jax.lax.stop_gradient((advantages, contrast))
    change = MOST * jnp.tanh(contrast / STEEPNESS)
    moved = advantages + jnp.where(jnp.abs(change) > LEAST, change, 0.0)
    return jnp.sign(advantages) * jnp.maximum(jnp.sign(advantages) * moved, 0.0)


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GRPO's clipped loss with these advantages; arguments and results as in `self_distillation.loss_and_sums`."""
    assert completions.contrast is not None, "the teacher has a right and a wrong hint"
    advantages = modulated(completions.advantages, completions.contrast)
    loss, sums = grpo.loss_and_sums(scored, completions._replace(advantages=advantages), weights, options)
    return loss, sums | {"hint_contrast": total(weights.taught_rows, jnp.abs(completions.contrast))}
