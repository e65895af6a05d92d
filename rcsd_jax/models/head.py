"""The output matrix, and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.losses.chunks import logits_of
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.sharding import LAYOUTS, constrain
from rcsd_jax.models.weights import Matrix, Transposed, matmul


def head_matrix(config: DecoderConfig, params: Mapping[str, Any]) -> jax.Array:
    """The output matrix [D, V] in the activations' dtype, times `config.logits_scale`; the embedding's transpose when tied."""
    head = (params["embed"].T if config.tie_embeddings else params["head"]).astype(config.dtype)
    if config.logits_scale != 1:
        # A power of two in published models, so it is exact.
        head = head * jnp.asarray(config.logits_scale, config.dtype)
    # Gathered over fsdp once. Otherwise GSPMD gathers it for every chunk of the loss and every token of a completion.
    return constrain(head, (None, "vocab"), LAYOUTS[config.layout])


def logits(hidden: jax.Array, head: Matrix) -> jax.Array:
    """hidden [B, T, D] @ head [D, V]: [B, T, V] float32. For a few tokens at a time, as the losses take them."""
    return matmul(hidden, head, jnp.float32) if isinstance(head, Transposed) else logits_of(hidden, head)
