"""Keys and values of generated sequences, and the attention of new tokens to them, which reads only the places in use.

Place j of a row holds position j, so there is no padding inside: a token at position p sees the places up to p.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcsd_jax.models.cache_write import write_places
from rcsd_jax.models.sharding import LAYOUTS, constrain, has_mesh, spec

PAGE = 128  # places, what the Pallas kernel copies at once
LANES = 128  # of a TPU's vector registers: the kernel's blocks are multiples of them
POOL_AXES = ("kv_heads", "layers", "batch", None, None)  # logical axes of a pool
BLOCK = 256  # places, what the plain path reads at once of a longer cache
_FEW_QUERIES = 8  # of a key/value head, up to which the plain path takes one at a time
_HEADS_AND_ROWS = ((0, 1), (0, 1))  # batch axes of products with keys and values
HEADROOM = 1.5
"""How much larger than its prompt's a completion's keys and values may be until int8 cuts them off."""


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens so far, in one or several pools of layers.

    A scanned decoder keeps one pool of all layers, an unrolled one a pool a layer, since XLA on CPUs copies a layer that it
    takes out of a pool.

    Attributes:
      k, v: tuples of arrays [K, L of the pool, B, S, Hd] in the activations' dtype: key/value heads first, so that a pool
        is sharded over them and is read as pages [K, L * B * S / page, page, Hd] without a copy. Or int8, and then
      k_scale, v_scale: tuples of arrays [K, L of the pool, B, 1, Hd] float32, by which they are multiplied; else empty.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    k_scale: tuple[jax.Array, ...] = ()
    v_scale: tuple[jax.Array, ...] = ()

    @property
    def length(self) -> int:
        """S, the places of a row."""
        return self.k[0].shape[3]


def init_cache(config: Any, batch: int, length: int, *, int8: bool = False) -> KVCache:
    """An empty cache of at least `length` places for `batch` rows, in `config.dtype` or int8; whole pages for Pallas."""
    length = _places(config, length)
    pools = config.num_layers if config.unrolled else 1
    shape = (config.num_kv_heads, config.num_layers // pools, batch, length, config.head_dim)

    def zeros(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
        return tuple(constrain(jnp.zeros(shape, dtype), POOL_AXES, LAYOUTS[config.layout]) for _ in range(pools))

    if not int8:
        return KVCache(zeros(shape, config.dtype), zeros(shape, config.dtype))
    scales = (*shape[:3], 1, shape[4])
    return KVCache(*(zeros(shape, jnp.int8) for _ in "kv"), *(zeros(scales, jnp.float32) for _ in "kv"))


def int8_cache(cache: KVCache, lengths: jax.Array) -> KVCache:
    """The cache of prompts in int8, with scales under which their completions' keys and values are written as well.

    Every row, head and channel has its scale, which multiplies queries and results instead of what is read: keys have
    channels that are large in all places (KIVI, arXiv 2402.02750). As RoPE turns the two channels of a pair into each other,
    a key's pairs share a scale, of the largest length that they have in the prompt.

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


def extended(config: Any, cache: KVCache, length: int) -> KVCache:
    """The cache with room for at least `length` places."""
    more = _places(config, length) - cache.length
    pad = lambda pools: tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))) for x in pools)
    return dataclasses.replace(cache, k=pad(cache.k), v=pad(cache.v))


