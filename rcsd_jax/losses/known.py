"""A teacher of which only some log-probabilities are known, such as one at an endpoint: the likeliest tokens, or the sampled one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.losses.chunks import logits_of_several

_SMALLEST_REST = 1e-7  # of probability, so that its logarithm is finite


class KnownLogProbs(NamedTuple):
    """The log-probabilities of K tokens at each position; stands where other teachers have hidden states, with None as their head.

    What is left of the probability is spread evenly over all other tokens. So it decides nothing in a divergence that reads only what
    is known: of the sampled token, or of the k likeliest tokens and the mass of the rest.
    """

    tokens: jax.Array  # [B, T, K] int32, distinct at each position; -1 stands for none
    log_probs: jax.Array  # [B, T, K] float32


def teacher_logits(hidden: Any, head: Any, vocabulary: int) -> jax.Array:
    """A teacher's logits [B, T, V] float32: of hidden states and head, of tuples of both, or of `KnownLogProbs`."""
    return whole(hidden, vocabulary) if isinstance(hidden, KnownLogProbs) else logits_of_several(hidden, head)


def whole(known: KnownLogProbs, vocabulary: int) -> jax.Array:
    """Log-probabilities of the whole vocabulary [B, T, V] float32.

    Examples:
      >>> known = KnownLogProbs(jnp.array([[[2, -1]]]), jnp.log(jnp.array([[[0.4, 1.0]]])))
      >>> (100 * jnp.exp(whole(known, 4))).round().tolist()
      [[[20.0, 20.0, 40.0, 20.0]]]
    """
    tokens, log_probs = known
    there = tokens >= 0
    rest = jnp.maximum(1.0 - jnp.where(there, jnp.exp(log_probs), 0.0).sum(axis=-1), _SMALLEST_REST)
    each = jnp.log(rest) - jnp.log(jnp.maximum(vocabulary - there.sum(axis=-1), 1).astype(jnp.float32))
    spread = jnp.broadcast_to(each[..., None], (*each.shape, vocabulary))
    batch, length, _ = tokens.shape
    places = jnp.arange(batch)[:, None, None], jnp.arange(length)[None, :, None], jnp.where(there, tokens, vocabulary)
    return spread.at[places].set(log_probs.astype(jnp.float32), mode="drop")
