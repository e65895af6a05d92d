"""A rollout of several batches in one queue: the order of its rows, their random keys, and the rows of each batch.

With k batches of questions q and g completions of each question, the rows of a rollout lie like this:

    place (q * k + j) * g + s    holds completion s of question q of batch j

The questions of the batches take turns. So a device that holds some consecutive places of the rollout holds the same share of every
batch, and a batch is taken out of it without moving rows between devices. Completions of a question follow each other, as in a batch.

A row's random key follows from (seed, update, row): the update is the first that learns from the row, `first + j`, and the row is its
place in its batch. This is the key that the row has if every update draws its own batch. So any rollout can be computed again, and the
number of batches in it changes no key.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def questions(count: int, *, batches: int, group: int) -> list[int]:
    """The question at each place of a rollout; batch j has questions j * count to (j + 1) * count - 1.

    Args:
      count: questions of a batch.
      batches: of the rollout, k.
      group: completions of a question, g.

    Examples:
      >>> questions(2, batches=3, group=2)
      [0, 0, 2, 2, 4, 4, 1, 1, 3, 3, 5, 5]
    """
    turns = np.arange(batches * count).reshape(batches, count).T
    return [int(question) for question in np.repeat(turns.reshape(-1), group)]


def places(number: int, rows: int, *, batches: int, group: int) -> np.ndarray:
    """The places [B] in a rollout of `rows` rows that hold batch `number`, in the batch's order.

    Examples:
      >>> places(1, 12, batches=3, group=2).tolist()
      [2, 3, 8, 9]
    """
    return np.arange(rows).reshape(-1, batches, group)[:, number].reshape(-1)


def row_keys(place: jax.Array, key: jax.Array, first: jax.Array, *, batches: int, group: int) -> jax.Array:
    """The random keys [n] of the rows at these places.

    Args:
      place: [n] int32.
      key: of the run's seed.
      first: [] int32, the first update that learns from the rollout.
      batches: of the rollout.
      group: completions of a question.
    """

    def one(place: jax.Array) -> jax.Array:
        number, row = place // group % batches, place // (group * batches) * group + place % group
        return jax.random.fold_in(jax.random.fold_in(key, first + number), row)

    return jax.vmap(one)(place)


def batch_of(rollout: Any, number: jax.Array, *, batches: int, group: int) -> Any:
    """The rows of batch `number` of a rollout.

    Args:
      rollout: a pytree of arrays [k * B, ...].
      number: [] int32, less than `batches`.
      batches: of the rollout, k.
      group: completions of a question.

    Returns:
      The tree with arrays [B, ...], in the batch's order.
    """

    def rows(x: jax.Array) -> jax.Array:
        turns = x.reshape(x.shape[0] // (batches * group), batches, group, *x.shape[1:])
        chosen = jax.lax.dynamic_index_in_dim(turns, number, axis=1, keepdims=False)
        return chosen.reshape(x.shape[0] // batches, *x.shape[1:])

    return jax.tree.map(rows, rollout)
