"""Attention of new tokens to the keys and values in a cache: it reads only the places in use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcsd_jax.models import kernels
from rcsd_jax.models.cache import POOL_AXES, KVCache, layer_of, pool_of
from rcsd_jax.models.cache_places import NOWHERE, Number, numbers
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels import few_queries, paged
from rcsd_jax.models.sharding import LAYOUTS, has_mesh, spec

BLOCK = 256
"""Places of a longer cache that the plain path reads at once."""
_FEW_QUERIES = 8  # for a key/value head; up to here the plain path takes one at a time
_HEADS_AND_ROWS = ((0, 1), (0, 1))  # batch axes of products with keys and values


def cached_attention(
    config: DecoderConfig,
    q: jax.Array,
    cache: KVCache,
    layer: Number,
    index: jax.Array,
    sliding: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query attention of new tokens to a layer of the cache, which holds their own keys and values already.

    Args:
      config: of the decoder; with `kernels` "pallas", few tokens take a kernel if heads fill vector registers.
      q: [B, H, T, Hd]; row b's token t attends to the places up to index[b] + t, of a sliding layer to the last `config.window`
        of them.
      cache: [.., B, S, ..], see `KVCache`.
      layer: as in `cache.write`.
      index: [B] int32.
      sliding: [] bool, whether the layer has a window; None if no layer has one.

    Returns:
      [B, H, T, Hd] in the dtype of q.
    """
    if cache.ring is None:
        window = None
        if sliding is not None:
            assert config.window is not None, "sliding layers have one"
            window = jnp.where(sliding, config.window, cache.length)  # at most all places
        return _attend(config, q, cache, layer, index, window)
    assert config.window is not None and config.window + q.shape[2] - 1 <= cache.ring.length, "new tokens have room"
    whole, ring = numbers(config, layer)

    def in_ring(q: jax.Array, cache: KVCache, index: jax.Array) -> jax.Array:
        assert cache.ring is not None and config.window is not None
        return _attend(config, q, cache.ring, ring, index, jnp.int32(config.window), ring=True)

    def in_whole(q: jax.Array, cache: KVCache, index: jax.Array) -> jax.Array:
        return _attend(config, q, cache, whole, index, None)

    if not cache.k or isinstance(ring, int):
        return (in_whole if isinstance(ring, int) and ring == NOWHERE else in_ring)(q, cache, index)
    return jax.lax.cond(ring >= 0, in_ring, in_whole, q, cache, index)


def _attend(
    config: DecoderConfig,
    q: jax.Array,
    cache: KVCache,
    layer: Number,
    index: jax.Array,
    window: jax.Array | None,
    ring: bool = False,
) -> jax.Array:
    """Attention to the pools of a cache. The layer is its number there, and a token sees `window` places, or all (None)."""
    q = _scaled(q, cache.k_scale, cache, layer)
    attend = _by_kernel if config.kernels == "pallas" and kernels.takes(q) else _blocks
    return _scaled(attend(config, q, cache, layer, index, window, ring), cache.v_scale, cache, layer)


def _scaled(x: jax.Array, scales: tuple[jax.Array, ...], cache: KVCache, layer: Number) -> jax.Array:
    """x [B, H, T, Hd] times the scales of a layer of an int8 cache."""
    if not scales:
        return x
    pool, layer = pool_of(cache, layer)
    scale = layer_of(scales[pool], layer).swapaxes(0, 1)  # [B, K, 1, Hd]
    grouped = x.reshape(x.shape[0], scale.shape[1], -1, *x.shape[2:])  # [B, K, G, T, Hd]
    return (grouped.astype(jnp.float32) * scale[:, :, None]).reshape(x.shape).astype(x.dtype)


