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


def fills(lengths: Sequence[int], row: int) -> list[int]:
    """Tokens in each row when sequences are packed: the longest first, each into the first row that has the space.

    Args:
      lengths: of the sequences.
      row: tokens that a row can hold, at least the longest.

    Returns:
      The rows' tokens, the fullest first.

    Examples:
      >>> fills([3, 5, 7, 4], row=10)  # 7 + 3, 5 + 4
      [10, 9]
    """
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        first = next((i for i, fill in enumerate(rows) if fill + length <= row), None)
        if first is None:
            rows.append(length)
        else:
            rows[first] += length
    return sorted(rows, reverse=True)


def lengths_of_trips(shards: Sequence[Sequence[int]], rows: int, steps: Sequence[int]) -> list[int]:
    """How long the rows of each trip are: a trip takes the next `rows` rows of every shard, at the shortest length that holds them.

    Args:
      shards: for every shard, the lengths of its sequences.
      rows: of a shard in a trip.
      steps: the lengths that there are, ascending.

    Examples:
      >>> lengths_of_trips([[300, 100], [900, 500]], rows=1, steps=[256, 512, 768, 1024])  # 400 and 900, none and 500
      [1024, 512]
    """
    packed = [fills(lengths, steps[-1]) for lengths in shards]
    fullest = [
        max(fill[trip * rows] for fill in packed if trip * rows < len(fill)) for trip in range(_trips(packed, rows))
    ]
    return [next(step for step in steps if step >= most) for most in fullest]


def _trips(packed: Sequence[Sequence[int]], rows: int) -> int:
    return max(-(-len(fill) // rows) for fill in packed)
