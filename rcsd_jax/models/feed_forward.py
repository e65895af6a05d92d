"""The feed-forward block of a layer: SwiGLU (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.linear import project
from rcsd_jax.models.parameters import Declared, matrix


def declared(config: DecoderConfig) -> Declared:
    """The block's parameters, of one layer."""
    embed, mlp = ("embed", config.hidden_size), ("mlp", config.intermediate_size)
    return {
        "gate": matrix(config, embed, mlp),
        "up": matrix(config, embed, mlp),
        "down": matrix(config, mlp, embed),
    }


def apply(config: DecoderConfig, weights: Mapping[str, Any], adapters: Mapping[str, Any], h: jax.Array) -> jax.Array:
    """(silu(h @ gate) * (h @ up)) @ down, for h [B, T, D]; weights and adapters as in `linear.project`."""
    table = declared(config)
    gate, up = (checkpoint_name(y, "mlp_in") for y in project(config, table, weights, adapters, h, "gate", "up"))
    (down,) = project(config, table, weights, adapters, jax.nn.silu(gate) * up, "down")
    return down
