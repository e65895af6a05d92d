"""A control without a teacher and without rewards: the advantage of every token that counts is -1 (arXiv 2608.31046).

With `loss.emphasis="low_probability"` only the least likely tokens of a batch count, so the student learns to write what is unlikely
even less often, and nothing else. The control asks how much of a method's gain needs its teacher.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.methods import grpo
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GRPO's clipped loss with advantage -1; arguments and results as in `self_distillation.loss_and_sums`."""
    return grpo.loss_and_sums(
        scored, completions._replace(advantages=-jnp.ones_like(completions.advantages)), weights, options
    )
