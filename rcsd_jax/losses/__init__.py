"""Divergences between a teacher's and a student's next-token distributions, on logits and from hidden states.

Pure functions on arrays; bfloat16 or float32 in, float32 arithmetic and out; one value per token, the reduction
(`masked_mean`) apart. Gradient flows to the student only. Functions of logits take any leading shape, functions of
hidden states take [B, T, D]. Nothing is broadcast.

Shapes, dtypes and options are checked at trace time. `beta`, `temperature` and all clips may be traced scalars, such as
schedules under `jit`: no gradient flows to them, and one out of its range makes the result NaN. All other options are
static.

The log-probability of a token below 0 or beyond the vocabulary is NaN. If tokens are marked so on purpose (-100 in many
data sets), name the mark as `ignore_index`: such tokens score 0 and weigh nothing.

Arrays may be sharded over a mesh of automatic or of explicit axes (as `jax.make_mesh` makes them); the vocabulary stays
split.

    beta = 0        KL(T || S)
    beta = 1        KL(S || T)
    0 < beta < 1    beta KL(T || M) + (1 - beta) KL(S || M),   M = beta T + (1 - beta) S

The end points are the plain KLs, not limits of the third line (which tends to 0 at both ends). Sources: GKD (arXiv
2306.13649) and TRL's GKD, GOLD and SDFT losses for the values; the RCSD release for top-k and the entry clip.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

SMALLEST_TEMPERATURE = 1e-4
"""Below it, float32 no longer resolves logits / temperature, and masked entries (-inf) could become the likeliest."""

_MIN_LOGIT = -1e9  # stands for -inf (a masked vocabulary entry), so that 0 * log 0 is 0 and not NaN
_HEAD_BANDS = 8  # in which the head's gradient is added up, at most
_HEAD_BAND_ROWS = 128  # at least: thinner products are slow
_MAX_LOG_MASS = -1e-7  # keeps the tail bucket's log finite when the support holds all the mass (TRL's value)


_Arrays: TypeAlias = tuple[jax.Array, ...]
_Scalar: TypeAlias = Any
"""A number, or a traced scalar."""


class DivergenceStats(NamedTuple):
    """Per-token quantities of one pass over the vocabulary, float32. Only `divergence` carries gradient."""

    divergence: jax.Array  # [B, T]
    student_log_probs: jax.Array  # [B, T], of the given tokens
    teacher_log_probs: jax.Array  # [B, T], of the given tokens
    student_entropy: jax.Array  # [B, T], nats
    teacher_entropy: jax.Array  # [B, T], nats


class _Spec(NamedTuple):
    divergence: str
    beta: _Scalar
    temperature: _Scalar
    top_k: int | None
    top_k_support: str
    tail: str
    entry_clip: _Scalar | None
    token_clip: _Scalar | None
    chunk_size: int
    importance_clip: _Scalar | None = None


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
      tail: what becomes of the mass outside: "renormalize" drops it, "bucket" makes it one more entry.
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
    _check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    spec = _checked(_Spec("vocabulary", beta, temperature, top_k, top_k_support, tail, entry_clip, token_clip, 1))

    def value(spec: _Spec, student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        student = _log_softmax(student_logits, spec.temperature)
        teacher = jax.lax.stop_gradient(_log_softmax(teacher_logits, spec.temperature))
        return _divergence(student, teacher, spec)

    return _automatic(value, spec, student_logits, teacher_logits)


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
    _check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = (
        token_log_probs(logits, tokens, temperature=temperature, ignore_index=ignore_index)
        for logits in (student_logits, teacher_logits)
    )
    return _sampled_token(student, teacher)


def importance_weight(
    trainer_log_probs: jax.Array, sampler_log_probs: jax.Array, *, clip: ArrayLike = 2.0
) -> jax.Array:
    """Truncated importance weight min(exp(trainer - sampler), clip), [..., T] float32, without gradient.

    Examples:
      >>> trainer, sampler = jnp.log(jnp.array([0.5, 0.9])), jnp.log(jnp.array([0.4, 0.1]))
      >>> [round(x, 3) for x in importance_weight(trainer, sampler, clip=2.0).tolist()]
      [1.25, 2.0]
    """
    _check_log_probs(trainer_log_probs=trainer_log_probs, sampler_log_probs=sampler_log_probs)
    limit = _number("clip", clip)
    difference = trainer_log_probs.astype(jnp.float32) - sampler_log_probs.astype(jnp.float32)
    # The minimum is taken on the log, so that exp cannot overflow.
    log_limit = jnp.log(limit) if _is_traced(limit) else math.log(limit)
    return jax.lax.stop_gradient(jnp.exp(_clamp(difference, log_limit)))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` where `mask` is nonzero, a float32 scalar; 0 with zero gradient when the mask is empty.

    Values at masked-out positions never matter, even inf or NaN.

    Examples:
      >>> float(masked_mean(jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([[1, 1, 0]])))
      1.5
    """
    _check_same(values=values, mask=mask)
    mask = jnp.asarray(mask).astype(bool)
    return jnp.where(mask, jnp.asarray(values).astype(jnp.float32), 0.0).sum() / jnp.maximum(mask.sum(), 1)