def _blocks(
    config: DecoderConfig,
    q: jax.Array,
    cache: KVCache,
    layer: Number,
    index: jax.Array,
    window: jax.Array | None,
    ring: bool,
) -> jax.Array:
    """Block by block up to the last place in use, with a running maximum and sum (the softmax is exact)."""
    batch, heads, length, head_dim = q.shape
    pool, layer = pool_of(cache, layer)
    keys, values = cache.k[pool], cache.v[pool]
    kv_heads, places = keys.shape[0], keys.shape[3]
    group = heads // kv_heads
    block = places if places <= BLOCK else BLOCK
    q = q.reshape(batch, kv_heads, group * length, head_dim).swapaxes(0, 1)
    last = jnp.tile(index[:, None] + jnp.arange(length), (1, group))  # [B, G * T], the last place that each sees

    def add(i: jax.Array | int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        maximum, total, sums = carry
        # The last block ends with the cache; what an earlier block has read already is masked.
        start = jnp.minimum(i * block, places - block)

        def take(pool: jax.Array) -> jax.Array:
            read = jax.lax.dynamic_slice(pool, (0, layer, 0, start, 0), (kv_heads, 1, batch, block, head_dim))
            return read[:, 0].astype(q.dtype)

        scores = _scores(q, take(keys))  # [K, B, G * T, block]
        place = start + jnp.arange(block)
        if ring:
            assert window is not None, "a ring is of one"
            age = (last[..., None] - place) % places
            seen = (age <= last[..., None]) & (age < window) & (place >= i * block)
        else:
            seen = (place <= last[..., None]) & (place >= i * block)
            if window is not None:
                seen &= place > last[..., None] - window
        scores = jnp.where(seen, scores * config.query_scale, -1e30)
        new_maximum = jnp.maximum(maximum, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_maximum)
        scale = jnp.exp(maximum - new_maximum)
        total = total * scale + weights.sum(axis=-1, keepdims=True)
        added = jax.lax.dot_general(
            weights.astype(q.dtype),
            take(values),
            (((3,), (2,)), _HEADS_AND_ROWS),
            preferred_element_type=jnp.float32,
        )
        return new_maximum, total, sums * scale + added

    shape = (kv_heads, batch, group * length)
    carry: tuple[jax.Array, ...] = (jnp.full((*shape, 1), -1e30), jnp.zeros((*shape, 1)), jnp.zeros((*shape, head_dim)))
    if block == places:
        carry = add(0, carry)
    else:
        # What a row sums up in blocks before its window is multiplied by 0 in the first block that it sees.
        first = 0 if window is None or ring else jnp.maximum(index.min() + 1 - window, 0) // block
        end = index.max() + length
        end = jnp.minimum(end, places) if ring else end
        carry = jax.lax.fori_loop(first, (end + block - 1) // block, add, carry)
    return (carry[2] / carry[1]).astype(q.dtype).swapaxes(0, 1).reshape(batch, heads, length, head_dim)


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:
    """q [K, B, G * T, Hd] times keys [K, B, S, Hd]: [K, B, G * T, S] float32."""
    if q.shape[2] > _FEW_QUERIES:
        return jax.lax.dot_general(q, keys, (((3,), (3,)), _HEADS_AND_ROWS), preferred_element_type=jnp.float32)
    # One query at a time: then XLA on CPUs reads keys in their stored order. For several it transposes them first.
    one = lambda q: jax.lax.dot_general(keys, q, (((3,), (2,)), _HEADS_AND_ROWS), preferred_element_type=jnp.float32)
    return jnp.stack([one(q[:, :, i]) for i in range(q.shape[2])], axis=2)


def _by_kernel(
    config: DecoderConfig,
    q: jax.Array,
    cache: KVCache,
    layer: Number,
    index: jax.Array,
    window: jax.Array | None,
    ring: bool,
) -> jax.Array:
    """One token a row by the paged kernel, or a few, q [B, H, T, Hd]. The paged kernel knows no windows."""
    pool, layer = pool_of(cache, layer)
    kernel: Callable[..., jax.Array] = _single if q.shape[2] == 1 and window is None else few_queries.attend
    if ring:
        kernel = functools.partial(few_queries.attend, ring=True)
    attend = functools.partial(kernel, scale=config.query_scale)
    numbers = [jnp.asarray(x, jnp.int32) for x in (layer, window) if x is not None]
    if has_mesh():  # the kernel cannot be partitioned: each device runs it on its rows and heads
        rules = LAYOUTS[config.layout]
        pool_spec = spec(POOL_AXES, rules)
        rows, queries = spec(("batch",), rules), spec(("batch", "heads", None, None), rules)
        attend = jax.shard_map(
            attend,
            in_specs=(queries, pool_spec, pool_spec, rows, *(PartitionSpec() for _ in numbers)),
            out_specs=queries,
            check_vma=False,
        )
    return attend(q, cache.k[pool], cache.v[pool], index.astype(jnp.int32), *numbers)


def _single(q: jax.Array, *arguments: jax.Array, scale: float) -> jax.Array:
    """The paged kernel for q [B, H, 1, Hd]."""
    return paged.attend(q[:, :, 0], *arguments, scale=scale)[:, :, None]
