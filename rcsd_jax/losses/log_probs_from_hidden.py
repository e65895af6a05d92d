"""Log-probabilities of tokens from hidden states [B, T, D]: what cross-entropy and policy gradients are made of."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rcsd_jax.losses.array_checks import check_role, check_shape, checked_tokens
from rcsd_jax.losses.chunks import add_head_gradient, chunk_size_of, logits_of, scan_chunks
from rcsd_jax.losses.explicit_mesh import automatic
from rcsd_jax.losses.log_probs import entropy_of, log_softmax, of_tokens, without_ignored
from rcsd_jax.losses.options import number
from rcsd_jax.losses.traced import apart, together


def token_log_probs_from_hidden(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    chunk_size: int,
    temperature: ArrayLike = 1.0,
    mask: jax.Array | None = None,
    ignore_index: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `tokens` under hidden @ head, and entropies, holding one chunk of logits at a time.

    Losses on sampled tokens (cross-entropy, policy gradients) are made of these. Reverse-mode differentiable in hidden and
    head through the log-probabilities; the backward pass computes each chunk's logits again.

    Args:
      hidden: [B, T, D]; head: [D, V]; tokens: [B, T] int32.
      chunk_size: positions per chunk; T need not be a multiple.
      temperature: divides the logits; at least `SMALLEST_TEMPERATURE`.
      mask: [B, T], outside of which both are 0, without gradient. Chunks after its last token are not computed. None: all.
      ignore_index: a token where both are 0, without gradient, wherever it stands.

    Returns:
      (log-probabilities, entropies in nats without gradient), [B, T] float32 both.

    Raises:
      ValueError: the arrays do not belong together, or an option is out of its range.

    Examples:
      >>> from rcsd_jax.losses import token_log_probs
      >>> hidden, head = jnp.arange(8.0).reshape(1, 4, 2) / 8, jnp.eye(2, 5)  # [B, T, D], [D, V]
      >>> tokens = jnp.array([[0, 1, 2, 3]])
      >>> log_probs, entropies = token_log_probs_from_hidden(hidden, head, tokens, chunk_size=3)
      >>> bool(jnp.allclose(log_probs, token_log_probs(hidden @ head, tokens)))
      True
    """
    check_role(hidden=hidden, head=head)
    tokens = checked_tokens(tokens, hidden.shape[:2], "the hidden states [B, T, D]")
    options = number("temperature", temperature), chunk_size_of(chunk_size, hidden)
    tokens, ignored = without_ignored(tokens, ignore_index)
    if mask is not None:
        check_shape("mask", mask, tokens.shape, "tokens [B, T]")
        mask = jnp.asarray(mask).astype(bool)
        ignored = ~mask if ignored is None else ignored | ~mask
    inputs = (hidden, head, tokens) if mask is None else (hidden, head, tokens, mask)
    log_probs, entropies = automatic(
        lambda options, *x: _token_log_probs(*apart(options), *x), options, *inputs, axes=2
    )
    if ignored is not None:
        log_probs, entropies = (jnp.where(ignored, 0.0, x) for x in (log_probs, entropies))
    return log_probs, jax.lax.stop_gradient(entropies)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_log_probs(
    static: Any,
    traced: list[jax.Array],
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    temperature, chunk_size = together(static, traced)

    def step(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        hidden, tokens = chunk
        log_probs = log_softmax(logits_of(hidden, head), temperature)
        return None, (of_tokens(log_probs, tokens), entropy_of(log_probs))

    return scan_chunks(step, None, (hidden, tokens), chunk_size, mask)[1]


def _token_log_probs_forward(static: Any, *inputs: Any) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    return _token_log_probs(static, *inputs), inputs


def _token_log_probs_backward(
    static: Any, inputs: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    traced, hidden, head, tokens, *mask = inputs
    temperature, chunk_size = together(static, traced)
    # As their log-probability is NaN, so is the gradient of tokens out of the vocabulary, unless they weigh nothing.
    weights, _ = cotangents
    known = (tokens >= 0) & (tokens < head.shape[1])
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)

    def step(head_gradient: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden, tokens, weights = chunk
        logits, pull = jax.vjp(lambda x: logits_of(x, head), hidden)
        probs = jnp.exp(log_softmax(logits, temperature))
        here = tokens[..., None] == jnp.arange(probs.shape[-1])
        gradient = (weights / temperature)[..., None] * (here - probs)  # [B, C, V] float32
        return add_head_gradient(head_gradient, hidden, gradient), pull(gradient)[0]

    head_gradient, hidden_gradient = scan_chunks(
        step, jnp.zeros(head.shape, jnp.float32), (hidden, tokens, weights), chunk_size, weights != 0
    )
    return None, hidden_gradient.astype(hidden.dtype), head_gradient.astype(head.dtype), None, *[None] * len(mask)


_token_log_probs.defvjp(_token_log_probs_forward, _token_log_probs_backward)
