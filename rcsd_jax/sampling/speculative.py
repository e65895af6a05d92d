"""Speculative decoding without a second model: drafts are looked up in the row's own text, and the decoder checks them all at once.

A step runs the decoder over the newest token and d drafts (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding),
and draws the token of every place with the key that plain decoding uses there. A draft is accepted if it is the token drawn. So
the tokens are those of plain decoding: drafts change how many steps they take, and never which they are.

As a rule of acceptance this is speculative sampling (arXiv 2211.17192) with drafts that are certain: a draft x is accepted with
probability p(x), and the token drawn in place of a rejected one has the distribution p without x, renormalised.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.models import head
from rcsd_jax.models.cache import KVCache
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import LAYOUTS, constrain
from rcsd_jax.sampling.decoding import SamplingConfig, Weights, in_sampling_layout, sample_token

LONGEST_MATCH = 3
"""How many of a row's newest tokens are looked up, at most."""
NO_DRAFT = -1
"""Where nothing was found: not a token, so it is never accepted."""


class Text(NamedTuple):
    """Where B rows stand.

    Attributes:
      tokens: [B, S] int32, prompt and completion so far; what stands behind the newest token means nothing.
      cache: keys and values of the tokens before the newest.
      lengths: [B] int32, how many those are: the newest token's position and its place in the cache.
    """

    tokens: jax.Array
    cache: KVCache
    lengths: jax.Array


def speculative_step(
    decoder: Decoder, weights: Weights, text: Text, keys: jax.Array, sampling: SamplingConfig
) -> tuple[jax.Array, jax.Array, jax.Array, Text]:
    """Draws every row's next 1 to 1 + d tokens.

    Args:
      decoder: the model.
      weights: of `decoding_weights`.
      text: where the rows stand; each has 1 + d free places in its cache and in its tokens.
      keys: [B, 1 + d] random keys, of the next place and those after it.
      sampling: the settings.

    Returns:
      Tokens [B, 1 + d] int32, their log-probabilities [B, 1 + d] float32 as of `sample_token`, how many of these count,
      [B] int32, and the rows after those.
    """
    batch, count = keys.shape
    newest = jnp.take_along_axis(text.tokens, text.lengths[:, None], axis=1)
    drafts = look_up(text.tokens, text.lengths, count - 1)
    decoder = in_sampling_layout(decoder)
    applied: Any = decoder.apply(  # Flax declares that it may give variables as well
        weights.variables,
        jnp.concatenate([newest, jnp.maximum(drafts, 0)], axis=1),
        positions=text.lengths[:, None] + jnp.arange(count, dtype=jnp.int32),
        cache=text.cache,
        cache_index=text.lengths,
    )
    hidden, cache = applied
    # As in `decode_step`: computed with the vocabulary split, like the head; then every device draws for some whole rows.
    logits = constrain(head.logits(hidden, weights.head), ("batch", None, "vocab"), LAYOUTS[decoder.config.layout])
    logits = constrain(logits, ("batch", None, None), LAYOUTS["train"]).reshape(batch * count, -1)
    tokens, log_probs = (x.reshape(batch, count) for x in sample_token(logits, keys.reshape(-1), sampling))
    accepted = 1 + jnp.cumprod(tokens[:, :-1] == drafts, axis=1).sum(axis=1).astype(jnp.int32)
    written = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (start,)))(
        text.tokens, tokens, text.lengths + 1
    )
    return tokens, log_probs, accepted, Text(written, cache, text.lengths + accepted)


def look_up(tokens: jax.Array, newest: jax.Array, count: int) -> jax.Array:
    """Drafts of what follows: what followed the newest tokens where they stood before.

    The place that agrees with most of the newest `LONGEST_MATCH` tokens is taken, of several the latest. If the text ends before
    there are enough drafts, it is taken to go on in the same period.

    Args:
      tokens: [B, S] int32, of which those after the newest mean nothing.
      newest: [B] int32, the newest token's place.
      count: d.

    Returns:
      [B, d] int32; `NO_DRAFT` in rows whose newest token is new.

    Examples:
      >>> text = jnp.array([[5, 6, 7, 8, 5, 6, 9, 5, 6, 0]])
      >>> look_up(text, jnp.array([3]), 2).tolist(), look_up(text, jnp.array([5]), 2).tolist()
      ([[-1, -1]], [[7, 8]])
      >>> look_up(text, jnp.array([8]), 4).tolist()
      [[9, 5, 6, 9]]
    """
    length = tokens.shape[1]
    places = jnp.arange(length, dtype=jnp.int32)
    agrees, matched = places < newest[:, None], jnp.zeros(tokens.shape, jnp.int32)
    for back in range(LONGEST_MATCH):
        here = jnp.take_along_axis(tokens, jnp.maximum(newest - back, 0)[:, None], axis=1)
        before = jnp.pad(tokens, ((0, 0), (back, 0)))[:, :length]  # the token `back` places before each
        agrees &= (before == here) & (places >= back)
        matched += agrees
    # Place and match in one number: its maximum is cheaper than argmax, which XLA on CPUs runs one by one.
    best = jnp.where(matched > 0, matched * length + places, -1).max(axis=1)
    place = best % length
    period = jnp.maximum(newest - place, 1)
    source = place[:, None] + 1 + jnp.arange(count, dtype=jnp.int32) % period[:, None]
    return jnp.where(best[:, None] >= 0, jnp.take_along_axis(tokens, source, axis=1), NO_DRAFT)
