"""On-policy self-distillation (RCSD, arXiv 2606.19327; OPSD, 2601.18734): the student is moved towards the teacher.

    D_t = D( p_T(. | x, r, ŷ_<t)  ||  p_S(. | x, ŷ_<t) )         teacher without gradient
    L   = sum_t m_t D_t / sum_t m_t                              m = completion mask, in rows with a teacher's context

Stage I, Stage II, OPSD, SDFT and SDPO are this one loss with other contexts, teachers and masks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax import losses
from rcsd_jax.losses.from_hidden import emphasis_of
from rcsd_jax.methods.contract import CompletionTokens, LossOptions, Scored, Weights, counted, total, totals


def loss_and_sums(
    scored: Scored, completions: CompletionTokens, weights: Weights, options: LossOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A (micro)batch's part of the loss, differentiable in the student's scores, and sums for logging.

    Args:
      scored: both roles' scores of the completions' tokens [R, T].
      completions: these tokens.
      weights: theirs, of `contract.weigh`.
      options: static choices.

    Returns:
      loss: scalar float32, sum_t weights_t D_t over the taught rows.
      sums: results of `contract.total` over the tokens that the loss counts, and `token_loss` [R, T] of `contract.counted`.
    """
    teacher = scored.teacher_hidden if completions.known is None else completions.known
    assert teacher is not None, "this method has a teacher"
    heads = scored.student_head, scored.teacher_head
    student_head, teacher_head = jax.tree.map(lambda x: x[:, : options.shared_tokens], heads)
    if options.shared_tokens is not None:  # a token that one of the two does not have says nothing of their distance
        known = completions.tokens < options.shared_tokens
        weights = weights._replace(taught_rows=jnp.where(known, weights.taught_rows, 0.0))
    loss, scores = losses.weighted_divergence_from_hidden(
        scored.student_hidden,
        student_head,
        teacher,
        teacher_head,
        completions.tokens,
        weights.taught_rows,
        chunk_size=options.chunk_size,
        temperature=options.temperature,
        sampler_log_probs=completions.sampler_log_probs,
        importance_clip=options.importance_clip,
        emphasis=options.emphasis.in_pass,
        emphasis_strength=options.emphasis.strength,
        **vars(options.divergence),
    )
    token_loss = scores.divergence  # [R, T]
    if options.importance_clip is not None:
        token_loss *= losses.importance_weight(
            scores.student_log_probs, completions.sampler_log_probs, clip=options.importance_clip
        )
    if options.emphasis.in_pass is not None:
        factor = emphasis_of(options.emphasis.in_pass, options.emphasis.strength, scores)
        token_loss *= factor
    ratio = jnp.exp(scores.student_log_probs - completions.sampler_log_probs)
    of_parts = {
        "divergence": scores.divergence,
        "student_entropy": scores.student_entropy,
        **({} if completions.known is not None else {"teacher_entropy": scores.teacher_entropy}),
    }
    logged = {
        "teacher_advantage": scores.teacher_log_probs - scores.student_log_probs,
        "sampler_trainer_log_prob_difference": jnp.abs(scores.student_log_probs - completions.sampler_log_probs),
        "ratio": ratio,
    }
    if options.importance_clip is not None:
        logged["importance_clipped"] = ratio > options.importance_clip
    if options.emphasis.in_pass is not None:
        logged["emphasis"] = factor
    sums = totals(weights.taught_rows, of_parts, completions, options)
    sums |= {name: total(weights.taught_rows, values) for name, values in logged.items()}
    return loss, sums | {"token_loss": counted(weights.taught_rows, token_loss)}
