"""A TPU kernel that writes one or a few new places of every row into a pool of keys or values.

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
    """The pool with `new` in the places from index[b] on of row b of a layer; the buffer is updated in place where possible.

    A place is smaller than what TPUs copy at once, so the tile around it is read, changed and written back. Several places are in
    two tiles at most.

    Args:
      pool: [K, L, B, S, Hd], of 8, 16 or 32 bits a value; Hd a multiple of 128, S of a tile's places (32 bytes of a channel).
      new: [K, B, T, Hd], in its dtype; T - 1 is at most a tile's places.
      layer: [] int32.
      index: [B] int32; index + T is at most S.
    """
    kv_heads, _, batch, _, head_dim = pool.shape
    tokens = new.shape[2]
    tile = 32 // pool.dtype.itemsize  # places that are together in memory
    copied_places = tile if tokens == 1 else 2 * tile
    copied = 2 * kv_heads * batch * copied_places * head_dim * pool.dtype.itemsize
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(kv_heads,),
        in_specs=[pl.BlockSpec((1, batch, tokens, head_dim), lambda k, *_: (k, 0, 0, 0)), anywhere],
        out_specs=anywhere,
        scratch_shapes=[pltpu.VMEM((batch, copied_places, head_dim), pool.dtype), pltpu.SemaphoreType.DMA(())],
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
    """References: layer [1] and index [B] in SMEM, new [1, B, T, Hd] in VMEM, the pool before and after in HBM."""
    head, (batch, copied_places, _) = pl.program_id(0), tiles.shape

    def first(row: jax.Array) -> jax.Array:
        """Where the copied places begin; the last tile of a row has none after it."""
        return pl.multiple_of(jnp.minimum(index[row] // tile * tile, pool.shape[3] - copied_places), tile)

    def around(array: Any, row: jax.Array) -> Any:
        return array.at[head, layer[0], row, pl.ds(first(row), copied_places)]

    read = lambda row: pltpu.make_async_copy(around(pool, row), tiles.at[row], semaphore)
    write = lambda row: pltpu.make_async_copy(tiles.at[row], around(written, row), semaphore)

    def change(row: jax.Array) -> None:
        changed = tiles[row].astype(jnp.float32)  # in which all values are exact
        place = first(row) + jax.lax.broadcasted_iota(jnp.int32, changed.shape, 0)
        values = new[0, row].astype(jnp.float32)
        for t in range(values.shape[0]):
            changed = jnp.where(place == index[row] + t, values[t : t + 1], changed)
        tiles[row] = changed.astype(tiles.dtype)

    for step in (
        lambda row: read(row).start(),
        lambda row: read(row).wait(),
        change,
        lambda row: write(row).start(),
        lambda row: write(row).wait(),
    ):
        jax.lax.fori_loop(0, batch, lambda row, _, step=step: step(row), None)
