"""Qwen2, Qwen2.5 and Qwen3, dense."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers, window_in_use, written_layers
from rcsd_jax.models.config import DecoderConfig


def _layers(fields: Fields) -> dict[str, Any]:
    first = fields.get("max_window_layers", 28)
    return layers(fields, window_in_use(fields), lambda layer: layer >= first)


def _written(config: DecoderConfig) -> dict[str, Any]:
    return written_layers(config) | dict(use_sliding_window=True) if config.slides else {}


_WINDOWS = ("sliding_window", "max_window_layers", "use_sliding_window")

QWEN2 = Family(
    "Qwen2ForCausalLM",
    NAMES,
    switches=dict(qkv_bias=True, qk_norm=False),
    config=_layers,
    written=_written,
    followed=_WINDOWS,
    defaults=dict(num_key_value_heads=32, sliding_window=4096),
)
QWEN3 = Family(
    "Qwen3ForCausalLM",
    NAMES,
    switches=dict(qk_norm=True),
    config=_layers,
    written=_written,
    followed=("attention_bias", *_WINDOWS),
    defaults=dict(num_key_value_heads=32, head_dim=128, sliding_window=4096),
)