def _places(config: Any, length: int) -> int:
    return -(-length // PAGE) * PAGE if config.kernels == "pallas" else length


def write(
    config: Any, cache: KVCache, k: jax.Array, v: jax.Array, layer: jax.Array | int, index: jax.Array | None
) -> KVCache:
    """The cache with new keys and values of a layer.

    Args:
      config: of the decoder.
      cache: of `init_cache`.
      k, v: [B, K, T, Hd].
      layer: which; a static number where every layer has its pool.
      index: [B] int32, the place of each row's first; with T places from there in the cache. None: 0 in all rows.

    Returns:
      The cache, of which a loop's carry is updated in place.
    """
    pool, layer = _pool_of(cache, layer)

    def put_here(array: jax.Array, new: jax.Array, index: jax.Array, layer: jax.Array) -> jax.Array:
        if config.kernels == "pallas" and _fits_kernels(new):
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
        new = _to_int8(new, _layer_of(scales[pool], layer)) if scales else new.astype(array.dtype)
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


def decode_attention(config: Any, q: jax.Array, cache: KVCache, layer: jax.Array | int, index: jax.Array) -> jax.Array:
    """Grouped-query attention of new tokens to a layer of the cache, which holds their own keys and values already.

    Args:
      config: of the decoder; `kernels` "pallas" takes the paged kernel for single tokens, where heads fill vector registers.
      q: [B, H, T, Hd]; row b's token t attends to the places up to index[b] + t.
      cache: [.., B, S, ..], see `KVCache`.
      layer: as in `write`.
      index: [B] int32.

    Returns:
      [B, H, T, Hd] in the dtype of q.
    """
    q = _scaled(q, cache.k_scale, cache, layer)
    if config.kernels == "pallas" and _fits_kernels(q):
        attended = _paged(config, q[:, :, 0], cache, layer, index)[:, :, None]
    else:
        attended = _blocks(q, cache, layer, index)
    return _scaled(attended, cache.v_scale, cache, layer)


def _scaled(x: jax.Array, scales: tuple[jax.Array, ...], cache: KVCache, layer: jax.Array | int) -> jax.Array:
    """x [B, H, T, Hd] times the scales of a layer of an int8 cache."""
    if not scales:
        return x
    pool, layer = _pool_of(cache, layer)
    scale = _layer_of(scales[pool], layer).swapaxes(0, 1)  # [B, K, 1, Hd]
    grouped = x.reshape(x.shape[0], scale.shape[1], -1, *x.shape[2:])  # [B, K, G, T, Hd]
    return (grouped.astype(jnp.float32) * scale[:, :, None]).reshape(x.shape).astype(x.dtype)


def _layer_of(pool: jax.Array, layer: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(pool, layer, axis=1, keepdims=False)


def _fits_kernels(x: jax.Array) -> bool:
    """Whether [., ., T, Hd] is of single tokens, and of heads that fill vector registers."""
    return x.shape[2] == 1 and x.shape[3] % LANES == 0


def _pool_of(cache: KVCache, layer: jax.Array | int) -> tuple[int, jax.Array | int]:
    """The pool of a layer, and its place there."""
    return (0, layer) if len(cache.k) == 1 else (int(layer), 0)


def _blocks(q: jax.Array, cache: KVCache, layer: jax.Array | int, index: jax.Array) -> jax.Array:
    """Block by block up to the last place in use, with a running maximum and sum (the softmax is exact)."""
    batch, heads, length, head_dim = q.shape
    pool, layer = _pool_of(cache, layer)
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
        seen = (place <= last[..., None]) & (place >= i * block)
        scores = jnp.where(seen, scores * head_dim**-0.5, -1e30)
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
        carry = jax.lax.fori_loop(0, (index.max() + length + block - 1) // block, add, carry)
    return (carry[2] / carry[1]).astype(q.dtype).swapaxes(0, 1).reshape(batch, heads, length, head_dim)


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:
    """q [K, B, G * T, Hd] times keys [K, B, S, Hd]: [K, B, G * T, S] float32."""
    if q.shape[2] > _FEW_QUERIES:
        return jax.lax.dot_general(q, keys, (((3,), (3,)), _HEADS_AND_ROWS), preferred_element_type=jnp.float32)
    # One query at a time, for which XLA on CPUs reads keys as they lie; for several it transposes them first.
    one = lambda q: jax.lax.dot_general(keys, q, (((3,), (2,)), _HEADS_AND_ROWS), preferred_element_type=jnp.float32)
    return jnp.stack([one(q[:, :, i]) for i in range(q.shape[2])], axis=2)


def _paged(config: Any, q: jax.Array, cache: KVCache, layer: jax.Array | int, index: jax.Array) -> jax.Array:
    """One token a row, q [B, H, Hd], by jax's paged kernel: each row reads its own pages up to its own length."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    pool, layer = _pool_of(cache, layer)

    def attend(q: jax.Array, keys: jax.Array, values: jax.Array, index: jax.Array, layer: jax.Array) -> jax.Array:
        kv_heads, layers, batch, places, head_dim = keys.shape
        count = places // PAGE
        pages = lambda x: x.reshape(kv_heads, layers * batch * count, PAGE, head_dim)
        table = (layer * batch + jnp.arange(batch, dtype=jnp.int32))[:, None] * count + jnp.arange(
            count, dtype=jnp.int32
        )
        at_once = max(n for n in range(1, 9) if count % n == 0)
        q = q * jnp.asarray(head_dim**-0.5, q.dtype)
        return paged_attention(q, pages(keys), pages(values), index + 1, table, pages_per_compute_block=at_once)

    if has_mesh():  # the kernel cannot be partitioned: each device runs it on its rows and heads
        rules = LAYOUTS[config.layout]
        pool_spec = spec(POOL_AXES, rules)
        rows, queries = spec(("batch",), rules), spec(("batch", "heads", None), rules)
        attend = jax.shard_map(
            attend,
            in_specs=(queries, pool_spec, pool_spec, rows, PartitionSpec()),
            out_specs=queries,
            check_vma=False,
        )
    return attend(q, cache.k[pool], cache.v[pool], index.astype(jnp.int32), jnp.asarray(layer, jnp.int32))
