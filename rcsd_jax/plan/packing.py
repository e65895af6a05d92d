"""`methods.packing` in plain numbers, for the planner to count: completions dealt to shards of rows, sequences packed into rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal(weights: np.ndarray, shards: int) -> list[np.ndarray]:
    """Deals completions to shards, equally many to each: the heaviest first, to the least loaded shard with room.

    Args:
      weights: [B] tokens of each.
      shards: must divide B.

    Returns:
      For every shard, which completions it has, [B / shards].

    Examples:
      >>> [mine.tolist() for mine in deal(np.array([1, 9, 2, 8]), 2)]
      [[1, 0], [3, 2]]
    """
    room = len(weights) // shards
    own: list[list[int]] = [[] for _ in range(shards)]
    loads = [0] * shards
    for i in np.argsort(-weights, kind="stable").tolist():
        shard = min((s for s in range(shards) if len(own[s]) < room), key=loads.__getitem__)
        own[shard].append(i)
        loads[shard] += int(weights[i])
    return [np.array(mine, int) for mine in own]


def rows_of(
    shards: Sequence[Sequence[int]], row_length: int, rows: int, *, level: bool = False
) -> list[list[list[int]]]:
    """The sequences in each row of every shard, in their order; the fullest rows first. It is `methods.packing.place`.

    The longest go first, each into the first row with room for it. The sequences of the last trip are then put again, each into the
    row that has least so far, if that makes it shorter.

    Args:
      shards: for every shard, the lengths of its sequences, none above `row_length`.
      row_length: tokens that a row can hold.
      rows: of a trip.
      level: the sequences of all trips are put again, into as many rows as the shard with most rows has.

    Examples:
      >>> rows_of([[3, 5, 7, 4]], row_length=10, rows=1)
      [[[7, 3], [5, 4]]]
      >>> rows_of([[3, 5, 7, 4]], row_length=20, rows=2)  # all would fit in one row: 7 + 3, 5 + 4 is shorter
      [[[7, 3], [5, 4]]]
      >>> rows_of([[9, 1, 2], [2, 2, 2]], row_length=10, rows=1, level=True)
      [[[9], [2, 1]], [[2, 2], [2]]]
    """
    packed = [_first_fit(mine, row_length) for mine in shards]
    most = max(map(len, packed))
    return [
        _put_again(mine, 0, most) if level else _put_again(mine, max(len(mine) - 1, 0) // rows * rows, rows)
        for mine in packed
    ]


def _first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    packed: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        first = next((row for row in packed if sum(row) + length <= row_length), None)
        if first is None:
            packed.append([length])
        else:
            first.append(length)
    return sorted(packed, key=sum, reverse=True)


def _put_again(packed: list[list[int]], first: int, rows: int) -> list[list[int]]:
    """Puts what is in the rows after `first` into `rows` rows, if the fullest is then less full."""
    again: list[list[int]] = [[] for _ in range(rows)]
    for length in sorted((length for row in packed[first:] for length in row), reverse=True):
        min(again, key=sum).append(length)
    if packed[first:] and max(map(sum, again)) < sum(packed[first]):
        packed = packed[:first] + [row for row in again if row]
    return sorted(packed, key=sum, reverse=True)


def trips_of(shards: Sequence[Sequence[Sequence[int]]], rows: int) -> list[list[Sequence[int]]]:
    """The rows of all shards in each trip, from the result of `rows_of`; shards that have fewer give empty ones."""
    count = max(-(-len(mine) // rows) for mine in shards)
    padded = [[*mine, *[[]] * (count * rows - len(mine))] for mine in shards]
    return [[row for mine in padded for row in mine[i * rows : (i + 1) * rows]] for i in range(count)]


def length_of(trip: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """The shortest length that holds all rows of a trip.

    Args:
      trip: the sequences of each row.
      lengths: that rows may have, ascending.

    Examples:
      >>> length_of([[300, 100], [900]], [256, 512, 768, 1024])
      1024
    """
    most = max(map(sum, trip))
    return next(length for length in lengths if length >= most)


def blocks_computed(row: Sequence[int], length: int, block: int, window: int | None = None) -> float:
    """Pairs of blocks that causal attention computes of a row, over those of a row that is one sequence.

    Args:
      row: the lengths of its sequences, in their order.
      length: places of the row.
      block: queries, and keys, of a block; it divides the length.
      window: tokens that one sees, itself included; None: all before it.

    Examples:
      >>> blocks_computed([5, 3], 8, 4), blocks_computed([4, 4], 8, 4), blocks_computed([3], 12, 4)
      (1.0, 0.6666666666666666, 0.5)
      >>> blocks_computed([12], 12, 4, window=5), blocks_computed([12], 12, 4, window=6)
      (0.8333333333333334, 1.0)
    """
    ends = np.cumsum([0, *row])
    begins = np.arange(0, length, block)
    # The sequence that a block's first token belongs to reaches back to the block where it begins; padding reaches nowhere.
    first = np.searchsorted(ends, begins, side="right") - 1
    back = np.where(begins < ends[-1], (begins - ends[first]) // block + ((begins - ends[first]) % block > 0), 0)
    if window is not None:  # of the farthest block, the last token is within the window of the first of these
        back = np.minimum(back, -(-(window - 1) // block))
    return float((back + 1).sum() / (len(begins) * (len(begins) + 1) / 2))
