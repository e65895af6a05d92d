"""Granite 3, dense: Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.models.config import DecoderConfig


def _config(fields: Fields) -> dict[str, Any]:
    return dict(
        embedding_scale=fields.positive("embedding_multiplier", 1.0),
        residual_scale=fields.positive("residual_multiplier", 1.0),
        score_scale=fields.positive("attention_multiplier", 1.0),
        logits_scale=1 / fields.positive("logits_scaling", 1.0),
    )


def _written(config: DecoderConfig) -> dict[str, Any]:
    return dict(
        embedding_multiplier=config.embedding_scale,
        residual_multiplier=config.residual_scale,
        attention_multiplier=config.query_scale,
        logits_scaling=1 / config.logits_scale,
    )


GRANITE = Family(
    "GraniteForCausalLM",
    NAMES,
    switches=dict(qk_norm=False),
    config=_config,
    written=_written,
    followed=(
        "attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
    ),
)  # fmt: skip
