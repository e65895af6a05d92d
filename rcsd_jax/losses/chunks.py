"""Hidden states [B, T, D] in chunks of T, so that one chunk of logits is held at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.losses.options import whole_number

_BANDS = 8  # in which the head's gradient is added up, at most
_BAND_ROWS = 128  # at least: thinner products are slow


def chunk_size_of(chunk_size: Any, hidden: jax.Array) -> int:
    """The positions of a chunk: as asked, checked, but no more than the hidden states [B, T, D] have."""
    return min(whole_number("chunk_size", chunk_size), max(hidden.shape[1], 1))


def chunks_of(tree: Any, size: int) -> Any:
    """[B, T, ...] -> [T / size, B, size, ...], the end padded with zeros."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def whole_of(tree: Any, length: int) -> Any:
    """The inverse of `chunks_of`."""

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return jax.tree.map(join, tree)


def scan_chunks(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, tree: Any, size: int, there: jax.Array | None = None
) -> tuple[Any, Any]:
    """`jax.lax.scan` of a step over chunks of arrays [B, T, ...]; what the step gives a chunk is joined to [B, T, ...].

    Args:
      step: (carry, a chunk of the tree [B, size, ...]) -> (carry, a tree of arrays [B, size, ...]).
      carry: the first.
      tree: arrays [B, T, ...].
      size: of a chunk; T need not be a multiple.
      there: [B, T] bool, the tokens that matter. The loop ends with the last chunk that has one; beyond it the results
        are 0. None: all chunks.
    """
    chunks = chunks_of(tree, size)
    length = jax.tree.leaves(tree)[0].shape[1]
    if there is None:
        carry, results = jax.lax.scan(step, carry, chunks)
        return carry, whole_of(results, length)
    used = chunks_of(there, size).any(axis=(1, 2))  # [chunks]
    last = jnp.where(used, jnp.arange(1, used.shape[0] + 1), 0).max()
    first = jax.tree.map(lambda x: x[0], chunks)
    shapes = jax.eval_shape(lambda carry, chunk: step(carry, chunk)[1], carry, first)
    nothing = jax.tree.map(lambda s: jnp.zeros((*used.shape, *s.shape), s.dtype), shapes)

    def body(state: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
        i, carry, results = state
        carry, result = step(carry, jax.tree.map(lambda x: x[i], chunks))
        return i + 1, carry, jax.tree.map(lambda x, new: x.at[i].set(new), results, result)

    # A loop and not a conditional for each chunk, because a loop's carry is updated in place. The constant bound tells whoever
    # reads the program how often it runs at most.
    more = lambda state: (state[0] < used.shape[0]) & (state[0] < last)
    _, carry, results = jax.lax.while_loop(more, body, (jnp.int32(0), carry, nothing))
    return carry, whole_of(results, length)


def logits_of(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """[B, C, D] @ [D, V] -> [B, C, V] float32."""
    with jax.named_scope("head"):
        return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def logits_of_several(hidden: Any, head: Any) -> jax.Array:
    """`logits_of`; of tuples of hidden states and heads, the sum of all. States that are all 0 cost no product."""
    if not isinstance(hidden, tuple):
        return logits_of(hidden, head)
    shape = (*hidden[0].shape[:-1], head[0].shape[-1])

    def of_one(hidden: jax.Array, head: jax.Array) -> jax.Array:
        nothing = lambda *_: jnp.zeros(shape, jnp.float32)
        return jax.lax.cond((hidden != 0).any(), logits_of, nothing, hidden, head)

    return sum(map(of_one, hidden[1:], head[1:]), start=of_one(hidden[0], head[0]))


def add_head_gradient(total: jax.Array, hidden: jax.Array, logits_gradient: jax.Array) -> jax.Array:
    """total [D, V] float32 + the head's gradient for a chunk, a band of rows at a time: the product is never whole."""
    size = total.shape[0]
    rows = size // math.gcd(size, min(_BANDS, max(size // _BAND_ROWS, 1)))

    def add_band(i: jax.Array, total: jax.Array) -> jax.Array:
        def band_of(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * rows, rows, axis)

        # The hidden states first: in the other order the logits' gradient is transposed, and that copied, for every band.
        band = jnp.einsum("bcd,bcv->dv", band_of(hidden, 2).astype(jnp.float32), logits_gradient)
        return jax.lax.dynamic_update_slice_in_dim(total, band_of(total, 0) + band, i * rows, 0)

    # A loop, because bands written out are scheduled together, and are then all in memory.
    return jax.lax.fori_loop(0, size // rows, add_band, total)
