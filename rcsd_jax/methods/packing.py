"""Packs sequences of different lengths into rows of few static lengths. Pure functions of arrays; they know no model.

    deal       completions to the shards of rows, so that every shard has as many tokens
    place      a shard's sequences in its rows
    rows_of    what stands in the places of some rows

Rows are run a few at a time, in trips: all trips of a batch have the same number of rows, and each has the smallest length
of a few (`row_lengths`) that holds its rows. All shapes are static. How many trips there are follows from the sequences.
Rows of all trips but the last are as full as can be. Those of the last are about equally full, so that it can be short.

Where the devices of a shard share a row (the layout "split" of `models.sharding`), a trip has one long row of each shard
(`largest_trip`), and all trips of a batch are about equally full. Then lengths beyond a half of the longest are enough.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MULTIPLES = ((2048, 512), (512, 128), (0, 8))
"""If the longest row is longer than the first, lengths are multiples of the second: kernels pad to these, see `kernels.splash`."""
_TRIP = 1024  # tokens of a trip on one shard, about, if rows are shorter
_PART = 2304  # tokens of a shared row on one device, at most, unless a sequence is longer: as many as memory holds of an 8B on v5e


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


def row_lengths(longest: int, count: int, parts: int = 1) -> tuple[int, ...]:
    """`count` lengths of rows in about equal steps up to the longest, or fewer if some are alike.

    Args:
      longest: places of the longest row, of `largest_trip`.
      count: of lengths.
      parts: devices that share a row. The steps begin at 0 if it is one, and else at a half of the longest.

    Examples:
      >>> row_lengths(6144, 4), row_lengths(700, 4), row_lengths(90, 2)
      ((1536, 3072, 4608, 6144), (256, 384, 640, 700), (48, 90))
      >>> row_lengths(18432, 4, parts=8)
      (11776, 13824, 16384, 18432)
    """
    multiple = _multiple(longest, parts)
    least, steps = (0, count) if parts == 1 else (longest / 2, 2 * count)
    exact = (least + longest * i / steps for i in range(1, count + 1))
    return tuple(sorted({min(math.ceil(x / multiple) * multiple, longest) for x in exact}))


def largest_trip(longest: int, most: int, parts: int = 1) -> tuple[int, int]:
    """Rows of a trip on each shard, and the places of the longest row.

    Args:
      longest: sequence.
      most: rows of such sequences that a trip may have.
      parts: devices that share a row. If it is more than one, a trip has one row, as long as `most` such sequences, within limits.

    Examples:
      >>> largest_trip(6144, 2), largest_trip(100, 64), largest_trip(100, 8)
      ((1, 6144), (10, 100), (8, 100))
      >>> largest_trip(6144, 8, parts=8), largest_trip(20, 3, parts=8)
      ((1, 18432), (1, 64))
    """
    if parts == 1:
        return rows_of_trip(longest, most), longest
    places = max(min(longest * most, _PART * parts), longest)
    multiple = _multiple(places, parts)
    return 1, -(-places // multiple) * multiple


def _multiple(longest: int, parts: int) -> int:
    """Rows up to this length have a multiple of so many places, which the parts divide."""
    return math.lcm(next(multiple for limit, multiple in _MULTIPLES if longest > limit), parts)


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


def place(lengths: jax.Array, row_length: int, rows: int, *, level: bool = False) -> Places:
    """Puts the sequences of each shard into rows, the longest first: each into the first row with room for it.

    Those of the last trip are then put again, each into the row that has least so far, if that makes the trip shorter.

    Args:
      lengths: [G, S] int32, none above `row_length`; a sequence of length 0 is left out.
      row_length: places of a row.
      rows: of a trip.
      level: put those of all trips again, into as many rows as the shard with most rows has.
    """
    lengths = lengths.astype(jnp.int32)
    first_fit = jax.vmap(functools.partial(_first_fit, row_length=row_length))(lengths)
    if level:
        used = (first_fit.fill > 0).sum(axis=1).max()
        return jax.vmap(lambda places: _put_again(places, jnp.int32(0), used))(first_fit)
    used = (first_fit.fill > 0).sum(axis=1)
    return jax.vmap(lambda places, n: _put_again(places, jnp.maximum((n - 1) // rows * rows, 0), rows))(first_fit, used)


def _first_fit(lengths: jax.Array, row_length: int) -> Places:
    """The sequences [S] of a shard, each in the first row with room for it."""
    row, start, fill = _put(lengths, lambda fill, length: jnp.argmax(fill + length <= row_length))
    return _fullest_first(Places(row, start, lengths, fill))


def _put_again(places: Places, first: jax.Array, rows: jax.Array | int) -> Places:
    """Puts a shard's sequences in the rows after `first` again, into `rows` rows, if the fullest is then less full."""
    row, start, lengths, fill = places
    count = lengths.shape[0]
    at = jnp.arange(count)
    last = (row >= first) & (row < count)
    emptiest = lambda fill, _: jnp.argmin(jnp.where(at < rows, fill, jnp.iinfo(jnp.int32).max))
    again, again_start, again_fill = _put(jnp.where(last, lengths, 0), emptiest)
    shorter = again_fill.max() < fill[first]
    row = jnp.where(last & shorter, first + again, row)
    start = jnp.where(last & shorter, again_start, start)
    moved = again_fill.at[jnp.maximum(at - first, 0)].get(mode="clip")
    fill = jnp.where(shorter & (at >= first), moved, fill)
    return _fullest_first(Places(row, start, lengths, fill))


def _fullest_first(places: Places) -> Places:
    """A shard's rows in the order of their fill."""
    row, start, lengths, fill = places
    count = lengths.shape[0]
    order = jnp.argsort(-fill, stable=True)
    rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    return Places(jnp.where(row < count, rank.at[row].get(mode="clip"), count), start, lengths, fill[order])


def _put(lengths: jax.Array, choose: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[jax.Array, ...]:
    """Rows and first places [S] of sequences with a length, each in the row that `choose(fill, length)` gives; fills [S].

    The longest are put first.
    """
    count = lengths.shape[0]
    longest_first = jnp.argsort(-lengths, stable=True)

    def one(fill: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        row = jnp.where(lengths[i] > 0, choose(fill, lengths[i]).astype(jnp.int32), count)
        return fill.at[row].add(lengths[i], mode="drop"), (row, fill.at[row].get(mode="clip"))

    fill, placed = jax.lax.scan(one, jnp.zeros(count, jnp.int32), longest_first)
    row, start = (jnp.zeros(count, jnp.int32).at[longest_first].set(x) for x in placed)
    return row, start, fill


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
