"""Packs sequences of different lengths into rows of few static lengths. Pure functions of arrays; they know no model.

    deal       completions to the shards of rows, so that every shard has as many tokens
    place      a shard's sequences in its rows: first-fit decreasing
    Row        what stands in the places of a row

Rows are used a few at a time, in trips: all trips of a batch have the same number of rows, and each has the smallest length
of a few (`row_lengths`) that holds its rows. All shapes are static. How many trips there are follows from the sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LANES = 128  # long rows are multiples of it, as kernels have them
_SHORT = 512  # shorter ones are multiples of 8


class Places(NamedTuple):
    """Where the sequences [G, S] of G shards stand: each in one row of its shard, whose rows are sorted by fill."""

    row: jax.Array  # [G, S] int32; S, which is no row, for a sequence of length 0
    start: jax.Array  # [G, S] int32, its first place in the row
    length: jax.Array  # [G, S] int32
    fill: jax.Array  # [G, S] int32, places in use of each row, descending


class Rows(NamedTuple):
    """What stands in rows of length L: G x R rows of G shards."""

    sequence: jax.Array  # [G, R, L] int32, of the shard
    place: jax.Array  # [G, R, L] int32, within the sequence
    real: jax.Array  # [G, R, L] bool; False: padding, whose sequence and place mean nothing

    @property
    def segment_ids(self) -> jax.Array:
        """[G R, L] int32, 0 for padding."""
        return _flat(jnp.where(self.real, self.sequence + 1, 0))

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
    multiple = _LANES if longest > _SHORT else 8
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


def place(lengths: jax.Array, row_length: int) -> Places:
    """Puts the sequences of each shard into rows: the longest first, each into the first row with room for it.

    Args:
      lengths: [G, S] int32, none above `row_length`; a sequence of length 0 is left out.
      row_length: places of a row.
    """
    return jax.vmap(lambda x: _place(x, row_length))(lengths)


def _place(lengths: jax.Array, row_length: int) -> Places:
    count = lengths.shape[0]

    def put(fill: jax.Array, one: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        length = lengths[one]
        row = jnp.where(length > 0, jnp.argmax(fill + length <= row_length), count)
        start = fill[jnp.minimum(row, count - 1)]
        return fill.at[row].add(length, mode="drop"), (row, start)

    longest_first = jnp.argsort(-lengths, stable=True)
    fill, placed = jax.lax.scan(put, jnp.zeros(count, jnp.int32), longest_first)
    row, start = (jnp.zeros(count, jnp.int32).at[longest_first].set(x.astype(jnp.int32)) for x in placed)
    fullest_first = jnp.argsort(-fill, stable=True)
    rank = (
        jnp.zeros(count + 1, jnp.int32).at[fullest_first].set(jnp.arange(count, dtype=jnp.int32)).at[count].set(count)
    )
    return Places(rank[row], start, lengths.astype(jnp.int32), fill[fullest_first])


def trips(places: Places, rows: int, lengths: tuple[int, ...]) -> jax.Array:
    """How many trips of `rows` rows a shard have each of the lengths (ascending), [lengths] int32.

    As rows are sorted by fill, the trips of the longest rows come first.
    """
    fullest = places.fill[:, ::rows].max(axis=0)  # rows are sorted, so a trip's first is its fullest
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
        sequence = jnp.maximum(jnp.take_along_axis(begun, start, axis=1) - 1, 0)
        within = at - start
        marked = jnp.take_along_axis(begun, start, axis=1) > 0
        return Rows(sequence, within, marked & (within < places.length[sequence]))

    return jax.vmap(of_shard)(places)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
