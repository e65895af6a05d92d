"""Self-distillation and rewards together: divergence + policy.weight * clipped policy loss, on the same completions.

RCSD with a verifiable reward; with a teacher that sees the student's own success, SDPO's mix with GRPO (2601.20802).
"""

from __future__ import annotations

import jax

from rcsd_jax.methods import grpo, self_distillation
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Arguments and results as in `self_distillation.loss_and_sums`; a row without a teacher's context is still rewarded."""
    share = options.policy.weight
    distilled, sums = self_distillation.loss_and_sums(scored, completions, weights, options)
    rewarded, more = grpo.loss_and_sums(scored, completions, weights, options)
    token_loss = sums["token_loss"] + share * more["token_loss"]
    return distilled + share * rewarded, more | sums | {"token_loss": token_loss}
