"""Divergences of two roles from their hidden states [B, T, D], never holding more than one chunk of logits.

Two passes over the chunks do all the work: `_stats`, and `_stats_and_gradients`, which takes the gradients of hidden states
and head while a chunk's logits are there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rcsd_jax.losses.array_checks import check_both_roles, checked_tokens
from rcsd_jax.losses.chunks import add_head_gradient, chunk_size_of, logits_of, scan_chunks
from rcsd_jax.losses.divergences import divergence_of, gradient_of, has_closed_gradient
from rcsd_jax.losses.emphasis import IN_PASS, softened
from rcsd_jax.losses.explicit_mesh import automatic
from rcsd_jax.losses.known import KnownLogProbs, teacher_logits
from rcsd_jax.losses.log_probs import entropy_of, log_softmax, of_tokens, without_ignored
from rcsd_jax.losses.options import DivergenceOptions, Scalar, check_choice, number, optional_number
from rcsd_jax.losses.traced import apart, together
from rcsd_jax.losses.weighting import importance_weight, weighted_sum

Teachers: TypeAlias = jax.Array | tuple[jax.Array, ...] | KnownLogProbs | None
"""The teacher's array, or one of each teacher; or the log-probabilities that are known, with None as the head."""


class DivergenceStats(NamedTuple):
    """Per-token quantities of one pass over the vocabulary, float32. Only `divergence` carries gradient."""

    divergence: jax.Array  # [B, T]
    student_log_probs: jax.Array  # [B, T], of the given tokens
    teacher_log_probs: jax.Array  # [B, T], of the given tokens
    student_entropy: jax.Array  # [B, T], nats
    teacher_entropy: jax.Array  # [B, T], nats


