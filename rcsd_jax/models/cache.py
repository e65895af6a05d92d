"""The cache of keys and values while sequences are generated.

Place j of a row holds position j. So there is no padding inside: a token at position p sees the places up to p.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcsd_jax.models import few_layers, kernels
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels.cache_write import write_places
from rcsd_jax.models.kernels.paged import PAGE
from rcsd_jax.models.sharding import LAYOUTS, constrain, has_mesh, spec

POOL_AXES = ("kv_heads", "layers", "batch", None, None)
"""Logical axes of a pool."""
HEADROOM = 1.5
"""How much larger than its prompt's a completion's keys and values may be until int8 cuts them off."""


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens so far, in one pool of all layers, or one pool a layer (see `few_layers`).

    Attributes:
      k, v: tuples of arrays [K, L of the pool, B, S, Hd] in the activations' dtype: key/value heads first, so that a pool
        is sharded over them and is read as pages [K, L * B * S / page, page, Hd] without a copy. Or in int8.
      k_scale, v_scale: tuples of arrays [K, L of the pool, B, 1, Hd] float32 that multiply int8 values; else empty.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    k_scale: tuple[jax.Array, ...] = ()
    v_scale: tuple[jax.Array, ...] = ()

    @property
    def length(self) -> int:
        """S, the places of a row."""
        return self.k[0].shape[3]


def init_cache(config: DecoderConfig, batch: int, length: int, *, int8: bool = False) -> KVCache:
    """An empty cache of at least `length` places for `batch` rows, in `config.dtype` or int8; whole pages for Pallas."""
    length = _places(config, length)
    pools = few_layers.cache_pools(config)
    shape = (config.num_kv_heads, config.num_layers // pools, batch, length, config.head_dim)

    def zeros(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
        return tuple(constrain(jnp.zeros(shape, dtype), POOL_AXES, LAYOUTS[config.layout]) for _ in range(pools))

    if not int8:
        return KVCache(zeros(shape, config.dtype), zeros(shape, config.dtype))
    scales = (*shape[:3], 1, shape[4])
    return KVCache(*(zeros(shape, jnp.int8) for _ in "kv"), *(zeros(scales, jnp.float32) for _ in "kv"))


def int8_cache(cache: KVCache, lengths: jax.Array) -> KVCache:
    """The cache of prompts in int8. The scales also serve the keys and values of their completions.

    Every row, head and channel has its own scale, because keys have channels that are large in all places (KIVI, arXiv
    2402.02750). The scale multiplies queries and results instead of what is read. RoPE turns the two channels of a pair into
    each other, so a key's pairs share a scale, from the largest length that they have in the prompt.

    Args:
      cache: of the rows' prompts.
      lengths: [B] int32, places in use.
    """
    used = (jnp.arange(cache.length) < lengths[:, None])[:, :, None]  # [B, S, 1]

    def scale(pool: jax.Array, paired: bool) -> jax.Array:
        magnitude = jnp.abs(jnp.where(used, pool, 0).astype(jnp.float32))
        if paired:
            first, second = jnp.split(magnitude, 2, axis=-1)
            magnitude = jnp.tile(jnp.hypot(first, second), 2)
        return jnp.maximum(magnitude.max(axis=3, keepdims=True) * (HEADROOM / 127), 1e-12)

    k_scale, v_scale = tuple(scale(x, True) for x in cache.k), tuple(scale(x, False) for x in cache.v)
    return KVCache(tuple(map(_to_int8, cache.k, k_scale)), tuple(map(_to_int8, cache.v, v_scale)), k_scale, v_scale)


def _to_int8(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -127, 127).astype(jnp.int8)


def extended(config: DecoderConfig, cache: KVCache, length: int) -> KVCache:
    """The cache with room for at least `length` places."""
    more = _places(config, length) - cache.length
    pad = lambda pools: tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))) for x in pools)
    return dataclasses.replace(cache, k=pad(cache.k), v=pad(cache.v))


def _places(config: DecoderConfig, length: int) -> int:
    return -(-length // PAGE) * PAGE if config.kernels == "pallas" else length


def write(
    config: DecoderConfig, cache: KVCache, k: jax.Array, v: jax.Array, layer: jax.Array | int, index: jax.Array | None
) -> KVCache:
    """The cache with new keys and values of a layer.

    Args:
      config: of the decoder.
      cache: of `init_cache`.
      k, v: [B, K, T, Hd].
      layer: its number; static if every layer has its own pool.
      index: [B] int32, the place of each row's first; with T places from there in the cache. None: 0 in all rows.

    Returns:
      The cache; as the carry of a loop it is updated in place.
    """
    pool, layer = pool_of(cache, layer)

    def put_here(array: jax.Array, new: jax.Array, index: jax.Array, layer: jax.Array) -> jax.Array:
        if config.kernels == "pallas" and kernels.takes(new):
            return write_places(array, new, layer, index)
        if config.kernels == "pallas":
            # Row by row: TPUs run a scatter as a loop of many small instructions a row.
            for row in range(new.shape[1]):
                one = new[:, None, row : row + 1]  # [K, 1, 1, T, Hd]
                array = jax.lax.dynamic_update_slice(array, one, (0, layer, row, index[row], 0))
            return array
        # What vmap of dynamic_update_slice over rows is, without its transposes of the cache.
        rows = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(0, 2, 3),
            inserted_window_dims=(1,),
            scatter_dims_to_operand_dims=(1, 3),
            operand_batching_dims=(2,),
            scatter_indices_batching_dims=(0,),
        )
        start = jnp.stack([jnp.full_like(index, layer), index], axis=1)  # [B, 2]
        in_bounds = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
        return jax.lax.scatter(array, start, new, rows, unique_indices=True, mode=in_bounds)

    def put(array: jax.Array, new: jax.Array, scales: tuple[jax.Array, ...]) -> jax.Array:
        new = new.swapaxes(0, 1)  # [K, B, T, Hd]
        new = _to_int8(new, layer_of(scales[pool], layer)) if scales else new.astype(array.dtype)
        if index is None:
            return jax.lax.dynamic_update_slice(array, new[:, None], (0, layer, 0, 0, 0))
        here = put_here
        if has_mesh():  # every device writes its rows and heads
            rules = LAYOUTS[config.layout]
            pool_spec, new_spec = spec(POOL_AXES, rules), spec(("kv_heads", "batch", None, None), rules)
            specs = (pool_spec, new_spec, spec(("batch",), rules), PartitionSpec())
            here = jax.shard_map(put_here, in_specs=specs, out_specs=pool_spec, check_vma=False)
        return here(array, new, index, jnp.asarray(layer, jnp.int32))

    replace = lambda pools, *new: (*pools[:pool], put(pools[pool], *new), *pools[pool + 1 :])
    return dataclasses.replace(cache, k=replace(cache.k, k, cache.k_scale), v=replace(cache.v, v, cache.v_scale))


def copy_rows(cache: KVCache, source: KVCache, taken: jax.Array, put: jax.Array) -> KVCache:
    """The cache with one row of `source` copied into it for each of G equal groups of rows.

    Args:
      cache: B rows of S places.
      source: C rows of at most S places, which become the first of a row.
      taken: [G] int32, row taken[g] of group g's C / G rows of the source.
      put: [G] int32, where in group g's B / G rows it goes; B / G or more: nowhere.
    """
    groups = taken.shape[0]

    def copy(array: jax.Array, other: jax.Array) -> jax.Array:
        grouped = lambda x: x.reshape(*x.shape[:2], groups, x.shape[2] // groups, *x.shape[3:])  # [K, L, G, ., S, Hd]
        other = grouped(other)
        row = jax.lax.GatherDimensionNumbers(
            offset_dims=(0, 1, 3, 4, 5),
            collapsed_slice_dims=(),
            start_index_map=(3,),
            operand_batching_dims=(2,),
            start_indices_batching_dims=(0,),
        )
        new = jax.lax.gather(other, taken[:, None], row, (*other.shape[:2], 1, 1, *other.shape[4:]))
        place = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(0, 1, 3, 4, 5),
            inserted_window_dims=(),
            scatter_dims_to_operand_dims=(3,),
            operand_batching_dims=(2,),
            scatter_indices_batching_dims=(0,),
        )
        drop = jax.lax.GatherScatterMode.FILL_OR_DROP
        return jax.lax.scatter(grouped(array), put[:, None], new, place, unique_indices=True, mode=drop).reshape(
            array.shape
        )

    return jax.tree.map(copy, cache, source)


def layer_of(pool: jax.Array, layer: jax.Array | int) -> jax.Array:
    """A layer [K, B, S, Hd] of a pool."""
    return jax.lax.dynamic_index_in_dim(pool, layer, axis=1, keepdims=False)


def pool_of(cache: KVCache, layer: jax.Array | int) -> tuple[int, jax.Array | int]:
    """The pool of a layer, and the layer's place in it."""
    return (0, layer) if len(cache.k) == 1 else (int(layer), 0)
