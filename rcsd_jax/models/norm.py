"""Root-mean-square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig


def rms_norm(config: DecoderConfig, x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., D] scaled to a mean square of one, times weight [D]; computed in float32, returned in the dtype of x."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.rms_norm_eps)
    return weight.astype(x.dtype) * y.astype(x.dtype)
