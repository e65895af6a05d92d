"""Rows of tokens, sorted by their experts, through these experts."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.feed_forward import ACTIVATIONS
from rcsd_jax.models.kernels.grouped_matmul import grouped_matmul

Parts: TypeAlias = dict[str, dict[str, jax.Array]]
"""Name of a matrix -> its arrays: "w" [E, in, out], and where they exist "scale" [E, 1, out] of int8, and an
adapter's "a", "b".

With a "layer", [] int32, "w" and "scale" are those of all layers, [L, E, ...]."""

NAMES = ("expert_gate", "expert_up", "expert_down")


def through_experts(
    config: DecoderConfig, parts: Parts, x: jax.Array, shares: jax.Array, sizes: jax.Array, usual: int | None = None
) -> jax.Array:
    """share * (activation(x @ gate) * (x @ up)) @ down of every row with its group's matrices.

    Args:
      config: of the decoder.
      parts: of the experts that the rows go to.
      x: [M, D], the rows of the first expert first, and so on.
      shares: [M].
      sizes: [E] int32, rows of each expert; at most M together.
      usual: as of `grouped_matmul`.

    Returns:
      [M, D] in the dtype of x, 0 after the last expert's rows.
    """
    return down(config, parts, *gate_and_up(config, parts, x, sizes, usual), shares, sizes, usual)


def gate_and_up(
    config: DecoderConfig, parts: Parts, x: jax.Array, sizes: jax.Array, usual: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """x @ gate and x @ up, [M, expert_size]; arguments as in `through_experts`."""
    gate, up = (checkpoint_name(_product(config, parts[name], x, sizes, usual), "mlp_in") for name in NAMES[:2])
    return gate, up


def down(
    config: DecoderConfig,
    parts: Parts,
    gate: jax.Array,
    up: jax.Array,
    shares: jax.Array,
    sizes: jax.Array,
    usual: int | None = None,
) -> jax.Array:
    """The rest of `through_experts`.

    The share comes before the product, which is the same. Then its gradient needs no product computed anew.
    """
    h = ACTIVATIONS[config.activation](gate) * up * shares[:, None]
    return _product(config, parts[NAMES[2]], h, sizes, usual)


def _product(
    config: DecoderConfig, part: dict[str, jax.Array], x: jax.Array, sizes: jax.Array, usual: int | None
) -> jax.Array:
    layer = part.get("layer")
    y = grouped_matmul(x, part["w"], sizes, config.kernels, layer, usual)
    if "scale" in part:
        scale = part["scale"] if layer is None else part["scale"][layer]
        expert = (jnp.arange(len(x))[:, None] >= jnp.cumsum(sizes)).sum(axis=1)
        y = (y * scale[jnp.minimum(expert, len(sizes) - 1), 0]).astype(x.dtype)
    if "a" in part:
        low = grouped_matmul(x, part["a"], sizes, config.kernels, usual=usual)
        y += grouped_matmul(config.lora_scale * low, part["b"], sizes, config.kernels, usual=usual)
    return y