def token_weights(
    mask: jax.Array, reduction: str, *, max_length: int | None = None, counted: jax.Array | None = None
) -> jax.Array:
    """How much each token of a batch weighs in its loss, [B, T] float32, 0 outside the mask [B, T].

    Args:
      mask: the completions' tokens that count.
      reduction: "tokens": all alike, the mean over the batch's tokens; "completions": all completions alike, whatever
        their length, an empty one counting as 0 (GRPO); "longest": 1 / (B max_length), as if all were so long (Dr. GRPO).
      max_length: of "longest"; None: T.
      counted: [B], the completions that belong to the batch at all; the others leave numerator and denominator. None: all.

    Raises:
      ValueError: an unknown reduction, or shapes do not belong together.

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
    _choice("reduction", reduction, "tokens", "completions", "longest")
    mask = jnp.asarray(mask).astype(bool)
    if mask.ndim != 2:
        raise ValueError(f"mask must be [B, T], got {_shape(mask)}")
    length = mask.shape[1] if max_length is None else _count("max_length", max_length)
    rows: int | jax.Array = mask.shape[0]
    if counted is not None:
        _check_shape("counted", counted, mask.shape[:1], "mask [B, T]")
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
    _check_same(values=values, weights=weights)
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    there = weights != 0
    return jnp.where(there, weights * jnp.where(there, values.astype(jnp.float32), 0.0), 0.0).sum()


def entropy(logits: jax.Array, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Entropy in nats of softmax(logits / temperature), [..., T, V] -> [..., T] float32.

    Examples:
      >>> round(float(entropy(jnp.zeros(4))), 3)  # log 4
      1.386
    """
    _check_logits(logits=logits)
    temperature = _number("temperature", temperature)
    return _automatic(lambda temperature, x: _entropy(_log_softmax(x, temperature)), temperature, logits)


def token_log_probs(
    logits: jax.Array, tokens: jax.Array, *, temperature: ArrayLike = 1.0, ignore_index: int | None = None
) -> jax.Array:
    """Log-probability of `tokens` [..., T] under softmax(logits [..., T, V] / temperature); [..., T] float32.

    It is 0, without gradient, where the token is `ignore_index`; otherwise NaN where it is no token of the vocabulary.

    Examples:
      >>> log_probs = token_log_probs(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1]))
      >>> round(float(jnp.exp(log_probs[0])), 3)
      0.75
    """
    _check_logits(logits=logits)
    tokens = _checked_tokens(tokens, logits.shape[:-1], "logits [..., T, V]")
    temperature = _number("temperature", temperature)
    tokens, ignored = _without_ignored(tokens, ignore_index)
    log_probs = _automatic(
        lambda temperature, x, tokens: _take(_log_softmax(x, temperature), tokens), temperature, logits, tokens
    )
    return log_probs if ignored is None else jnp.where(ignored, 0.0, log_probs)


