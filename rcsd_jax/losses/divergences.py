"""Divergences, from log-probabilities [..., V] of both roles to one value per token [...]."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rcsd_jax.losses.log_probs import clamp, of_tokens
from rcsd_jax.losses.options import DivergenceOptions, Scalar
from rcsd_jax.losses.traced import is_traced

_MAX_LOG_MASS = -1e-7  # keeps the tail bucket's log finite when the support holds all the mass (TRL's value)


def divergence_of(
    options: DivergenceOptions, student: jax.Array, teacher: jax.Array, tokens: jax.Array | None = None
) -> jax.Array:
    """The divergence that the options name.

    Args:
      options: static choices and numbers.
      student, teacher: log-probabilities [..., V].
      tokens: [...] int, the sampled ones; None for a divergence of the whole vocabulary.
    """
    if options.divergence == "sampled_token":
        assert tokens is not None, "the functions that allow this divergence take tokens"
        values = sampled_token(of_tokens(student, tokens), of_tokens(teacher, tokens))
    else:
        values = _of_vocabulary(options, student, teacher)
    return clamp(values, options.token_clip)


def sampled_token(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The policy-gradient loss of the reverse KL, of the sampled tokens' log-probabilities [...]."""
    return -jax.lax.stop_gradient(teacher - student) * student


def _of_vocabulary(options: DivergenceOptions, student: jax.Array, teacher: jax.Array) -> jax.Array:
    if is_cut(options, student.shape[-1]):
        assert options.top_k is not None
        support = teacher if options.top_k_support == "teacher" else jax.lax.stop_gradient(student)
        indices = _top_indices(support, options.top_k)
        close = _add_tail if options.tail == "bucket" else jax.nn.log_softmax
        student = close(jnp.take_along_axis(student, indices, axis=-1))
        teacher = close(jnp.take_along_axis(teacher, indices, axis=-1))
    beta = options.beta

    def forward(student: jax.Array, teacher: jax.Array) -> jax.Array:
        return _kl_terms(teacher, student)

    def between(student: jax.Array, teacher: jax.Array) -> jax.Array:
        mixture = _log_mixture(student, teacher, beta)
        return beta * _kl_terms(teacher, mixture) + (1 - beta) * _kl_terms(student, mixture)

    terms = _by_beta(beta, forward, between, _kl_terms)(student, teacher)
    return clamp(terms, options.entry_clip).sum(axis=-1)


def is_cut(options: DivergenceOptions, vocabulary: int) -> bool:
    """Whether only the likeliest entries of a vocabulary count."""
    return options.top_k is not None and options.top_k < vocabulary


def has_closed_gradient(options: DivergenceOptions, vocabulary: int) -> bool:
    """Whether `gradient_of` is the divergence's gradient: of the whole vocabulary, without clips."""
    clipped = options.entry_clip is not None or options.token_clip is not None
    return options.divergence == "vocabulary" and not clipped and not is_cut(options, vocabulary)


def gradient_of(student: jax.Array, teacher: jax.Array, beta: Scalar, weights: jax.Array) -> jax.Array:
    """Gradient of the whole vocabulary's divergence D in the student's logits over temperature, times weights [..., 1].

    From log-probabilities [..., V]. With c_v = dD/dp_v, it is p_v (c_v - sum_u p_u c_u).
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


def _by_beta(beta: Scalar, forward: Callable, between: Callable, reverse: Callable) -> Callable:
    """The formula for this beta: 0 and 1 have their own."""
    if is_traced(beta):
        return lambda *x: jax.lax.switch(
            jnp.where(beta == 0, 0, jnp.where(beta == 1, 2, 1)), (forward, between, reverse), *x
        )
    return forward if beta == 0 else reverse if beta == 1 else between


def _log_mixture(student: jax.Array, teacher: jax.Array, beta: Scalar) -> jax.Array:
    numbers = jnp if is_traced(beta) else math
    return jnp.logaddexp(teacher + numbers.log(beta), student + numbers.log1p(-beta))


def _kl_terms(p: jax.Array, q: jax.Array) -> jax.Array:
    return jnp.exp(p) * (p - q)


def _add_tail(log_probs: jax.Array) -> jax.Array:
    mass = jnp.minimum(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True), _MAX_LOG_MASS)
    return jnp.concatenate([log_probs, jnp.log(-jnp.expm1(mass))], axis=-1)


def _top_indices(values: jax.Array, k: int) -> jax.Array:
    """The indices of the k largest entries of the last axis, as `jax.lax.top_k` gives them.

    Over a mesh, this takes the k largest of each part of the vocabulary, then the k largest of those: each device searches
    its own part, where XLA would gather the whole. Without a mesh that would be slower. The mesh axis `tensor` splits the
    vocabulary; if there is none of that name, any axis may.
    """
    size, mesh = values.shape[-1], jax.sharding.get_abstract_mesh()
    parts = math.gcd(size, mesh.shape.get("tensor", max(mesh.size, 1)))
    if parts == 1 or size // parts < k:
        return jax.lax.top_k(values, k)[1]
    best, places = jax.lax.top_k(values.reshape(*values.shape[:-1], parts, size // parts), k)
    places += (jnp.arange(parts) * (size // parts))[:, None]
    best, places = (x.reshape(*x.shape[:-2], parts * k) for x in (best, places))
    return jnp.take_along_axis(places, jax.lax.top_k(best, k)[1], axis=-1)
