"""Prefill of a few prompts at the shortest of few lengths that holds them, instead of at the longest prompt of a whole queue.

All lengths are compiled into one program, which looks at the prompts and takes one branch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.scoring import pack
from rcsd_jax.sampling.decoding import Rows, prefill

HALVINGS = 3
MULTIPLE = 16  # of all lengths but the longest


def lengths(longest: int) -> tuple[int, ...]:
    """The lengths at which prompts of at most `longest` tokens are prefilled, increasing: halves of it, and itself.

    Examples:
      >>> lengths(512), lengths(1408), lengths(10)
      ((64, 128, 256, 512), (176, 352, 704, 1408), (10,))
    """
    halves = (-(-longest // (2**i * MULTIPLE)) * MULTIPLE for i in range(1, HALVINGS + 1))
    return (*sorted({half for half in halves if half < longest}), longest)


def short_prefill(
    decoder: Decoder, variables: Any, tokens: jax.Array, mask: jax.Array, *, int8: bool = False, ring: int | None = None
) -> Rows:
    """`decoding.prefill` of prompts [B, P] into a cache of P places, at one of `lengths(P)`."""
    tokens, real = pack(tokens, mask)
    longest = tokens.shape[1]
    steps = lengths(longest)

    def at(length: int) -> Rows:
        there = jnp.arange(length) < real[:, None]
        return prefill(decoder, variables, tokens[:, :length], there, longest, int8=int8, ring=ring)

    shorter = jnp.asarray(steps[:-1], jnp.int32)
    return jax.lax.switch((real.max() > shorter).sum(), [lambda n=n: at(n) for n in steps])
