"""A TPU kernel that writes one or a few new places of every row into a pool of keys or values.

XLA writes rows that end at different places by a scatter (a loop of small instructions) or by one update a row. Both wait for
memory once a row. Here the copies of all rows are under way together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def write_places(
    pool: jax.Array, new: jax.Array, layer: jax.Array, index: jax.Array, *, ring: bool = False, share: float = 1.0
) -> jax.Array:
    """The pool with `new` in the places from index[b] on of row b of a layer; the buffer is updated in place where possible.

    A place is smaller than what TPUs copy at once, so the tile around it is read, changed and written back. Several places are in
    two tiles at most.

    Args:
      pool: [K, L, B, S, Hd], of 8, 16 or 32 bits a value; Hd a multiple of 128, S of a tile's places (32 bytes of a channel).
      new: [K, B, T, Hd], in its dtype; T - 1 is at most a tile's places.
      layer: [] int32; with a share below 1, a negative one writes nothing.
      index: [B] int32, below S; index + T is at most S.
      ring: what goes beyond S goes on at place 0.
      share: of the calls that write, for the estimate of the bytes.
    """
    kv_heads, _, batch, _, head_dim = pool.shape
    tokens = new.shape[2]
    tile = 32 // pool.dtype.itemsize  # places that are together in memory
    copied_places = tile if tokens == 1 else 2 * tile
    copied = round(share * 2 * kv_heads * batch * copied_places * head_dim * pool.dtype.itemsize)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(kv_heads,),
        in_specs=[pl.BlockSpec((1, batch, tokens, head_dim), lambda k, *_: (k, 0, 0, 0)), anywhere],
        out_specs=anywhere,
        scratch_shapes=[pltpu.VMEM((batch, copied_places, head_dim), pool.dtype), pltpu.SemaphoreType.DMA(())],
    )
    write = pl.pallas_call(
        functools.partial(_write, tile=tile, ring=ring, always=share == 1),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct(pool.shape, pool.dtype),
        input_output_aliases={3: 0},
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=copied),
        name="write_places",
    )
    return write(layer[None], index, new, pool)


def _write(
    layer: Any, index: Any, new: Any, pool: Any, written: Any, tiles: Any, semaphore: Any, *, tile: int, ring: bool, always: bool
) -> None:  # fmt: skip
    """References: layer [1] and index [B] in SMEM, new [1, B, T, Hd] in VMEM, the pool before and after in HBM."""
    head, (batch, copied_places, _) = pl.program_id(0), tiles.shape

    wraps = ring and copied_places > tile

    def first(row: jax.Array) -> jax.Array:
        """Where the copied places begin; the last tile of a row has none after it, in a ring the first."""
        last = pool.shape[3] - (tile if wraps else copied_places)
        return pl.multiple_of(jnp.minimum(index[row] // tile * tile, last), tile)

    def around(array: Any, row: jax.Array) -> Iterator[tuple[Any, Any]]:
        """Places of the array, and those of `tiles` for them."""
        if not wraps:
            yield array.at[head, layer[0], row, pl.ds(first(row), copied_places)], tiles.at[row]
            return
        after = first(row) + tile
        after = pl.multiple_of(jnp.where(after == pool.shape[3], 0, after), tile)
        for half, start in enumerate((first(row), after)):
            yield array.at[head, layer[0], row, pl.ds(start, tile)], tiles.at[row, pl.ds(half * tile, tile)]

    read = lambda row: [pltpu.make_async_copy(there, here, semaphore) for there, here in around(pool, row)]
    write = lambda row: [pltpu.make_async_copy(here, there, semaphore) for there, here in around(written, row)]

    def each(copies: list[Any], what: str) -> None:
        for copy in copies:
            getattr(copy, what)()

    def change(row: jax.Array) -> None:
        changed = tiles[row].astype(jnp.float32)  # in which all values are exact
        place = first(row) + jax.lax.broadcasted_iota(jnp.int32, changed.shape, 0)
        values = new[0, row].astype(jnp.float32)
        for t in range(values.shape[0]):
            changed = jnp.where(place == index[row] + t, values[t : t + 1], changed)
        tiles[row] = changed.astype(tiles.dtype)

    for step in (
        lambda row: each(read(row), "start"),
        lambda row: each(read(row), "wait"),
        change,
        lambda row: each(write(row), "start"),
        lambda row: each(write(row), "wait"),
    ):
        rows = batch if always else jnp.where(layer[0] < 0, 0, batch)
        jax.lax.fori_loop(0, rows, lambda row, _, step=step: step(row), None)