def divergence_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    *,
    chunk_size: int,
    mask: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`per_token_divergence` of hidden @ head, [B, T] float32, holding one chunk of logits at a time.

    Differentiable as `score_from_hidden`: give the mask of a masked mean here too, and its gradient is had in one pass.

    Args: hidden [B, T, D]; head [D, V] (the roles' D and heads may differ); mask [B, T], outside of which the divergence
      is 0; `options` as in `per_token_divergence`.

    Examples:
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> whole = per_token_divergence(hidden @ head, -hidden @ head, temperature=1.2)
      >>> chunked = divergence_from_hidden(hidden, head, -hidden, head, chunk_size=2, temperature=1.2)
      >>> bool(jnp.allclose(chunked, whole))
      True
    """
    for name in ("divergence", "ignore_index"):
        if name in options:
            raise ValueError(f"divergence_from_hidden has no option {name}={options[name]!r}: it takes no tokens")
    _check_hidden(student_hidden, student_head, teacher_hidden, teacher_head, mask=mask)
    spec = _spec("divergence_from_hidden", student_hidden, chunk_size, options)
    tokens = jnp.zeros(student_hidden.shape[:2], jnp.int32)
    return _score(spec, student_hidden, student_head, teacher_hidden, teacher_head, tokens, mask, None).divergence


def score_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    *,
    chunk_size: int,
    mask: jax.Array | None = None,
    ignore_index: int | None = None,
    **options: Any,
) -> DivergenceStats:
    """All per-token quantities of a step in one pass over chunks of T, never holding more than one chunk of logits.

    The batch axis is left whole, so that it keeps its sharding. Reverse-mode differentiable in student_hidden and
    student_head through `divergence`. The forward pass takes both gradients for the case that all tokens of the mask
    weigh the same, as in a sum or in a mean over the mask, and the backward pass scales them; where weights differ, the
    head's gradient needs the logits a second time. When the head gets no gradient (LoRA) none is computed.

    Args:
      student_hidden, teacher_hidden: [B, T, D]; student_head, teacher_head: [D, V]; tokens: [B, T] int32.
      chunk_size: positions per chunk; T need not be a multiple.
      mask: [B, T], outside of which `divergence` is 0; None: nowhere.
      ignore_index: a token where all quantities are 0, wherever it stands.
      options: those of `per_token_divergence`, and `divergence`: "vocabulary" (the default) or "sampled_token"
        (`sampled_token_loss`, which takes temperature and token_clip; beta does not matter, top_k and entry_clip are refused).

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.
      TypeError: an option is unknown.
    """
    _check_hidden(student_hidden, student_head, teacher_hidden, teacher_head, mask=mask)
    tokens = _checked_tokens(tokens, student_hidden.shape[:2], "the hidden states [B, T, D]")
    spec = _spec("score_from_hidden", student_hidden, chunk_size, options)
    return _score(spec, student_hidden, student_head, teacher_hidden, teacher_head, tokens, mask, ignore_index)


def _score(
    spec: _Spec,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None,
    ignore_index: int | None,
) -> DivergenceStats:
    mask = jnp.ones_like(tokens, bool) if mask is None else jnp.asarray(mask).astype(bool)
    tokens, ignored = _without_ignored(tokens, ignore_index)
    mask = mask if ignored is None else mask & ~ignored
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens, mask)
    return _silent(_automatic(lambda spec, *x: _scores(*_apart(spec), *x), spec, *inputs, axes=2), ignored)


def weighted_divergence_from_hidden(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    weights: jax.Array,
    *,
    chunk_size: int,
    sampler_log_probs: jax.Array | None = None,
    importance_clip: ArrayLike | None = None,
    ignore_index: int | None = None,
    **options: Any,
) -> tuple[jax.Array, DivergenceStats]:
    """sum_t weights_t * divergence_t as one scalar, and the per-token quantities without gradient.

    What a train step wants: as every token's weight is known while its logits are there, whatever it is, the gradients
    of hidden states and head are both taken in that one pass, with as many products with the heads as the plain path.

    Args:
      student_hidden, student_head, teacher_hidden, teacher_head, tokens, chunk_size, options: as in `score_from_hidden`.
      weights: [B, T], no gradient; a token of weight 0 never matters, even if its divergence is inf or NaN.
      sampler_log_probs: [B, T], of the tokens as the sampler saw them; with `importance_clip` every token's weight is
        multiplied by its `importance_weight`.
      importance_clip: the clip of that weight; None: no importance weight.
      ignore_index: a token that weighs nothing and where all quantities are 0, wherever it stands.

    Returns:
      (weighted sum, float32 scalar, differentiable in student_hidden and student_head; `DivergenceStats`).

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.
      TypeError: an option is unknown.

    Examples:
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> tokens, mask = jnp.zeros((1, 4), jnp.int32), jnp.array([[1, 1, 1, 0]])
      >>> weights = token_weights(mask, "tokens")
      >>> total, stats = weighted_divergence_from_hidden(hidden, head, -hidden, head, tokens, weights, chunk_size=2)
      >>> bool(jnp.allclose(total, masked_mean(stats.divergence, mask)))
      True
    """
    by_token = dict(weights=weights, sampler_log_probs=sampler_log_probs)
    _check_hidden(student_hidden, student_head, teacher_hidden, teacher_head, **by_token)
    tokens = _checked_tokens(tokens, student_hidden.shape[:2], "the hidden states [B, T, D]")
    spec = _spec("weighted_divergence_from_hidden", student_hidden, chunk_size, options, importance_clip)
    if importance_clip is None:
        sampler_log_probs = jnp.zeros_like(tokens, jnp.float32)
    elif sampler_log_probs is None:
        raise ValueError(f"importance_clip={importance_clip!r} needs sampler_log_probs")
    tokens, ignored = _without_ignored(tokens, ignore_index)
    weights = jnp.asarray(weights).astype(jnp.float32)
    weights = weights if ignored is None else jnp.where(ignored, 0.0, weights)
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens, weights, sampler_log_probs)
    total, stats = _automatic(lambda spec, *x: _weighted(*_apart(spec), *x), spec, *inputs, axes=2, scalar_first=True)
    return total, jax.lax.stop_gradient(_silent(stats, ignored))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(
    spec: _Spec,
    traced: _Arrays,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    *per_token: jax.Array,
) -> tuple[jax.Array, DivergenceStats]:
    spec = _together(spec, traced)

    def step(total: jax.Array, chunk: _Arrays) -> tuple[jax.Array, DivergenceStats]:
        stats = _chunk_stats(spec, chunk[0], student_head, chunk[1], teacher_head, chunk[2])
        return total + _weighted_sum(stats, spec, *chunk[3:]), stats

    chunks = _chunks((student_hidden, teacher_hidden, *per_token), spec.chunk_size)
    total, stats = jax.lax.scan(step, jnp.float32(0.0), chunks)
    return total, _whole(stats, student_hidden.shape[1])


def _weighted_forward(
    spec: _Spec,
    traced: _Arrays,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    *per_token: jax.Array,
) -> tuple[tuple[jax.Array, DivergenceStats], _Arrays]:
    spec = _together(spec, traced)

    def step(
        carry: tuple[jax.Array, jax.Array], chunk: _Arrays
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[DivergenceStats, jax.Array]]:
        total, head_gradient = carry
        value, stats, hidden_gradient, head_gradient = _chunk_gradients(
            spec, student_head, teacher_head, head_gradient, *chunk
        )
        return (total + value, head_gradient), (stats, hidden_gradient)

    length = student_hidden.shape[1]
    chunks = _chunks((student_hidden, teacher_hidden, *per_token), spec.chunk_size)
    start = (jnp.float32(0.0), jnp.zeros(student_head.shape, jnp.float32))
    (total, head_gradient), (stats, hidden_gradient) = jax.lax.scan(step, start, chunks)
    residuals = (_whole(hidden_gradient, length), head_gradient.astype(student_head.dtype))
    return (total, _whole(stats, length)), residuals


def _weighted_backward(
    spec: _Spec, residuals: _Arrays, cotangents: tuple[jax.Array, Any]
) -> tuple[jax.Array | None, ...]:
    hidden_gradient, head_gradient = residuals
    scale = cotangents[0]
    scaled = (scale * x.astype(jnp.float32) for x in (hidden_gradient, head_gradient))
    hidden_gradient, head_gradient = (x.astype(g.dtype) for x, g in zip(scaled, residuals, strict=True))
    return None, hidden_gradient, head_gradient, None, None, None, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _chunk_gradients(
    spec: _Spec,
    student_head: jax.Array,
    teacher_head: jax.Array,
    head_gradient: jax.Array,
    student_hidden: jax.Array,
    teacher_hidden: jax.Array,
    tokens: jax.Array,
    *weighting: jax.Array,
) -> tuple[jax.Array, DivergenceStats, jax.Array, jax.Array]:
    """A chunk's weighted sum and stats, the sum's gradient in the hidden states, and the head's, added to what is given."""

    logits = _logits(student_hidden, student_head)
    value, stats, logits_gradient = _logits_gradient(
        spec, logits, _logits(teacher_hidden, teacher_head), tokens, *weighting
    )
    (hidden_gradient,) = jax.vjp(lambda x: _logits(x, student_head), student_hidden)[1](logits_gradient)
    return value, stats, hidden_gradient, _add_head_gradient(head_gradient, student_hidden, logits_gradient)


def _logits_gradient(
    spec: _Spec,
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    tokens: jax.Array,
    *weighting: jax.Array,
) -> tuple[jax.Array, DivergenceStats, jax.Array]:
    """The weighted sum, the stats, and the sum's gradient in the student's logits [B, C, V] float32."""
    cut = spec.top_k is not None and spec.top_k < student_logits.shape[-1]
    if spec.divergence == "sampled_token" or cut or spec.entry_clip is not None or spec.token_clip is not None:

        def value_of(logits: jax.Array) -> tuple[jax.Array, DivergenceStats]:
            stats = _logits_stats(spec, logits, teacher_logits, tokens)
            return _weighted_sum(stats, spec, *weighting), stats

        (value, stats), gradient = jax.value_and_grad(value_of, has_aux=True)(student_logits)
        return value, stats, gradient

    # The same in closed form, in half of the passes over the vocabulary.
    student, teacher = _log_softmax(student_logits, spec.temperature), _log_softmax(teacher_logits, spec.temperature)
    stats = _stats(spec, student, teacher, tokens)
    weights = _token_weights(stats, spec, *weighting)[..., None]
    gradient = _divergence_gradient(student, teacher, spec.beta, weights / spec.temperature)
    return _weighted_sum(stats, spec, *weighting), stats, gradient


def _divergence_gradient(student: jax.Array, teacher: jax.Array, beta: _Scalar, weights: jax.Array) -> jax.Array:
    """Gradient of the whole vocabulary's divergence in the student's tempered logits, times weights [..., 1].

    From log-probabilities [..., V]. With D's derivative c_v in p_v, it is p_v (c_v - sum_u p_u c_u).
    """

    def weighted(x: jax.Array) -> jax.Array:
        return jnp.where(weights == 0, 0.0, weights * x)

    # Weights come before the last operation: XLA would repeat what follows on one array for every use of the result.
    probs = jnp.exp(student)

    def by_derivative(derivative: jax.Array) -> jax.Array:
        mean = jnp.sum(probs * derivative, axis=-1, keepdims=True)
        return weighted(probs) * jnp.where(weights == 0, 0.0, derivative - mean)

    return _by_beta(
        beta,
        lambda student, teacher: weighted(probs) - weighted(jnp.exp(teacher)),
        lambda student, teacher: by_derivative((1 - beta) * (student - _log_mixture(student, teacher, beta))),
        lambda student, teacher: by_derivative(student - teacher),
    )(student, teacher)


def _token_weights(
    stats: DivergenceStats,
    spec: _Spec,
    weights: jax.Array,
    sampler_log_probs: jax.Array | None = None,
) -> jax.Array:
    if spec.importance_clip is None:
        return weights
    assert sampler_log_probs is not None, "`weighted_divergence_from_hidden` asks for them"
    return weights * importance_weight(stats.student_log_probs, sampler_log_probs, clip=spec.importance_clip)


def _weighted_sum(stats: DivergenceStats, spec: _Spec, *weighting: jax.Array) -> jax.Array:
    weights = _token_weights(stats, spec, *weighting)
    return weighted_sum(stats.divergence, weights)


def _add_head_gradient(total: jax.Array, hidden: jax.Array, logits_gradient: jax.Array) -> jax.Array:
    """total [D, V] float32 + the head's gradient for a chunk, a band of rows at a time: the product is never whole."""
    size = total.shape[0]
    rows = size // math.gcd(size, min(_HEAD_BANDS, max(size // _HEAD_BAND_ROWS, 1)))

    def add_band(i: jax.Array, total: jax.Array) -> jax.Array:
        def band_of(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * rows, rows, axis)

        # The hidden states first: in the other order the logits' gradient is transposed, and that copied, for every band.
        band = jnp.einsum("bcd,bcv->dv", band_of(hidden, 2).astype(jnp.float32), logits_gradient)
        return jax.lax.dynamic_update_slice_in_dim(total, band_of(total, 0) + band, i * rows, 0)

    # A loop, because bands written out are scheduled together, and are then all in memory.
    return jax.lax.fori_loop(0, size // rows, add_band, total)


def token_log_probs_from_hidden(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    chunk_size: int,
    temperature: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `tokens` under hidden @ head, and entropies, holding one chunk of logits at a time.

    What losses on sampled tokens are made of (cross-entropy, policy gradients). Reverse-mode differentiable in hidden and
    head through the log-probabilities; the backward pass takes each chunk's logits a second time.

    Args:
      hidden: [B, T, D]; head: [D, V]; tokens: [B, T] int32.
      chunk_size: positions per chunk; T need not be a multiple.
      temperature: divides the logits; at least `SMALLEST_TEMPERATURE`.
      ignore_index: a token where both are 0, without gradient, wherever it stands.

    Returns:
      (log-probabilities, entropies in nats without gradient), [B, T] float32 both.

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.

    Examples:
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> tokens = jnp.array([[0, 1, 2, 3]])
      >>> log_probs, entropies = token_log_probs_from_hidden(hidden, head, tokens, chunk_size=3)
      >>> bool(jnp.allclose(log_probs, token_log_probs(hidden @ head, tokens)))
      True
    """
    _check_role(hidden=hidden, head=head)
    tokens = _checked_tokens(tokens, hidden.shape[:2], "the hidden states [B, T, D]")
    spec = _spec("token_log_probs_from_hidden", hidden, chunk_size, dict(temperature=temperature))
    tokens, ignored = _without_ignored(tokens, ignore_index)
    log_probs, entropies = _automatic(
        lambda spec, *x: _token_log_probs(*_apart(spec), *x), spec, hidden, head, tokens, axes=2
    )
    if ignored is not None:
        log_probs, entropies = (jnp.where(ignored, 0.0, x) for x in (log_probs, entropies))
    return log_probs, jax.lax.stop_gradient(entropies)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_log_probs(
    spec: _Spec, traced: _Arrays, hidden: jax.Array, head: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    temperature = _together(spec, traced).temperature

    def step(_: None, chunk: _Arrays) -> tuple[None, tuple[jax.Array, jax.Array]]:
        log_probs = _log_softmax(_logits(chunk[0], head), temperature)
        return None, (_take(log_probs, chunk[1]), _entropy(log_probs))

    _, both = jax.lax.scan(step, None, _chunks((hidden, tokens), spec.chunk_size))
    return _whole(both, tokens.shape[1])


def _token_log_probs_forward(
    spec: _Spec, traced: _Arrays, hidden: jax.Array, head: jax.Array, tokens: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[_Arrays, _Arrays]]:
    return _token_log_probs(spec, traced, hidden, head, tokens), (traced, (hidden, head, tokens))


def _token_log_probs_backward(
    spec: _Spec, residuals: tuple[_Arrays, _Arrays], cotangents: _Arrays
) -> tuple[None, jax.Array, jax.Array, None]:
    traced, (hidden, head, tokens) = residuals
    temperature = _together(spec, traced).temperature
    # As their log-probability is NaN, so is the gradient of tokens out of the vocabulary, unless they weigh nothing.
    weights = cotangents[0]
    known = (tokens >= 0) & (tokens < head.shape[1])
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)

    def step(head_gradient: jax.Array, chunk: _Arrays) -> tuple[jax.Array, jax.Array]:
        hidden, tokens, weights = chunk
        logits, pull = jax.vjp(lambda x: _logits(x, head), hidden)
        probs = jnp.exp(_log_softmax(logits, temperature))
        here = tokens[..., None] == jnp.arange(probs.shape[-1])
        gradient = (weights / temperature)[..., None] * (here - probs)  # [B, C, V] float32
        return _add_head_gradient(head_gradient, hidden, gradient), pull(gradient)[0]

    chunks = _chunks((hidden, tokens, weights), spec.chunk_size)
    head_gradient, hidden_gradient = jax.lax.scan(step, jnp.zeros(head.shape, jnp.float32), chunks)
    hidden_gradient = _whole(hidden_gradient, tokens.shape[1])
    return None, hidden_gradient.astype(hidden.dtype), head_gradient.astype(head.dtype), None


_token_log_probs.defvjp(_token_log_probs_forward, _token_log_probs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(
    spec: _Spec,
    traced: _Arrays,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
) -> DivergenceStats:
    spec = _together(spec, traced)

    def step(_: None, chunk: _Arrays) -> tuple[None, DivergenceStats]:
        return None, _chunk_stats(spec, chunk[0], student_head, chunk[1], teacher_head, chunk[2])

    length = student_hidden.shape[1]
    _, stats = jax.lax.scan(step, None, _chunks((student_hidden, teacher_hidden, tokens), spec.chunk_size))
    return _masked(_whole(stats, length), mask)


def _scores_forward(
    spec: _Spec,
    traced: _Arrays,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
) -> tuple[DivergenceStats, tuple[_Arrays, _Arrays, _Arrays]]:
    spec = _together(spec, traced)

    # A token's divergence depends on its own hidden state alone, so its unit gradient can be had while the chunk's
    # logits are there; the backward pass then only scales it. The head's is had likewise if all weigh the same.
    def step(head_gradient: jax.Array, chunk: _Arrays) -> tuple[jax.Array, tuple[DivergenceStats, jax.Array]]:
        _, stats, hidden_gradient, head_gradient = _chunk_gradients(
            spec, student_head, teacher_head, head_gradient, *chunk
        )
        return head_gradient, (stats, hidden_gradient)

    length = student_hidden.shape[1]
    chunks = _chunks((student_hidden, teacher_hidden, tokens, mask.astype(jnp.float32)), spec.chunk_size)
    start = jnp.zeros(student_head.shape, jnp.float32)
    head_gradient, (stats, hidden_gradient) = jax.lax.scan(step, start, chunks)
    inputs = (student_hidden, student_head, teacher_hidden, teacher_head, tokens, mask)
    gradients = (_whole(hidden_gradient, length), head_gradient.astype(student_head.dtype))
    return _masked(_whole(stats, length), mask), (traced, inputs, gradients)


def _scores_backward(
    spec: _Spec, residuals: tuple[_Arrays, _Arrays, _Arrays], cotangents: DivergenceStats
) -> tuple[jax.Array | None, ...]:
    traced, (student_hidden, student_head, teacher_hidden, teacher_head, tokens, mask), gradients = residuals
    spec = _together(spec, traced)
    hidden_gradient, head_gradient = gradients
    weights = jnp.where(mask, cotangents.divergence, 0.0)  # [B, T]
    smallest = jnp.min(weights, where=mask, initial=jnp.inf)
    largest = jnp.max(weights, where=mask, initial=-jnp.inf)
    all_alike = smallest == largest
    chunks = _chunks((student_hidden, teacher_hidden, tokens, weights), spec.chunk_size)

    def add_chunk(i: jax.Array, total: jax.Array) -> jax.Array:
        hidden, teacher, tokens, weights = jax.tree.map(lambda x: x[i], chunks)

        logits = _logits(hidden, student_head)
        *_, logits_gradient = _logits_gradient(spec, logits, _logits(teacher, teacher_head), tokens, weights)
        return _add_head_gradient(total, hidden, logits_gradient)

    # The second pass is a loop of no steps where the first sufficed: unlike a branch, it works in the first one's memory.
    # All of it is removed by the compiler when nobody asks for the head's gradient.
    start = jnp.where(all_alike, largest * head_gradient.astype(jnp.float32), 0.0)
    steps = jnp.where(all_alike, 0, chunks[0].shape[0])
    head_gradient = jax.lax.fori_loop(0, steps, add_chunk, start)
    hidden_gradient = weights[..., None] * hidden_gradient.astype(jnp.float32)
    return None, hidden_gradient.astype(student_hidden.dtype), head_gradient.astype(student_head.dtype), *[None] * 4


_scores.defvjp(_scores_forward, _scores_backward)


def _masked(stats: DivergenceStats, mask: jax.Array) -> DivergenceStats:
    return stats._replace(divergence=jnp.where(mask, stats.divergence, 0.0))


def _chunks(tree: Any, size: int) -> Any:
    """[B, T, ...] -> [T / size, B, size, ...], the end padded with zeros."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _whole(tree: Any, length: int) -> Any:
    """The inverse of `_chunks`."""

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return jax.tree.map(join, tree)


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)  # [B, C, V]


def _chunk_stats(
    spec: _Spec,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
) -> DivergenceStats:
    return _logits_stats(spec, _logits(student_hidden, student_head), _logits(teacher_hidden, teacher_head), tokens)


def _logits_stats(
    spec: _Spec, student_logits: jax.Array, teacher_logits: jax.Array, tokens: jax.Array
) -> DivergenceStats:
    student = _log_softmax(student_logits, spec.temperature)
    teacher = jax.lax.stop_gradient(_log_softmax(teacher_logits, spec.temperature))
    return _stats(spec, student, teacher, tokens)


def _stats(spec: _Spec, student: jax.Array, teacher: jax.Array, tokens: jax.Array) -> DivergenceStats:
    """From log-probabilities [B, C, V]."""
    student_token, teacher_token = _take(student, tokens), _take(teacher, tokens)
    if spec.divergence == "sampled_token":
        divergence = _clamp(_sampled_token(student_token, teacher_token), spec.token_clip)
    else:
        divergence = _divergence(student, teacher, spec)
    logged = (student_token, teacher_token, _entropy(jax.lax.stop_gradient(student)), _entropy(teacher))
    return DivergenceStats(divergence, *jax.lax.stop_gradient(logged))


def _divergence(student: jax.Array, teacher: jax.Array, spec: _Spec) -> jax.Array:
    """From log-probabilities [..., V] to [...]."""
    if spec.top_k is not None and spec.top_k < student.shape[-1]:
        support = teacher if spec.top_k_support == "teacher" else jax.lax.stop_gradient(student)
        indices = _top_indices(support, spec.top_k)
        close = _add_tail if spec.tail == "bucket" else jax.nn.log_softmax
        student = close(jnp.take_along_axis(student, indices, axis=-1))
        teacher = close(jnp.take_along_axis(teacher, indices, axis=-1))
    beta = spec.beta

    def forward(student: jax.Array, teacher: jax.Array) -> jax.Array:
        return _kl_terms(teacher, student)

    def between(student: jax.Array, teacher: jax.Array) -> jax.Array:
        mixture = _log_mixture(student, teacher, beta)
        return beta * _kl_terms(teacher, mixture) + (1 - beta) * _kl_terms(student, mixture)

    terms = _by_beta(beta, forward, between, _kl_terms)(student, teacher)
    return _clamp(_clamp(terms, spec.entry_clip).sum(axis=-1), spec.token_clip)


def _top_indices(values: jax.Array, k: int) -> jax.Array:
    """Where the k largest of the last axis stand, as `jax.lax.top_k`.

    Over a mesh, first those of parts, then the largest of these: each device looks through its own part of the vocabulary,
    of which XLA would gather the whole. Without one, that would be the slower way. The axis that splits the vocabulary is
    `tensor`; of a mesh without an axis of that name, any may.
    """
    size, mesh = values.shape[-1], jax.sharding.get_abstract_mesh()
    parts = math.gcd(size, mesh.shape.get("tensor", max(mesh.size, 1)))
    if parts == 1 or size // parts < k:
        return jax.lax.top_k(values, k)[1]
    best, places = jax.lax.top_k(values.reshape(*values.shape[:-1], parts, size // parts), k)
    places += (jnp.arange(parts) * (size // parts))[:, None]
    best, places = (x.reshape(*x.shape[:-2], parts * k) for x in (best, places))
    return jnp.take_along_axis(places, jax.lax.top_k(best, k)[1], axis=-1)


def _by_beta(beta: _Scalar, forward: Callable, between: Callable, reverse: Callable) -> Callable:
    """The formula that holds at this beta: the end points have their own."""
    if _is_traced(beta):
        return lambda *x: jax.lax.switch(
            jnp.where(beta == 0, 0, jnp.where(beta == 1, 2, 1)), (forward, between, reverse), *x
        )
    return forward if beta == 0 else reverse if beta == 1 else between


def _log_mixture(student: jax.Array, teacher: jax.Array, beta: _Scalar) -> jax.Array:
    numbers = jnp if _is_traced(beta) else math
    return jnp.logaddexp(teacher + numbers.log(beta), student + numbers.log1p(-beta))


def _kl_terms(p: jax.Array, q: jax.Array) -> jax.Array:
    return jnp.exp(p) * (p - q)


def _add_tail(log_probs: jax.Array) -> jax.Array:
    mass = jnp.minimum(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True), _MAX_LOG_MASS)
    return jnp.concatenate([log_probs, jnp.log(-jnp.expm1(mass))], axis=-1)


def _sampled_token(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return -jax.lax.stop_gradient(teacher - student) * student


def _log_softmax(logits: jax.Array, temperature: _Scalar) -> jax.Array:
    return jax.nn.log_softmax(_floor(logits.astype(jnp.float32) / temperature), axis=-1)


@jax.custom_jvp
def _floor(logits: jax.Array) -> jax.Array:
    # Selections, here and in `_clamp`, because XLA's CPU minimum and maximum may turn NaN into a number.
    return jnp.where(logits == -jnp.inf, _MIN_LOGIT, logits)


@_floor.defjvp
def _floor_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Straight through: a masked entry's probability, and with it its gradient, is 0 anyway, and the mask that the true
    # derivative needs would be one more array of the logits' size.
    return _floor(*primals), tangents[0]


def _entropy(log_probs: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def _take(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
    # A negative index would count from the end; one beyond it gives NaN.
    places = jnp.where(tokens < 0, log_probs.shape[-1], tokens)
    return jnp.take_along_axis(log_probs, places[..., None], axis=-1)[..., 0]


def _clamp(values: jax.Array, limit: _Scalar | None) -> jax.Array:
    if limit is None:
        return values
    over = values > limit
    if _is_traced(limit):
        over |= jnp.isnan(limit)  # out of its range
    return jnp.where(over, limit, values)


# --- what is given -----------------------------------------------------------------------------------------------------


class _Slot(NamedTuple):
    """Stands in a static `_Spec` for a traced value, which goes to a custom derivative as an argument."""

    place: int


def _apart(spec: _Spec) -> tuple[_Spec, _Arrays]:
    """The spec with its traced values taken out, so that it hashes, and these."""
    traced: list[jax.Array] = []
    fields: list[Any] = []
    value: Any
    for value in spec:
        if _is_traced(value):
            fields.append(_Slot(len(traced)))
            traced.append(value)
        else:
            fields.append(value)
    return _Spec._make(fields), tuple(traced)


def _together(spec: _Spec, traced: _Arrays) -> _Spec:
    """The inverse of `_apart`."""
    return _Spec._make(traced[value.place] if isinstance(value, _Slot) else value for value in spec)


_RANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "beta": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "temperature": (
        lambda x: (x >= SMALLEST_TEMPERATURE) & (x < math.inf),
        f">= {SMALLEST_TEMPERATURE} and finite (greedy samples are scored at 1)",
    ),
    "entry_clip": (lambda x: x >= 0, ">= 0 or None"),
    "token_clip": (lambda x: x >= 0, ">= 0 or None"),
    "importance_clip": (lambda x: x > 0, "> 0 or None"),
    "clip": (lambda x: x > 0, "> 0"),
    "clip_low": (lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
    "clip_high": (lambda x: x >= 0, ">= 0"),
}


def _number(name: str, value: Any) -> Any:
    """A scalar option: a concrete one as Python's number, a traced one as float32 without gradient.

    A traced value cannot be looked at: out of its range it becomes NaN, and with it what is computed from it.
    """
    holds, allowed = _RANGES[name]
    if not isinstance(value, (int, float)):
        if getattr(value, "shape", None) != () or not (_is(value, jnp.floating) or _is(value, jnp.integer)):
            raise ValueError(f"{name} must be one number, got {_given(value)}")
        if isinstance(value, jax.core.Tracer):
            value = jax.lax.stop_gradient(value.astype(jnp.float32))
            return jnp.where(holds(value), value, jnp.nan)
        value = float(value)
    if not holds(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def _is_traced(option: Any) -> bool:
    """Whether an option that `_number` returned is traced."""
    return isinstance(option, jax.Array)


def _count(name: str, value: Any) -> int:
    """A static option that is a whole number of at least 1."""
    try:
        whole = operator.index(value)
    except TypeError:  # of traced ones too
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a static whole number >= 1, got {value!r}")
    return whole


def _choice(name: str, value: Any, *choices: str) -> None:
    if value not in choices:
        words = [repr(x) for x in choices]
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, got {value!r}")


def _spec(
    function: str, hidden: jax.Array, chunk_size: Any, options: dict[str, Any], importance_clip: Any = None
) -> _Spec:
    """The checked options of a function of hidden states [B, T, D].

    Raises:
      TypeError: one is unknown.
      ValueError: one is out of its range.
    """
    known = ("divergence", "beta", "temperature", "top_k", "top_k_support", "tail", "entry_clip", "token_clip")
    given = dict(zip(known, ("vocabulary", 0.0, 1.0, None, "teacher", "renormalize", None, None), strict=True))
    for name in options:
        if name not in known:
            raise TypeError(f"{function} has no option {name!r}; its options are {', '.join(known)}")
    spec = _checked(_Spec(**given | options, chunk_size=chunk_size, importance_clip=importance_clip))
    return spec._replace(chunk_size=min(spec.chunk_size, max(hidden.shape[1], 1)))


def _checked(spec: _Spec) -> _Spec:
    """The spec with concrete scalars as numbers.

    Raises:
      ValueError: one is out of its range.
    """
    numbers = {name: _number(name, getattr(spec, name)) for name in ("beta", "temperature")}
    for name in ("entry_clip", "token_clip", "importance_clip"):
        value = getattr(spec, name)
        numbers[name] = None if value is None else _number(name, value)
    _choice("divergence", spec.divergence, "vocabulary", "sampled_token")
    _choice("top_k_support", spec.top_k_support, "teacher", "student")
    _choice("tail", spec.tail, "renormalize", "bucket")
    if spec.divergence == "sampled_token":
        for name in ("top_k", "entry_clip"):
            if getattr(spec, name) is not None:
                raise ValueError(f"{name} must be None with divergence='sampled_token', got {getattr(spec, name)!r}")
    top_k = None if spec.top_k is None else _count("top_k", spec.top_k)
    return spec._replace(**numbers, top_k=top_k, chunk_size=_count("chunk_size", spec.chunk_size))


def _is(x: Any, kind: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, kind)


def _shape(x: Any) -> str:
    return str(list(jnp.shape(x)))


def _given(x: Any) -> str:
    """An array's dtype and shape; anything else as it is."""
    return f"{x.dtype} {_shape(x)}" if hasattr(x, "dtype") else repr(x)


def _check_floating(**arrays: Any) -> None:
    for name, x in arrays.items():
        if not _is(x, jnp.floating):
            raise ValueError(f"{name} must be a floating-point array, got {_given(x)}")


def _check_same(**arrays: Any) -> None:
    """Raises ValueError unless all have one shape."""
    if len({jnp.shape(x) for x in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {_shape(x)}" for name, x in arrays.items())
        raise ValueError(f"shapes must be equal, nothing is broadcast: {shapes}")


def _check_shape(name: str, x: Any, shape: tuple[int, ...], source: str) -> None:
    if jnp.shape(x) != tuple(shape):
        raise ValueError(f"{name} must have the shape {list(shape)} of {source}, got {_shape(x)}")


def _check_log_probs(**arrays: Any) -> None:
    _check_floating(**arrays)
    _check_same(**arrays)


def _check_logits(**logits: Any) -> None:
    _check_floating(**logits)
    for name, x in logits.items():
        if x.ndim < 1:
            raise ValueError(f"{name} must be [..., V], got a scalar")
    _check_same(**logits)


def _checked_tokens(tokens: Any, shape: tuple[int, ...], source: str) -> jax.Array:
    """Tokens of the shape, in a type that holds what they are compared with: the vocabulary's size, -100."""
    if not _is(tokens, jnp.integer):
        raise ValueError(f"tokens must be an array of integers, got {_given(tokens)}")
    _check_shape("tokens", tokens, shape, source)
    return tokens.astype(jnp.int32) if tokens.dtype.itemsize < 4 else tokens


def _check_hidden(
    student_hidden: Any, student_head: Any, teacher_hidden: Any, teacher_head: Any, **by_token: Any
) -> None:
    """Raises ValueError for arrays that do not belong together: hidden [B, T, D], heads [D, V], all others [B, T] or None."""
    _check_role(student_hidden=student_hidden, student_head=student_head)
    _check_role(teacher_hidden=teacher_hidden, teacher_head=teacher_head)
    hidden = dict(student_hidden=student_hidden, teacher_hidden=teacher_hidden)
    heads = dict(student_head=student_head, teacher_head=teacher_head)
    for what, axes, arrays in (("[B, T]", slice(0, 2), hidden), ("V", slice(1, 2), heads)):
        if len({x.shape[axes] for x in arrays.values()}) > 1:
            given = " and ".join(f"{name} {_shape(x)}" for name, x in arrays.items())
            raise ValueError(f"both roles must have the same {what}, got {given}")
    for name, x in by_token.items():
        if x is not None:
            _check_shape(name, x, student_hidden.shape[:2], "the hidden states [B, T, D]")


def _check_role(**arrays: Any) -> None:
    """Raises ValueError unless the two are hidden states [B, T, D] and a head [D, V]."""
    _check_floating(**arrays)
    (of_hidden, hidden), (of_head, head) = arrays.items()
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        given = f"{of_hidden} {_shape(hidden)} and {of_head} {_shape(head)}"
        raise ValueError(f"{of_hidden} must be [B, T, D] and {of_head} [D, V], got {given}")


def _without_ignored(tokens: jax.Array, ignore_index: int | None) -> tuple[jax.Array, jax.Array | None]:
    """Tokens with 0 in the place of those to be ignored, and where these stood; None if none are."""
    if ignore_index is None:
        return tokens, None
    ignored = tokens == ignore_index
    return jnp.where(ignored, 0, tokens), ignored


def _silent(stats: DivergenceStats, ignored: jax.Array | None) -> DivergenceStats:
    if ignored is None:
        return stats
    return DivergenceStats(*(jnp.where(ignored, 0.0, x) for x in stats))


def _automatic(
    function: Callable, options: Any, *arrays: jax.Array, axes: int | None = None, scalar_first: bool = False
) -> Any:
    """function(options, *arrays), inside of which a mesh's explicit axes are automatic: the compiler chooses the communication.

    Args:
      function: returns arrays that are sharded as the first axes of the first array, and before them a scalar.
      options: a pytree; what is traced in it becomes automatic with the arrays.
      axes: how many of them; None: all but the last.
      scalar_first: whether there is that scalar.
    """
    # Not always on the mesh is the first: beside a head that is, hidden states may be on one device still.
    shardings = [getattr(jax.typeof(x), "sharding", None) for x in arrays]
    meshes = [x.mesh for x in shardings if isinstance(x, jax.sharding.NamedSharding)]
    mesh = next((x for x in meshes if jax.sharding.AxisType.Explicit in x.axis_types), None)
    if mesh is None:
        return function(options, *arrays)
    count = arrays[0].ndim - 1 if axes is None else axes
    first = shardings[0].spec if isinstance(shardings[0], jax.sharding.NamedSharding) else ()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*first[:count]))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    leaves, tree = jax.tree.flatten(options)
    traced = [i for i, x in enumerate(leaves) if _is_traced(x)]

    def with_traced(values: list[jax.Array], *arrays: jax.Array) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(traced, values, strict=True))
        return function(jax.tree.unflatten(tree, filled.values()), *arrays)

    out_sharding = (whole, place) if scalar_first else place
    return jax.sharding.auto_axes(with_traced, out_sharding=out_sharding)([leaves[i] for i in traced], *arrays)
