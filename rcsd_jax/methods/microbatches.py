"""Gradients of a batch in parts, with one part in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed(loss_and_gradient: Callable[[Any], Any], rows: Any, count: int) -> Any:
    """Adds up loss, sums and gradients over `count` parts of the rows; `count` must divide them.

    Args:
      loss_and_gradient: rows -> ((loss, sums), gradient). `sums["row_loss"]` [B] is joined, everything else is added.
      rows: a pytree of [B, ...] arrays.
      count: 1: all rows at once.
    """
    if count == 1:
        return loss_and_gradient(rows)
    # [B, ...] -> [A, B/A, ...] with rows dealt out in turn: every device keeps its own rows in every microbatch.
    parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), rows)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(loss_and_gradient, first))
    (zero_loss, zero_sums), zero_gradient = zeros
    zero_sums = {k: v for k, v in zero_sums.items() if k != "row_loss"}

    def body(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        (loss, sums), gradient = loss_and_gradient(part)
        row_loss = sums.pop("row_loss")
        return jax.tree.map(jnp.add, carry, ((loss, sums), gradient)), row_loss

    ((loss, sums), gradient), row_loss = jax.lax.scan(body, ((zero_loss, zero_sums), zero_gradient), parts)
    sums["row_loss"] = row_loss.swapaxes(0, 1).reshape(-1)
    return (loss, sums), gradient
