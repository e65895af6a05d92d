"""Pallas kernels for TPUs: JAX's splash and paged attention, and our own for a few tokens and for writes into the cache."""

from __future__ import annotations

import jax

KERNELS = ("xla", "pallas", "pallas_interpret")
"""How attention is computed: by XLA (scores in memory), by Pallas TPU kernels, or by these interpreted on any device."""

FEW = 8
"""How many new tokens of a row the kernels for the cache take together."""
LANES = 128
"""Of a TPU's vector registers: the kernels' blocks are multiples of them."""


def takes(x: jax.Array) -> bool:
    """Whether the kernels for the cache take x [., ., T, Hd]: few tokens, and heads that fill vector registers."""
    return x.shape[2] <= FEW and x.shape[3] % LANES == 0
