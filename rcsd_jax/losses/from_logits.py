"""Divergences and log-probabilities from logits [..., T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rcsd_jax.losses.array_checks import check_logits, checked_tokens
from rcsd_jax.losses.divergences import divergence_of, sampled_token
from rcsd_jax.losses.explicit_mesh import automatic
from rcsd_jax.losses.log_probs import entropy_of, log_softmax, of_tokens, without_ignored
from rcsd_jax.losses.options import DivergenceOptions, Scalar, number


def per_token_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    beta: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
    top_k_support: str = "teacher",
    tail: str = "renormalize",
    entry_clip: ArrayLike | None = None,
    token_clip: ArrayLike | None = None,
) -> jax.Array:
    """Divergence per token, [..., T, V] twice -> [..., T] float32.

    Args:
      student_logits, teacher_logits: [..., T, V], bfloat16 or float32; the teacher gets no gradient.
      beta: 0 forward KL, 1 reverse KL, between: generalized Jensen-Shannon.
      temperature: divides both roles' logits; at least `SMALLEST_TEMPERATURE`.
      top_k: keep only k entries per position; None or k >= V keeps all.
      top_k_support: "teacher" (RCSD release) or "student" (TRL's SDFT): whose k most likely entries.
      tail: the mass outside the support: "renormalize" drops it, "bucket" makes it one more entry.
      entry_clip: upper clamp of each vocabulary entry's pointwise term before the sum. For 0 < beta < 1 that term is
        the weighted combination of both KLs' terms, clamped once, as in the RCSD release.
      token_clip: upper clamp of the per-token sum.

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.

    Examples:
      >>> student = jnp.log(jnp.array([[0.4, 0.6], [0.9, 0.1]]))  # [T, V]
      >>> teacher = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
      >>> [round(x, 3) for x in per_token_divergence(student, teacher).tolist()]  # forward KL
      [0.02, 0.511]
      >>> [round(x, 3) for x in per_token_divergence(student, teacher, beta=1.0).tolist()]  # reverse KL
      [0.02, 0.368]
      >>> [round(x, 3) for x in per_token_divergence(student, teacher, token_clip=0.1).tolist()]
      [0.02, 0.1]
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    divergence = DivergenceOptions(
        beta=beta, top_k=top_k, top_k_support=top_k_support, tail=tail, entry_clip=entry_clip, token_clip=token_clip
    )

    def value(options: tuple[DivergenceOptions, Scalar], *logits: jax.Array) -> jax.Array:
        divergence, temperature = options
        student, teacher = (log_softmax(x, temperature) for x in logits)
        return divergence_of(divergence, student, jax.lax.stop_gradient(teacher))

    options = divergence, number("temperature", temperature)
    return automatic(value, options, student_logits, teacher_logits)


def sampled_token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    tokens: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> jax.Array:
    """Policy-gradient estimate of the reverse KL: -stop_grad(log pT(y) - log pS(y)) * log pS(y).

    Args: logits [..., T, V]; tokens [..., T] int32. Returns [..., T] float32. Source: on-policy distillation, TRL SDFT.

    Examples:
      >>> student, teacher = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.5, 0.5]]))
      >>> round(float(sampled_token_loss(student, teacher, jnp.array([1]))[0]), 3)  # (log 0.5 - log 0.1) * -log 0.1
      3.706
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = (
        token_log_probs(logits, tokens, temperature=temperature, ignore_index=ignore_index)
        for logits in (student_logits, teacher_logits)
    )
    return sampled_token(student, teacher)


def entropy(logits: jax.Array, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Entropy in nats of softmax(logits / temperature), [..., T, V] -> [..., T] float32.

    Examples:
      >>> round(float(entropy(jnp.zeros(4))), 3)  # log 4
      1.386
    """
    check_logits(logits=logits)
    temperature = number("temperature", temperature)
    return automatic(lambda temperature, x: entropy_of(log_softmax(x, temperature)), temperature, logits)


def token_log_probs(
    logits: jax.Array, tokens: jax.Array, *, temperature: ArrayLike = 1.0, ignore_index: int | None = None
) -> jax.Array:
    """Log-probability of `tokens` [..., T] under softmax(logits [..., T, V] / temperature); [..., T] float32.

    A token that is `ignore_index` gives 0 without gradient; any other token outside the vocabulary gives NaN.

    Examples:
      >>> log_probs = token_log_probs(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1]))
      >>> round(float(jnp.exp(log_probs[0])), 3)
      0.75
    """
    check_logits(logits=logits)
    tokens = checked_tokens(tokens, logits.shape[:-1], "logits [..., T, V]")
    temperature = number("temperature", temperature)
    tokens, ignored = without_ignored(tokens, ignore_index)
    log_probs = automatic(
        lambda temperature, x, tokens: of_tokens(log_softmax(x, temperature), tokens), temperature, logits, tokens
    )
    return log_probs if ignored is None else jnp.where(ignored, 0.0, log_probs)
