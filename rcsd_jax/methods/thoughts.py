"""Which tokens of a completion are its thought and which its answer, by the token ids that end the thinking block."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.methods.contract import Thoughts

PARTS = ("all", "answer", "thought")
"""The part of a completion that the loss counts."""


def thoughts_of(tokens: jax.Array, mask: jax.Array, end: tuple[int, ...]) -> Thoughts:
    """The thoughts of completions: everything up to and including the first end of a thinking block.

    Args:
      tokens: [B, N] int32.
      mask: [B, N] bool, the places that hold tokens.
      end: the token ids, at least one, that end a thinking block when they follow each other.

    Examples:
      >>> tokens = jnp.array([[5, 9, 7, 9], [5, 6, 7, 0]])
      >>> thoughts = thoughts_of(tokens, tokens > 0, end=(9,))
      >>> thoughts.mask.astype(int).tolist(), thoughts.ended.tolist()
      ([[1, 1, 0, 0], [1, 1, 1, 0]], [True, False])
    """
    ends = jnp.asarray(mask)  # where the last id of the sequence stands
    for back, token in enumerate(reversed(end)):
        before = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=-1)[:, : tokens.shape[1]]
        ends &= before == token
    answer = jnp.cumsum(ends, axis=1) > ends  # an end stands before it
    return Thoughts(mask & ~answer, ends.any(axis=1))


def learnt(mask: jax.Array, thoughts: Thoughts | None, part: str) -> jax.Array:
    """The tokens of one of `PARTS`, [B, N] bool. A completion whose thinking block does not end has no answer.

    Args:
      mask: [B, N] bool, the places that hold tokens.
      thoughts: of `thoughts_of`; None if the completions have no thinking block, and then the part is "all".
      part: of `PARTS`.
    """
    if part == "all":
        return mask
    assert thoughts is not None, "the parts are told apart by the block's end"
    return thoughts.mask if part == "thought" else mask & ~thoughts.mask