def divergence_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    *,
    chunk_size: int,
    mask: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`per_token_divergence` of hidden @ head, [B, T] float32, holding one chunk of logits at a time.

    Differentiable as `score_from_hidden`.

    Args: hidden [B, T, D]; head [D, V] (the roles' D and heads may differ); mask [B, T], outside of which the divergence
      is 0; `options` as in `per_token_divergence`.

    Examples:
      >>> from rcsd_jax.losses import per_token_divergence
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> whole = per_token_divergence(hidden @ head, -hidden @ head, temperature=1.2)
      >>> chunked = divergence_from_hidden(hidden, head, -hidden, head, chunk_size=2, temperature=1.2)
      >>> bool(jnp.allclose(chunked, whole))
      True
    """
    for name in ("divergence", "ignore_index"):
        if name in options:
            raise ValueError(f"divergence_from_hidden has no option {name}={options[name]!r}: it takes no tokens")
    check_both_roles(student_hidden, student_head, teacher_hidden, teacher_head, mask=mask)
    checked = _options("divergence_from_hidden", student_hidden, chunk_size, options)
    tokens = jnp.zeros(student_hidden.shape[:2], jnp.int32)
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens)
    return _masked_scores(checked, *inputs, mask=mask, ignore_index=None).divergence


def score_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    tokens: jax.Array,
    *,
    chunk_size: int,
    mask: jax.Array | None = None,
    ignore_index: int | None = None,
    **options: Any,
) -> DivergenceStats:
    """All per-token quantities of a step in one pass over chunks of T, never holding more than one chunk of logits.

    The batch axis stays whole and keeps its sharding. Reverse-mode differentiable in student_hidden and student_head
    through `divergence`. The backward pass computes each chunk's logits again, which `weighted_divergence_from_hidden`
    avoids. If the head needs no gradient (LoRA), none is computed.

    Args:
      student_hidden, teacher_hidden: [B, T, D]; student_head, teacher_head: [D, V]; tokens: [B, T] int32. Of several teachers,
        tuples of hidden states and of heads: their logits are added, so states that are 0 leave a token to the others. Instead of
        hidden states `KnownLogProbs`, with None as the head.
      chunk_size: positions per chunk; T need not be a multiple.
      mask: [B, T], outside of which `divergence` is 0; None: nowhere.
      ignore_index: a token where all quantities are 0, wherever it stands.
      options: those of `per_token_divergence`, and `divergence`: "vocabulary" (the default) or "sampled_token"
        (`sampled_token_loss`, which takes temperature and token_clip; beta does not matter, top_k and entry_clip are refused).

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.
      TypeError: an option is unknown.
    """
    check_both_roles(student_hidden, student_head, teacher_hidden, teacher_head, mask=mask)
    tokens = checked_tokens(tokens, student_hidden.shape[:2], "the hidden states [B, T, D]")
    checked = _options("score_from_hidden", student_hidden, chunk_size, options)
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens)
    return _masked_scores(checked, *inputs, mask=mask, ignore_index=ignore_index)


def weighted_divergence_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    tokens: jax.Array,
    weights: jax.Array,
    *,
    chunk_size: int,
    sampler_log_probs: jax.Array | None = None,
    importance_clip: ArrayLike | None = None,
    emphasis: str | None = None,
    emphasis_strength: float = 1.0,
    ignore_index: int | None = None,
    **options: Any,
) -> tuple[jax.Array, DivergenceStats]:
    """sum_t weights_t * divergence_t as one scalar, and the per-token quantities without gradient.

    This is the loss of a train step. Each token's weight is known while its logits are in memory, so the same pass takes
    the gradients of hidden states and head, with as many products with the heads as the plain path.

    Args:
      student_hidden, student_head, teacher_hidden, teacher_head, tokens, chunk_size, options: as in `score_from_hidden`.
      weights: [B, T], no gradient; a token of weight 0 never matters, even if its divergence is inf or NaN. Chunks after
        the last token with a weight are not computed, and the quantities are 0 there.
      sampler_log_probs: [B, T], of the tokens as the sampler saw them; with `importance_clip` every token's weight is
        multiplied by its `importance_weight`.
      importance_clip: the clip of that weight; None: no importance weight.
      emphasis: multiplies every token's weight by one of `emphasis.IN_PASS`, which is in [0, 1]; None: by nothing.
      emphasis_strength: how far, see `emphasis.softened`.
      ignore_index: a token that weighs nothing and where all quantities are 0, wherever it stands.

    Returns:
      (weighted sum, float32 scalar, differentiable in student_hidden and student_head; `DivergenceStats`).

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.
      TypeError: an option is unknown.

    Examples:
      >>> from rcsd_jax.losses import masked_mean, token_weights
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> tokens, mask = jnp.zeros((1, 4), jnp.int32), jnp.array([[1, 1, 1, 0]])
      >>> weights = token_weights(mask, "tokens")
      >>> total, stats = weighted_divergence_from_hidden(hidden, head, -hidden, head, tokens, weights, chunk_size=2)
      >>> bool(jnp.allclose(total, masked_mean(stats.divergence, mask)))
      True
    """
    by_token = dict(weights=weights, sampler_log_probs=sampler_log_probs)
    check_both_roles(student_hidden, student_head, teacher_hidden, teacher_head, **by_token)
    tokens = checked_tokens(tokens, student_hidden.shape[:2], "the hidden states [B, T, D]")
    checked = _options("weighted_divergence_from_hidden", student_hidden, chunk_size, options, importance_clip)
    if emphasis is not None:
        check_choice("emphasis", emphasis, tuple(IN_PASS))
        checked = checked._replace(emphasis=emphasis, emphasis_strength=emphasis_strength)
    if importance_clip is None:
        sampler_log_probs = jnp.zeros_like(tokens, jnp.float32)
    elif sampler_log_probs is None:
        raise ValueError(f"importance_clip={importance_clip!r} needs sampler_log_probs")
    tokens, ignored = without_ignored(tokens, ignore_index)
    weights = jnp.asarray(weights).astype(jnp.float32)
    weights = weights if ignored is None else jnp.where(ignored, 0.0, weights)
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens, weights, sampler_log_probs)
    total, stats = automatic(
        lambda options, *x: _weighted(*apart(options), *x), checked, *inputs, axes=2, scalar_first=True
    )
    return total, jax.lax.stop_gradient(_silent(stats, ignored))


class _Options(NamedTuple):
    divergence: DivergenceOptions
    temperature: Scalar
    chunk_size: int
    importance_clip: Scalar | None
    emphasis: str | None = None
    emphasis_strength: float = 1.0


def _options(
    function: str, hidden: jax.Array, chunk_size: Any, options: dict[str, Any], importance_clip: Any = None
) -> _Options:
    """The checked options of a function of hidden states [B, T, D].

    Raises:
      TypeError: one is unknown.
      ValueError: one is out of its range.
    """
    of_divergence = dict(options)
    temperature = of_divergence.pop("temperature", 1.0)
    known = [field.name for field in dataclasses.fields(DivergenceOptions)]
    for name in of_divergence:
        if name not in known:
            raise TypeError(f"{function} has no option {name!r}; its options are temperature, {', '.join(known)}")
    return _Options(
        DivergenceOptions(**of_divergence),
        number("temperature", temperature),
        chunk_size_of(chunk_size, hidden),
        optional_number("importance_clip", importance_clip),
    )


def _masked_scores(
    options: _Options, *inputs: Any, mask: jax.Array | None, ignore_index: int | None
) -> DivergenceStats:
    """The stats of the roles' hidden states, heads and tokens; 0 outside the mask and at ignored tokens."""
    *roles, tokens = inputs
    tokens, ignored = without_ignored(tokens, ignore_index)
    mask = jnp.ones_like(tokens, bool) if mask is None else jnp.asarray(mask).astype(bool)

    def masked(options: _Options, *arrays: Any) -> DivergenceStats:
        *inputs, mask = arrays
        stats = _differentiable_stats(*apart(options), *inputs)
        return stats._replace(divergence=jnp.where(mask, stats.divergence, 0.0))

    return _silent(automatic(masked, options, *roles, tokens, mask, axes=2), ignored)


def _silent(stats: DivergenceStats, ignored: jax.Array | None) -> DivergenceStats:
    if ignored is None:
        return stats
    return DivergenceStats(*(jnp.where(ignored, 0.0, x) for x in stats))


# --- the scalar loss: gradients are taken in the forward pass, the backward pass scales them -----------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(
    static: Any,
    traced: list[jax.Array],
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    tokens: jax.Array,
    weights: jax.Array,
    sampler_log_probs: jax.Array,
) -> tuple[jax.Array, DivergenceStats]:
    options = together(static, traced)
    stats = _stats(options, student_hidden, student_head, teacher_hidden, teacher_head, tokens, weights)
    return _total(options, stats, weights, sampler_log_probs), stats


