"""Rotary position embeddings (RoPE, arXiv 2104.09864), with Llama 3's scaling."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Llama3Rope(NamedTuple):
    """Llama 3's RoPE scaling: low frequencies are divided by `factor`, high ones stay, with a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


def cos_and_sin(
    positions: jax.Array, *, head_dim: int, theta: float, scaling: Llama3Rope | None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, 1, T, Hd] float32 of the angles at positions [B, T]."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / theta**exponent  # [Hd / 2]
    if scaling is not None:
        frequencies = _llama3_frequencies(scaling, frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def _llama3_frequencies(rope: Llama3Rope, frequencies: jax.Array) -> jax.Array:
    turns = rope.original_max_position * frequencies / (2 * jnp.pi)  # turns within the original context
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    ramp = jnp.clip(ramp, 0.0, 1.0)
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, heads, T, Hd] by the angles of `cos_and_sin`."""
    half = x.shape[-1] // 2
    # A product with a matrix of 0 and +-1, which is exact, swaps the halves and negates the first. Half a head is narrower
    # than a TPU register, and slicing it costs more than the rest of the rotation.
    turn = np.zeros((2 * half, 2 * half), np.float32)
    turn[np.arange(half) + half, np.arange(half)] = -1
    turn[np.arange(half), np.arange(half) + half] = 1
    turned = jnp.matmul(x, jnp.asarray(turn, x.dtype), precision="highest", preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
