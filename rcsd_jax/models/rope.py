"""Rotary position embeddings (RoPE, arXiv 2104.09864), and the ways to stretch them over longer contexts."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np


# No named tuples: those of different kinds would be equal where their numbers are.
@dataclasses.dataclass(frozen=True)
class LinearRope:
    """All frequencies are divided by `factor` (arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRope:
    """Frequencies that change with the length of a text beyond `DecoderConfig.max_position`; up to there they stay as they are.

    The decoder is not used beyond it.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's scaling: low frequencies are divided by `factor`, high ones stay, with a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): as Llama 3's, with a ramp over the frequencies' numbers; cosine and sine grow by `attention_factor`."""

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


Scaling: TypeAlias = LinearRope | DynamicRope | Llama3Rope | YarnRope


class Rope(NamedTuple):
    """How a layer's queries and keys are rotated: by frequencies theta^(-2i / head_dim), scaled."""

    theta: float
    scaling: Scaling | None = None


def cos_and_sin(positions: jax.Array, *, head_dim: int, rope: Rope | None) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, 1, T, Hd] float32 of the angles at positions [B, T]; of angles 0 without RoPE."""
    if rope is None:
        shape = (positions.shape[0], 1, positions.shape[1], head_dim)
        return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponent  # [Hd / 2]
    match rope.scaling:
        case LinearRope(factor):
            frequencies = frequencies / factor
        case Llama3Rope():
            frequencies = _llama3_frequencies(rope.scaling, frequencies)
        case YarnRope():
            frequencies = _yarn_frequencies(rope.scaling, rope.theta, frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(rope.scaling, YarnRope):
        cos, sin = cos * rope.scaling.attention_factor, sin * rope.scaling.attention_factor
    return cos, sin


def _llama3_frequencies(rope: Llama3Rope, frequencies: jax.Array) -> jax.Array:
    turns = rope.original_max_position * frequencies / (2 * jnp.pi)  # turns within the original context
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    ramp = jnp.clip(ramp, 0.0, 1.0)
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def _yarn_frequencies(rope: YarnRope, theta: float, frequencies: jax.Array) -> jax.Array:
    count = len(frequencies)

    def number_with(turns: float) -> float:
        """The number of the frequency that makes so many turns within the original context."""
        return count * math.log(rope.original_max_position / (turns * 2 * math.pi)) / math.log(theta)

    first, last = number_with(rope.beta_fast), number_with(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    ramp = (jnp.arange(count, dtype=jnp.float32) - first) / max(last - first, 1e-3)
    ramp = 1 - jnp.clip(ramp, 0.0, 1.0)
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
