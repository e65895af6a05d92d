"""`methods.packing` in plain numbers, for the planner to count: completions dealt to shards of rows, sequences packed into rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

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


def fills(lengths: Sequence[int], row_length: int, rows: int) -> list[list[int]]:
    """Tokens in each row of each trip when a shard's sequences are packed.

    The longest go first, each into the first row with room for it; the fullest rows are the first trip's. The sequences of the last trip
    are then put again, each into the row that has least so far, if that makes it shorter.

    Args:
      lengths: of the sequences, none above `row_length`.
      row_length: tokens that a row can hold.
      rows: of a trip.

    Examples:
      >>> fills([3, 5, 7, 4], row_length=10, rows=1)  # 7 + 3, 5 + 4
      [[10], [9]]
      >>> fills([3, 5, 7, 4], row_length=20, rows=2)  # all would fit in one row: 7 + 3, 5 + 4 is shorter
      [[10, 9]]
    """
    packed: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        first = next((row for row in packed if sum(row) + length <= row_length), None)
        if first is None:
            packed.append([length])
        else:
            first.append(length)
    packed.sort(key=sum, reverse=True)
    trips = [packed[i : i + rows] for i in range(0, len(packed), rows)]
    found = [[sum(row) for row in trip] for trip in trips]
    again = [0] * rows
    for length in sorted((length for row in trips[-1] for length in row), reverse=True):
        again[again.index(min(again))] += length
    if max(again) < max(found[-1]):
        found[-1] = again
    return found


def lengths_of_trips(shards: Sequence[Sequence[int]], rows: int, lengths: Sequence[int]) -> list[int]:
    """How long the rows of each trip are: it takes `rows` rows of every shard, at the shortest length that holds them.

    Args:
      shards: for every shard, the lengths of its sequences.
      rows: of a shard in a trip.
      lengths: that rows may have, ascending; the last holds the longest sequence.

    Examples:
      >>> lengths_of_trips([[300, 100], [900, 500]], rows=1, lengths=[256, 512, 768, 1024])  # 400 and 900, none and 500
      [1024, 512]
    """
    packed = [fills(mine, lengths[-1], rows) for mine in shards]
    fullest = [max(map(max, trips)) for trips in zip_longest(*packed, fillvalue=[0])]
    return [next(length for length in lengths if length >= most) for most in fullest]
