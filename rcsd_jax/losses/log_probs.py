"""Log-probabilities of logits, and what is read off them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.losses.options import Scalar
from rcsd_jax.losses.traced import is_traced

_MIN_LOGIT = -1e9  # stands for -inf (a masked vocabulary entry), so that 0 * log 0 is 0 and not NaN


def log_softmax(logits: jax.Array, temperature: Scalar) -> jax.Array:
    """log softmax(logits / temperature), [..., V] float32."""
    return jax.nn.log_softmax(_floor(logits.astype(jnp.float32) / temperature), axis=-1)


@jax.custom_jvp
def _floor(logits: jax.Array) -> jax.Array:
    # Selections, here and in `clamp`, because XLA's CPU minimum and maximum may turn NaN into a number.
    return jnp.where(logits == -jnp.inf, _MIN_LOGIT, logits)


@_floor.defjvp
def _floor_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Straight through: a masked entry's probability, and with it its gradient, is 0 anyway, and the mask that the true
    # derivative needs would be one more array of the logits' size.
    return _floor(*primals), tangents[0]


def entropy_of(log_probs: jax.Array) -> jax.Array:
    """[..., V] -> [...], nats."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def of_tokens(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probability of each token [...], of [..., V]; NaN where it is no token of the vocabulary."""
    # A negative index would count from the end; one beyond it gives NaN.
    places = jnp.where(tokens < 0, log_probs.shape[-1], tokens)
    return jnp.take_along_axis(log_probs, places[..., None], axis=-1)[..., 0]


def clamp(values: jax.Array, limit: Scalar | None) -> jax.Array:
    """The smaller of each value and the limit; None: no limit. NaN stays NaN."""
    if limit is None:
        return values
    over = values > limit
    if is_traced(limit):
        over |= jnp.isnan(limit)  # out of its range
    return jnp.where(over, limit, values)


def without_ignored(tokens: jax.Array, ignore_index: int | None) -> tuple[jax.Array, jax.Array | None]:
    """Tokens with 0 in the place of those to be ignored, and where these stood; None if none are."""
    if ignore_index is None:
        return tokens, None
    ignored = tokens == ignore_index
    return jnp.where(ignored, 0, tokens), ignored
