"""The cache of keys and values while sequences are generated.

Place j of a row holds position j. So there is no padding inside: a token at position p sees the places up to p. Layers with a
window may keep their last places only, see `cache_places`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcsd_jax.models import few_layers, kernels
from rcsd_jax.models.cache_places import NOWHERE, Number, folded, layers_of, numbers, whole_pages
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels.cache_write import write_places
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
      ring: the same of the layers with a window, if these keep R places instead of S; then the pools above are of the others, and
        empty if there are none. None: all layers keep S places.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    k_scale: tuple[jax.Array, ...] = ()
    v_scale: tuple[jax.Array, ...] = ()
    ring: KVCache | None = None

    @property
    def length(self) -> int:
        """S, the places of a row; of a ring R."""
        return self.k[0].shape[3]

    @property
    def int8(self) -> bool:
        """Whether it is in int8."""
        return bool(self.k_scale) or (self.ring is not None and self.ring.int8)


def init_cache(
    config: DecoderConfig, batch: int, length: int, *, int8: bool = False, ring: int | None = None
) -> KVCache:
    """An empty cache in `config.dtype` or int8.

    Args:
      config: of the decoder.
      batch: rows.
      length: places of a row, at least; whole pages for Pallas.
      int8: whether it is in int8.
      ring: places of a row at most, in layers with a window, as of `cache_places.ring_places`; None: all.
    """
    length = whole_pages(config, length)
    if ring is None:
        return _empty(config, config.num_layers, batch, length, int8)
    whole, sliding = (len(layers) for layers in layers_of(config))
    rings = _empty(config, sliding, batch, min(length, ring), int8)
    return dataclasses.replace(_empty(config, whole, batch, length, int8), ring=rings)


def _empty(config: DecoderConfig, layers: int, batch: int, length: int, int8: bool) -> KVCache:
    pools = few_layers.cache_pools(config, layers)
    shape = (config.num_kv_heads, layers // max(pools, 1), batch, length, config.head_dim)

    def zeros(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
        return tuple(constrain(jnp.zeros(shape, dtype), POOL_AXES, LAYOUTS[config.layout]) for _ in range(pools))

    if not int8:
        return KVCache(zeros(shape, config.dtype), zeros(shape, config.dtype))
    scales = (*shape[:3], 1, shape[4])
    k, v = (zeros(shape, jnp.int8) for _ in "kv")
    k_scale, v_scale = (zeros(scales, jnp.float32) for _ in "kv")
    return KVCache(k, v, k_scale, v_scale)


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
    length = whole_pages(config, length)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, length - x.shape[3]), (0, 0)))
    return dataclasses.replace(cache, k=tuple(map(pad, cache.k)), v=tuple(map(pad, cache.v)))


def with_rings(config: DecoderConfig, cache: KVCache, lengths: jax.Array, length: int, ring: int) -> KVCache:
    """The cache of prompts with room for at least `length` places, and rings in layers with a window.

    Args:
      config: of the decoder.
      cache: of the rows' prompts, which keeps all places.
      lengths: [B] int32, places in use.
      length: as of `init_cache`.
      ring: as of `init_cache`.
    """

    def only(layers: list[int]) -> KVCache:
        def take(pools: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            if few_layers.unrolled(config):
                return tuple(pools[i] for i in layers) if pools else ()
            return tuple(jnp.stack([x[:, i] for i in layers], axis=1) for x in pools if layers)

        return KVCache(take(cache.k), take(cache.v), take(cache.k_scale), take(cache.v_scale))

    whole, sliding = map(only, layers_of(config))
    fold = lambda pools: tuple(folded(x, lengths, ring) for x in pools)
    rings = dataclasses.replace(sliding, k=fold(sliding.k), v=fold(sliding.v))
    rings = extended(config, rings, min(whole_pages(config, length), ring))
    return dataclasses.replace(extended(config, whole, length), ring=rings)


def write(
    config: DecoderConfig, cache: KVCache, k: jax.Array, v: jax.Array, layer: Number, index: jax.Array | None
) -> KVCache:
    """The cache with new keys and values of a layer.

    Args:
      config: of the decoder.
      cache: of `init_cache`.
      k, v: [B, K, T, Hd].
      layer: its number; static if every layer has its own pool.
      index: [B] int32, the position of each row's first; with T places from there in the cache. None: 0 in all rows, of a cache
        without rings.

    Returns:
      The cache; as the carry of a loop it is updated in place.
    """
    if cache.ring is None:
        return _write(config, cache, k, v, layer, index)
    assert index is not None, "prompts are folded into rings afterwards"

    def part(cache: KVCache, number: Number, layers: list[int], ring: bool) -> KVCache:
        if not layers or (isinstance(number, int) and number == NOWHERE):
            return cache
        # In a loop over layers of both kinds, each writes to both, to one of them nowhere: a conditional would copy them.
        share = 1.0 if isinstance(number, int) else len(layers) / config.num_layers
        return _write(config, cache, k, v, number, index, ring=ring, share=share)

    (whole, ring), (without, sliding) = numbers(config, layer), layers_of(config)
    return dataclasses.replace(part(cache, whole, without, ring=False), ring=part(cache.ring, ring, sliding, ring=True))


def _write(
    config: DecoderConfig,
    cache: KVCache,
    k: jax.Array,
    v: jax.Array,
    layer: Number,
    index: jax.Array | None,
    ring: bool = False,
    share: float = 1.0,
) -> KVCache:
    """`write` of a layer to its pool.

    Args:
      config, cache, k, v, index: as of `write`.
      layer: its number in the cache.
      ring: whether the pool is of rings.
      share: of the layers for which it is called, those that are in the pool; the others' number is `NOWHERE`.
    """
    pool, layer = pool_of(cache, layer)
    places = cache.k[pool].shape[3]

    def put_here(array: jax.Array, new: jax.Array, index: jax.Array, layer: jax.Array) -> jax.Array:
        if config.kernels == "pallas" and kernels.takes(new):
            return write_places(array, new, layer, index % places if ring else index, ring=ring, share=share)
        if ring and new.shape[2] > 1:  # they may go on at the ring's beginning
            for token in range(new.shape[2]):
                array = put_here(array, new[:, :, token : token + 1], index + token, layer)
            return array
        index = index % places if ring else index
        if config.kernels == "pallas":
            # Row by row: TPUs run a scatter as a loop of many small instructions a row.
            for row in range(new.shape[1]):
                one, place = new[:, None, row : row + 1], (0, layer, row, index[row], 0)  # [K, 1, 1, T, Hd]
                if share < 1:  # an update to nowhere would go to the first layer
                    place = (0, jnp.maximum(layer, 0), *place[2:])
                    one = jnp.where(layer < 0, jax.lax.dynamic_slice(array, place, one.shape), one)
                array = jax.lax.dynamic_update_slice(array, one, place)
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
        modes = jax.lax.GatherScatterMode
        mode = modes.PROMISE_IN_BOUNDS if share == 1 else modes.FILL_OR_DROP
        return jax.lax.scatter(array, start, new, rows, unique_indices=True, mode=mode)

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
      source: C rows of at most S places, which become the first of a row; rings are as long, or not longer than their rows.
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


def layer_of(pool: jax.Array, layer: Number) -> jax.Array:
    """A layer [K, B, S, Hd] of a pool."""
    return jax.lax.dynamic_index_in_dim(pool, layer, axis=1, keepdims=False)


def pool_of(cache: KVCache, layer: Number) -> tuple[int, Number]:
    """The pool of a layer, and the layer's place in it."""
    return (0, layer) if len(cache.k) == 1 else (int(layer), 0)
