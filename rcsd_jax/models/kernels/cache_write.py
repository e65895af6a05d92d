"""A TPU kernel that writes one new place of every row into a pool of keys or values.

XLA writes rows that end at different places by a scatter (a loop of small instructions) or by one update a row. Both wait for
memory once a row. Here the copies of all rows are under way together.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def write_places(pool: jax.Array, new: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    """The pool with `new` in place index[b] of row b of a layer; the buffer is updated in place where possible.

    A place is smaller than what TPUs copy at once, so the tile around it is read, changed and written back.

    Args:
      pool: [K, L, B, S, Hd], of 8, 16 or 32 bits a value; Hd a multiple of 128, S of a tile's places (32 bytes of a channel).
      new: [K, B, 1, Hd], in its dtype.
      layer: [] int32.
      index: [B] int32, below S.
    """
    kv_heads, _, batch, _, head_dim = pool.shape
    tile = 32 // pool.dtype.itemsize  # places that are together in memory
    copied = 2 * kv_heads * batch * tile * head_dim * pool.dtype.itemsize
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(kv_heads,),
        in_specs=[pl.BlockSpec((1, batch, 1, head_dim), lambda k, *_: (k, 0, 0, 0)), anywhere],
        out_specs=anywhere,
        scratch_shapes=[pltpu.VMEM((batch, tile, head_dim), pool.dtype), pltpu.SemaphoreType.DMA(())],
    )
    write = pl.pallas_call(
        functools.partial(_write, tile=tile),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct(pool.shape, pool.dtype),
        input_output_aliases={3: 0},
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=copied),
        name="write_places",
    )
    return write(layer[None], index, new, pool)


def _write(layer: Any, index: Any, new: Any, pool: Any, written: Any, tiles: Any, semaphore: Any, *, tile: int) -> None:
    """References: layer [1] and index [B] in SMEM, new [1, B, 1, Hd] in VMEM, the pool before and after in HBM."""
    head, batch = pl.program_id(0), tiles.shape[0]

    def around(array: Any, row: jax.Array) -> Any:
        first = pl.multiple_of(index[row] // tile * tile, tile)
        return array.at[head, layer[0], row, pl.ds(first, tile)]

    read = lambda row: pltpu.make_async_copy(around(pool, row), tiles.at[row], semaphore)
    write = lambda row: pltpu.make_async_copy(tiles.at[row], around(written, row), semaphore)

    def change(row: jax.Array) -> None:
        old = tiles[row].astype(jnp.float32)  # in which all values are exact
        here = jax.lax.broadcasted_iota(jnp.int32, old.shape, 0) == index[row] % tile
        tiles[row] = jnp.where(here, new[0, row].astype(jnp.float32), old).astype(tiles.dtype)

    for step in (
        lambda row: read(row).start(),
        lambda row: read(row).wait(),
        change,
        lambda row: write(row).start(),
        lambda row: write(row).wait(),
    ):
        jax.lax.fori_loop(0, batch, lambda row, _, step=step: step(row), None)