def _weighted_forward(
    static: Any, traced: list[jax.Array], *inputs: jax.Array
) -> tuple[tuple[jax.Array, DivergenceStats], tuple[jax.Array, jax.Array]]:
    options = together(static, traced)
    stats, hidden_gradient, head_gradient = _stats_and_gradients(options, *inputs)
    *_, weights, sampler_log_probs = inputs
    return (_total(options, stats, weights, sampler_log_probs), stats), (hidden_gradient, head_gradient)


def _weighted_backward(
    static: Any, gradients: tuple[jax.Array, jax.Array], cotangents: tuple[jax.Array, Any]
) -> tuple[jax.Array | None, ...]:
    scale, _ = cotangents
    hidden_gradient, head_gradient = ((scale * x.astype(jnp.float32)).astype(x.dtype) for x in gradients)
    return None, hidden_gradient, head_gradient, *[None] * 5


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _total(
    options: _Options, stats: DivergenceStats, weights: jax.Array, sampler_log_probs: jax.Array | None
) -> jax.Array:
    return weighted_sum(stats.divergence, _times_factors(options, stats, weights, sampler_log_probs))


def _times_factors(
    options: _Options, stats: DivergenceStats, weights: jax.Array, sampler_log_probs: jax.Array | None
) -> jax.Array:
    """The weights times the factors that are known only now: importance weights and emphases."""
    if options.importance_clip is not None:
        assert sampler_log_probs is not None, "`weighted_divergence_from_hidden` asks for them"
        weights *= importance_weight(stats.student_log_probs, sampler_log_probs, clip=options.importance_clip)
    if options.emphasis is not None:
        factor = emphasis_of(options.emphasis, options.emphasis_strength, stats)
        weights = jnp.where(weights == 0, 0.0, weights * factor)  # what is not finite there does not matter
    return weights


def emphasis_of(kind: str, strength: float, stats: DivergenceStats) -> jax.Array:
    """The emphases [..., T] of a kind of `emphasis.IN_PASS`, softened and without gradient."""
    _, *scores = stats
    return jax.lax.stop_gradient(softened(IN_PASS[kind](*scores), strength))


# --- one value per token: the weights are known in the backward pass only -------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable_stats(static: Any, traced: list[jax.Array], *inputs: jax.Array) -> DivergenceStats:
    return _stats(together(static, traced), *inputs)


def _differentiable_stats_forward(static: Any, *inputs: Any) -> tuple[DivergenceStats, tuple[Any, ...]]:
    return _differentiable_stats(static, *inputs), inputs


