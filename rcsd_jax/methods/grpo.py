"""GRPO (arXiv 2402.03300) and Dr. GRPO (2503.20783): rewards of whole completions, compared within their group.

The advantages come with the completions, graded between sampling and learning. With `kl` > 0 the teacher is the reference
model: it sees what the student sees (`teacher.fields`), with the weights that `teacher.weights` names.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.losses import policy_gradient
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights, counted, total, totals


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped policy loss (+ kl * the reference's KL); arguments and results as in `self_distillation.loss_and_sums`."""
    policy, counts = options.policy, weights.all_rows
    of_tokens: dict[str, Any] = dict(chunk_size=options.chunk_size, temperature=options.temperature, mask=counts > 0)
    log_probs, entropy = losses.token_log_probs_from_hidden(
        scored.student_hidden, scored.student_head, completions.tokens, **of_tokens
    )
    clips = dict(clip_low=policy.clip_low, clip_high=policy.clip_high)
    token_loss = policy_gradient.clipped_policy_loss(
        log_probs, completions.sampler_log_probs, completions.advantages, **clips
    )
    ratio = jnp.exp(jax.lax.stop_gradient(log_probs) - completions.sampler_log_probs)
    logged = {
        "policy_loss": token_loss,
        "ratio": ratio,
        "ratio_clipped": (ratio < 1 - clips["clip_low"]) | (ratio > 1 + clips["clip_high"]),
        "sampler_trainer_log_prob_difference": jnp.abs(log_probs - completions.sampler_log_probs),
    }
    if policy.kl:
        hidden, head = scored.teacher_hidden, scored.teacher_head
        assert isinstance(hidden, jax.Array) and isinstance(head, jax.Array), "it is one reference model"
        reference, _ = losses.token_log_probs_from_hidden(hidden, head, completions.tokens, **of_tokens)
        kl = policy_gradient.reference_kl(log_probs, reference)
        if options.shared_tokens is not None:  # the reference may not have the token
            kl = jnp.where(completions.tokens < options.shared_tokens, kl, 0.0)
        token_loss += policy.kl * kl
        logged["reference_kl"] = kl
    sums = {name: total(counts, jax.lax.stop_gradient(values)) for name, values in logged.items()}
    sums |= totals(counts, {"student_entropy": entropy}, completions, options)
    return losses.weighted_sum(token_loss, counts), sums | {"token_loss": counted(counts, token_loss)}
