"""Packs sequences of different lengths into rows of few static lengths. Pure functions of arrays; they know no model.

    deal       completions to the shards of rows, so that every shard has as many tokens
    place      a shard's sequences in its rows
    rows_of    what stands in the places of some rows

Rows are run a few at a time, in trips: all trips of a batch have the same number of rows, and each has the smallest length
of a few (`row_lengths`) that holds its rows. All shapes are static. How many trips there are follows from the sequences.
Rows of all trips but the last are as full as can be. Those of the last are about equally full, so that it can be short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MULTIPLES = ((2048, 512), (512, 128), (0, 8))
"""If the longest row is longer than the first, lengths are multiples of the second: kernels pad to these, see `kernels.splash`."""
_TRIP = 1024  # tokens of a trip on one shard, about, if rows are shorter


class Places(NamedTuple):
    """Where the sequences [G, S] of G shards stand: each in one row of its shard."""

    row: jax.Array  # [G, S] int32; S, which is no row, for a sequence of length 0
    start: jax.Array  # [G, S] int32, its first place in the row
    length: jax.Array  # [G, S] int32
    fill: jax.Array  # [G, S] int32, places in use of each row; they fall from trip to trip


class Rows(NamedTuple):
    """What stands in rows of length L: G x R rows of G shards."""

    segment: jax.Array  # [G, R, L] int32, the sequences of a row counted from 1, rising along it; 0: padding
    sequence: jax.Array  # [G, R, L] int32, of the shard
    place: jax.Array  # [G, R, L] int32, within the sequence
    real: jax.Array  # [G, R, L] bool; False: padding, whose sequence and place mean nothing

    @property
    def segment_ids(self) -> jax.Array:
        """[G R, L] int32, 0 for padding."""
        return _flat(self.segment)

    @property
    def positions(self) -> jax.Array:
        """[G R, L] int32, of each token in its own sequence; 0 for padding."""
        return _flat(jnp.where(self.real, self.place, 0))


def row_lengths(longest: int, count: int) -> tuple[int, ...]:
    """`count` lengths of rows in about equal steps up to the longest sequence's, or fewer if some are alike.

    Examples:
      >>> row_lengths(6144, 4), row_lengths(700, 4), row_lengths(90, 2)
      ((1536, 3072, 4608, 6144), (256, 384, 640, 700), (48, 90))
    """
    multiple = next(multiple for limit, multiple in _MULTIPLES if longest > limit)
    return tuple(sorted({min(-(-longest * i // (count * multiple)) * multiple, longest) for i in range(1, count + 1)}))


def deal(load: jax.Array, shards: int) -> jax.Array:
    """An order of B completions in which each B / G of them, one shard's, have about the same load together.

    The largest go first, each to the shard that has least so far, as long as it has room for one more.

    Args:
      load: [B] float32 or int32, of each completion.
      shards: G, a divisor of B.

    Returns:
      [B] int32; shard g has the completions order[g B / G : (g + 1) B / G].
    """
    count = load.shape[0]
    if shards == 1:
        return jnp.arange(count, dtype=jnp.int32)

    def give(state: tuple[jax.Array, jax.Array], one: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        loads, counts = state
        shard = jnp.argmin(jnp.where(counts < count // shards, loads, jnp.inf))
        place = shard * (count // shards) + counts[shard]
        return (loads.at[shard].add(load[one].astype(jnp.float32)), counts.at[shard].add(1)), place

    largest_first = jnp.argsort(-load, stable=True)
    start = jnp.zeros(shards, jnp.float32), jnp.zeros(shards, jnp.int32)
    _, places = jax.lax.scan(give, start, largest_first)
    return jnp.zeros(count, jnp.int32).at[places].set(largest_first.astype(jnp.int32))


def rows_of_trip(row_length: int, most: int) -> int:
    """How many rows a shard has in a trip: so many that products are not thin, at most `most`.

    Examples:
      >>> rows_of_trip(6144, 2), rows_of_trip(100, 64), rows_of_trip(100, 8)
      (1, 10, 8)
    """
    return min(max(_TRIP // row_length, 1), most)


def place(lengths: jax.Array, row_length: int, rows: int) -> Places:
    """Puts the sequences of each shard into rows, the longest first: each into the first row with room for it.

    Those of the last trip are then put again, each into the row that has least so far, if that makes the trip shorter.

    Args:
      lengths: [G, S] int32, none above `row_length`; a sequence of length 0 is left out.
      row_length: places of a row.
      rows: of a trip.
    """
    return jax.vmap(lambda x: _place(x.astype(jnp.int32), row_length, rows))(lengths)


def _place(lengths: jax.Array, row_length: int, rows: int) -> Places:
    count = lengths.shape[0]
    longest_first = jnp.argsort(-lengths, stable=True)

    def put(lengths: jax.Array, choose: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[jax.Array, ...]:
        """Rows and first places [S] of sequences with a length, each in the row that `choose(fill, length)` gives; fills [S]."""

        def one(fill: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            row = jnp.where(lengths[i] > 0, choose(fill, lengths[i]).astype(jnp.int32), count)
            return fill.at[row].add(lengths[i], mode="drop"), (row, fill.at[row].get(mode="clip"))

        fill, placed = jax.lax.scan(one, jnp.zeros(count, jnp.int32), longest_first)
        row, start = (jnp.zeros(count, jnp.int32).at[longest_first].set(x) for x in placed)
        return row, start, fill

    row, start, fill = put(lengths, lambda fill, length: jnp.argmax(fill + length <= row_length))
    fullest_first = jnp.argsort(-fill, stable=True)
    fill = fill[fullest_first]
    rank = jnp.zeros(count, jnp.int32).at[fullest_first].set(jnp.arange(count, dtype=jnp.int32))
    row = jnp.where(row < count, rank.at[row].get(mode="clip"), count)

    # The last trip again.
    at = jnp.arange(count)
    first = jnp.maximum(((fill > 0).sum() - 1) // rows * rows, 0)
    last = (row >= first) & (row < count)
    emptiest = lambda fill, _: jnp.argmin(jnp.where(at < rows, fill, row_length + 1))
    again, again_start, again_fill = put(jnp.where(last, lengths, 0), emptiest)
    shorter = again_fill.max() < fill[first]
    row = jnp.where(last & shorter, first + again, row)
    start = jnp.where(last & shorter, again_start, start)
    moved = again_fill.at[jnp.maximum(at - first, 0)].get(mode="clip")
    fill = jnp.where(shorter & (at >= first), moved, fill)
    return Places(row, start, lengths, fill)


def trips(places: Places, rows: int, lengths: tuple[int, ...]) -> jax.Array:
    """How many trips of `rows` rows a shard have each of the lengths (ascending), [lengths] int32.

    The trips of the longest rows come first.
    """
    fill = jnp.pad(places.fill, ((0, 0), (0, -places.fill.shape[1] % rows)))
    fullest = fill.reshape(fill.shape[0], -1, rows).max(axis=(0, 2))
    rung = (fullest[:, None] > jnp.asarray(lengths, jnp.int32)).sum(axis=1)
    return ((rung[:, None] == jnp.arange(len(lengths))) & (fullest > 0)[:, None]).sum(axis=0).astype(jnp.int32)


def rows_of(places: Places, trip: jax.Array, rows: int, length: int) -> Rows:
    """What stands in the rows of a trip."""

    def of_shard(places: Places) -> Rows:
        row = places.row - trip * rows  # among the trip's
        first = jnp.where((row >= 0) & (row < rows) & (places.length > 0), row * length + places.start, rows * length)
        sequences = jnp.arange(places.row.shape[0], dtype=jnp.int32)
        # Every sequence marks its first place, and each place belongs to the last one marked before it.
        begun = jnp.zeros(rows * length, jnp.int32).at[first].set(sequences + 1, mode="drop").reshape(rows, length)
        at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), begun.shape)
        start = jax.lax.cummax(jnp.where(begun > 0, at, 0), axis=1)
        last = jnp.take_along_axis(begun, start, axis=1)
        sequence, within = jnp.maximum(last - 1, 0), at - start
        real = (last > 0) & (within < places.length[sequence])
        segment = jnp.where(real, jnp.cumsum(begun > 0, axis=1), 0).astype(jnp.int32)
        return Rows(segment, sequence, within, real)

    return jax.vmap(of_shard)(places)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