def _differentiable_stats_backward(
    static: Any, inputs: tuple[Any, ...], cotangents: DivergenceStats
) -> tuple[jax.Array | None, ...]:
    traced, *arrays = inputs
    weights = cotangents.divergence
    _, *gradients = _stats_and_gradients(together(static, traced), *[*arrays, weights])
    return None, *gradients, *[None] * 3


_differentiable_stats.defvjp(_differentiable_stats_forward, _differentiable_stats_backward)


# --- the passes over the chunks -------------------------------------------------------------------------------------------


def _stats(
    options: _Options,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    tokens: jax.Array,
    weights: jax.Array | None = None,
) -> DivergenceStats:
    """The stats; those of chunks after the last token with a weight are 0."""

    def step(_: None, chunk: tuple[jax.Array, ...]) -> tuple[None, DivergenceStats]:
        hidden, teacher_hidden, tokens = chunk
        student = logits_of(hidden, student_head)
        teacher = teacher_logits(teacher_hidden, teacher_head, student.shape[-1])
        return None, _stats_of_logits(options, student, teacher, tokens)

    there = None if weights is None else weights != 0
    return scan_chunks(step, None, (student_hidden, teacher_hidden, tokens), options.chunk_size, there)[1]


def _stats_and_gradients(
    options: _Options,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: Teachers,
    teacher_head: Teachers,
    tokens: jax.Array,
    weights: jax.Array,
    sampler_log_probs: jax.Array | None = None,
) -> tuple[DivergenceStats, jax.Array, jax.Array]:
    """The stats, and the weighted sum's gradients in the student's hidden states and head, in the dtypes of these."""

    def step(head_gradient: jax.Array, chunk: tuple[Any, ...]) -> tuple[jax.Array, tuple[DivergenceStats, jax.Array]]:
        hidden, teacher_hidden, tokens, *weighting = chunk
        logits, pull = jax.vjp(lambda x: logits_of(x, student_head), hidden)
        teacher = teacher_logits(teacher_hidden, teacher_head, logits.shape[-1])
        stats, gradient = _stats_and_logits_gradient(options, logits, teacher, tokens, *weighting)
        return add_head_gradient(head_gradient, hidden, gradient), (stats, pull(gradient)[0])

    by_token = (student_hidden, teacher_hidden, tokens, weights, sampler_log_probs)
    head_gradient, (stats, hidden_gradient) = scan_chunks(
        step, jnp.zeros(student_head.shape, jnp.float32), by_token, options.chunk_size, weights != 0
    )
    return stats, hidden_gradient, head_gradient.astype(student_head.dtype)


def _stats_and_logits_gradient(
    options: _Options,
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    tokens: jax.Array,
    weights: jax.Array,
    sampler_log_probs: jax.Array | None,
) -> tuple[DivergenceStats, jax.Array]:
    """The stats, and the weighted sum's gradient in the student's logits [B, C, V] float32."""
    if not has_closed_gradient(options.divergence, student_logits.shape[-1]):

        def total(logits: jax.Array) -> tuple[jax.Array, DivergenceStats]:
            stats = _stats_of_logits(options, logits, teacher_logits, tokens)
            return _total(options, stats, weights, sampler_log_probs), stats

        gradient, stats = jax.grad(total, has_aux=True)(student_logits)
        return stats, gradient

    # The same in closed form, in half of the passes over the vocabulary.
    student, teacher = (log_softmax(x, options.temperature) for x in (student_logits, teacher_logits))
    stats = _stats_of_log_probs(options, student, teacher, tokens)
    weights = _times_factors(options, stats, weights, sampler_log_probs)[..., None]
    return stats, gradient_of(student, teacher, options.divergence.beta, weights / options.temperature)


def _stats_of_logits(
    options: _Options, student_logits: jax.Array, teacher_logits: jax.Array, tokens: jax.Array
) -> DivergenceStats:
    student = log_softmax(student_logits, options.temperature)
    teacher = jax.lax.stop_gradient(log_softmax(teacher_logits, options.temperature))
    return _stats_of_log_probs(options, student, teacher, tokens)


def _stats_of_log_probs(
    options: _Options, student: jax.Array, teacher: jax.Array, tokens: jax.Array
) -> DivergenceStats:
    """From log-probabilities [B, C, V]."""
    divergence = divergence_of(options.divergence, student, teacher, tokens)
    of_sampled = of_tokens(student, tokens), of_tokens(teacher, tokens)
    entropies = entropy_of(jax.lax.stop_gradient(student)), entropy_of(teacher)
    return DivergenceStats(divergence, *jax.lax.stop_gradient((*of_sampled, *entropies)))
