"""Supervised fine-tuning: cross-entropy of completions, usually the data's references (`sampling.source`)."""

from __future__ import annotations

import jax

from rcsd_jax import losses
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights, counted, totals


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """sum_t weights_t * -log p_S(ŷ_t), at temperature 1; arguments and results as in `self_distillation.loss_and_sums`."""
    counts = weights.all_rows
    log_probs, entropy = losses.token_log_probs_from_hidden(
        scored.student_hidden,
        scored.student_head,
        completions.tokens,
        chunk_size=options.chunk_size,
        mask=counts > 0,
    )
    sums = totals(counts, {"cross_entropy": -log_probs, "student_entropy": entropy}, completions, options)
    return losses.weighted_sum(-log_probs, counts), sums | {"token_loss": counted(counts, -log_probs)}
