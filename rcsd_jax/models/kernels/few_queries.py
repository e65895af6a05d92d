"""A TPU kernel: attention of a few new tokens of every row to the cache, whose places are read once for all of them.

JAX's paged kernel takes one token a row. Its ragged kernel takes several, but keeps keys and values of all heads in one array.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rcsd_jax.models.kernels import paged


def attend(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    index: jax.Array,
    layer: jax.Array,
    window: jax.Array | None = None,
    *,
    scale: float,
    ring: bool = False,
) -> jax.Array:
    """Attention of T tokens a row, each to the places up to its own, of one device's rows and heads.

    Args:
      q: [B, H, T, Hd].
      keys, values: [K, L, B, S, Hd], S a multiple of `paged.PAGE`.
      index: [B] int32, the position of each row's first token; index + T is at most S, or a ring holds the last S positions.
      layer: [] int32.
      window: [] int32, how many places a token sees, at least 1; None: all.
      scale: of the scores.
      ring: whether place j holds the newest position p with p mod S = j; the window is then at most S - T + 1.

    Returns:
      [B, H, T, Hd] in q's dtype.
    """
    batch, heads, tokens, head_dim = q.shape
    kv_heads, _, _, places, _ = keys.shape
    queries = heads // kv_heads * tokens  # of a key/value head; query i is of token i % T
    block = paged.block(places)
    one_head = pl.BlockSpec((1, 1, queries, head_dim), lambda head, row, *_: (row, head, 0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    read = 2 * kv_heads * batch * places * head_dim
    kernel = pl.pallas_call(
        functools.partial(_attend, tokens=tokens, block=block, ring=places if ring else None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(kv_heads, batch),
            in_specs=[one_head, anywhere, anywhere],
            out_specs=one_head,
            scratch_shapes=[
                pltpu.VMEM((2, block, head_dim), keys.dtype),
                pltpu.VMEM((2, block, head_dim), values.dtype),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, kv_heads, queries, head_dim), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(  # as if all places were in use
            flops=2 * read * queries,
            transcendentals=read * queries // 2 // head_dim,
            bytes_accessed=read * keys.dtype.itemsize,
        ),
        name="attend_few_queries",
    )
    q = (q * jnp.asarray(scale, q.dtype)).reshape(batch, kv_heads, queries, head_dim)
    window = jnp.asarray(places if window is None else window, jnp.int32)
    return kernel(layer[None], window[None], index, q, keys, values).reshape(batch, heads, tokens, head_dim)


def _attend(
    layer: Any, window: Any, index: Any, q: Any, keys: Any, values: Any, out: Any, key_blocks: Any, value_blocks: Any, semaphores: Any,
    first: Any, *, tokens: int, block: int, ring: int | None,
) -> None:  # fmt: skip
    """One row and key/value head, block by block, with a running maximum and sum. The next block is copied meanwhile.

    References: layer [1], window [1] and index [B] in SMEM, q and out [1, 1, queries, Hd] in VMEM, the pools in HBM, two blocks of each in VMEM,
    and which of the two holds the row's first block, [1] in SMEM.
    """
    head, row = pl.program_id(0), pl.program_id(1)
    heads, batch = pl.num_programs(0), pl.num_programs(1)
    blocks = pl.cdiv(index[row] + tokens, block)
    first_block = lambda row: jnp.maximum(index[row] + 1 - window[0], 0) // block
    if ring:
        blocks = jnp.minimum(blocks, ring // block)
        first_block = lambda row: jnp.minimum(index[row], 0)  # 0, but no literal, of which TPUs take no multiples
    queries = q[0, 0]  # [queries, Hd]

    def copies(head: Any, row: Any, i: Any, half: Any) -> list[Any]:
        here = pl.ds(pl.multiple_of(i * block, block), block)
        pairs = ((keys, key_blocks), (values, value_blocks))
        return [
            pltpu.make_async_copy(pool.at[head, layer[0], row, here], both.at[half], semaphores.at[half])
            for pool, both in pairs
        ]

    @pl.when((head == 0) & (row == 0))
    def _() -> None:
        first[0] = 0
        for copy in copies(head, row, first_block(row), 0):
            copy.start()

    query = jax.lax.broadcasted_iota(jnp.int32, (queries.shape[0], block), 0)
    place = jax.lax.broadcasted_iota(jnp.int32, (queries.shape[0], block), 1)
    last = index[row] + query % tokens

    def add(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        maximum, total, sums, half = carry
        ends = i + 1 == blocks
        wraps = ends & (row + 1 == batch)
        next_row = jnp.where(wraps, 0, jnp.where(ends, row + 1, row))
        following = (jnp.where(wraps, head + 1, head), next_row, jnp.where(ends, first_block(next_row), i + 1))

        @pl.when(following[0] < heads)
        def _() -> None:
            for copy in copies(*following, 1 - half):
                copy.start()

        for copy in copies(head, row, i, half):
            copy.wait()
        k, v = (both[half].astype(jnp.float32).astype(queries.dtype) for both in (key_blocks, value_blocks))
        scores = jax.lax.dot_general(queries, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        if ring:
            age = jax.lax.rem(index[row], ring) + query % tokens - (i * block + place)
            age = jnp.where(age < 0, age + ring, jnp.where(age >= ring, age - ring, age))
            seen = (age <= last) & (age < window[0])
        else:
            seen = (i * block + place <= last) & (i * block + place > last - window[0])
        scores = jnp.where(seen, scores, -1e30)
        new_maximum = jnp.maximum(maximum, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - new_maximum)
        scale = jnp.exp(maximum - new_maximum)
        added = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        total = total * scale + weights.sum(axis=1, keepdims=True)
        return new_maximum, total, sums * scale + added, 1 - half

    column, wide = (queries.shape[0], 1), queries.shape
    start = (
        jnp.full(column, -1e30, jnp.float32),
        jnp.zeros(column, jnp.float32),
        jnp.zeros(wide, jnp.float32),
        first[0],
    )
    _, total, sums, half = jax.lax.fori_loop(first_block(row), blocks, add, start)
    first[0] = half
    out[0, 0] = (sums / total).astype(out.dtype)
