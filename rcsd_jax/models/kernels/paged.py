"""Attention of single tokens to a cache by JAX's paged kernel: each row reads its own pages up to its own length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

PAGE = 128
"""Places that the kernel copies at once."""


def block(places: int) -> int:
    """Places of a cache with `places`, a multiple of `PAGE`, that the kernel reads together: it reads the blocks in use."""
    return PAGE * max(n for n in range(1, 9) if places // PAGE % n == 0)


def attend(
    q: jax.Array, keys: jax.Array, values: jax.Array, index: jax.Array, layer: jax.Array, *, scale: float
) -> jax.Array:
    """Attention of one token a row to the places up to its own, of one device's rows and heads.

    Args:
      q: [B, H, Hd].
      keys, values: [K, L, B, S, Hd], S a multiple of `PAGE`.
      index: [B] int32, the last place that each row sees.
      layer: [] int32.
      scale: of the scores.

    Returns:
      [B, H, Hd] in q's dtype.
    """
    kv_heads, layers, batch, places, head_dim = keys.shape
    count = places // PAGE
    pages = lambda x: x.reshape(kv_heads, layers * batch * count, PAGE, head_dim)
    table = (layer * batch + jnp.arange(batch, dtype=jnp.int32))[:, None] * count + jnp.arange(count, dtype=jnp.int32)
    q = q * jnp.asarray(scale, q.dtype)
    at_once = block(places) // PAGE
    return paged_attention(q, pages(keys), pages(values), index + 1, table, pages_per_compute_block=at_once)
