"""Mistral: Llama with a sliding window in all layers, or in none."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers
from rcsd_jax.models.config import DecoderConfig


def _config(fields: Fields) -> dict[str, Any]:
    window = fields.size_or_none("sliding_window")
    read = layers(fields, window, lambda layer: True)
    if window and {kind.sliding for kind in read.get("layer_kinds", ())} != {True}:
        problem = "contradicts sliding_window, which transformers takes for all layers"
        raise fields.broken(problem, "layer_types", fields.get("layer_types"))
    return read


def _written(config: DecoderConfig) -> dict[str, Any]:
    return dict(sliding_window=config.window)


MISTRAL = Family(
    "MistralForCausalLM",
    NAMES,
    switches=dict(qk_norm=False),
    config=_config,
    written=_written,
    followed=("sliding_window",),
    defaults=dict(num_key_value_heads=8, sliding_window=4096),
)
