"""The feed-forward block of a layer: a gated linear unit (arXiv 2002.05202)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.linear import project
from rcsd_jax.models.parameters import Declared, bias, matrix

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""Of the gate."""


def declared(config: DecoderConfig) -> Declared:
    """The block's parameters, of one layer. Biases are there if the family has them."""
    embed, mlp = ("embed", config.hidden_size), ("mlp", config.intermediate_size)
    table = {
        "gate": matrix(config, embed, mlp),
        "up": matrix(config, embed, mlp),
        "down": matrix(config, mlp, embed),
    }
    if config.mlp_bias:
        table["gate_bias"] = bias(config, *mlp)
        table["up_bias"] = bias(config, *mlp)
        table["down_bias"] = bias(config, None, config.hidden_size)
    return table


def apply(config: DecoderConfig, weights: Mapping[str, Any], adapters: Mapping[str, Any], h: jax.Array) -> jax.Array:
    """(activation(h @ gate) * (h @ up)) @ down, for h [B, T, D]; weights and adapters as in `linear.project`."""
    table = declared(config)
    gate, up = (checkpoint_name(y, "mlp_in") for y in project(config, table, weights, adapters, h, "gate", "up"))
    (down,) = project(config, table, weights, adapters, ACTIVATIONS[config.activation](gate) * up, "down")
    return down
