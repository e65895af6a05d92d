"""How the teacher's logits after several contexts become one target, as coefficients of each context's logits.

    contrast    T + g sum_k w_k (T - T_k)       T_k: after context k of `contract.Without`; without any, after what the student sees
    purified    P + g (T - T_1)                 P: after what the student sees, T_1: after everything but the question (arXiv 2607.02234)

Logits are linear in hidden states, so these are coefficients of hidden states too, and no logits of the whole vocabulary are held.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

TARGETS = ("contrast", "purified")


class Coefficients(NamedTuple):
    """What each context's hidden states are multiplied by before they are added; None: the context is not needed."""

    own: jax.Array  # [..., 1] float32, of the teacher's own context
    further: jax.Array | None  # [..., K]
    student: jax.Array | None  # [..., 1], of what the student sees


def coefficients(target: str, guidance: float, weights: jax.Array) -> Coefficients:
    """The coefficients of a target of `TARGETS`; where a completion lacks further contexts, the teacher as it is.

    Args:
      target: of `TARGETS`.
      guidance: g; with 0 the target is the teacher as it is.
      weights: w [..., K] of the further contexts, 0 for one that a completion lacks.

    Examples:
      >>> [None if x is None else x.tolist() for x in coefficients("contrast", 0.5, jnp.array([[1.0, 2.0]]))]
      [[[2.5]], [[-0.5, -1.0]], None]
      >>> [x.tolist() for x in coefficients("purified", 0.5, jnp.array([[1.0], [0.0]]))]
      [[[0.5], [1.0]], [[-0.5], [-0.0]], [[1.0], [0.0]]]
    """
    ones = jnp.ones((*weights.shape[:-1], 1), jnp.float32)
    if not guidance:
        return Coefficients(ones, None, None)
    if target == "purified":
        assert weights.shape[-1] == 1, "it contrasts one further context"
        return Coefficients(ones - weights + guidance * weights, -guidance * weights, weights)
    if not weights.shape[-1]:
        return Coefficients((1 + guidance) * ones, None, -guidance * ones)
    return Coefficients(1 + guidance * weights.sum(axis=-1, keepdims=True), -guidance * weights, None)
