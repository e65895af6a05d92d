"""Root-mean-square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig


def rms_norm(config: DecoderConfig, x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., D] scaled to a mean square of one, times weight [D] or 1 + weight; returned in the dtype of x.

    It is computed in float32, and the product with the weight too if `config.norm_in_float32`.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.rms_norm_eps)
    dtype = jnp.float32 if config.norm_in_float32 else x.dtype
    weight = weight.astype(dtype) + 1 if config.norm_plus_one else weight.astype(dtype)
    return (weight * y.astype(dtype)).astype(x.dtype)
