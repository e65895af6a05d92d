"""SmolLM3: Llama with RoPE in three of four layers."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers, window_in_use, written_layers
from rcsd_jax.models.config import DecoderConfig


def _config(fields: Fields) -> dict[str, Any]:
    interval, count = fields.size("no_rope_layer_interval", 4), fields.size("num_hidden_layers")
    rotated = fields.get("no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(count)])
    if not isinstance(rotated, list) or len(rotated) < count or any(flag not in (0, 1) for flag in rotated):
        raise fields.broken("not a 0 or 1 for every layer", "no_rope_layers", rotated)
    return layers(
        fields, window_in_use(fields), lambda layer: not rotated[layer], rotates=lambda layer: bool(rotated[layer])
    )


def _written(config: DecoderConfig) -> dict[str, Any]:
    rotated = [int(config.kinds[number].rope is not None) for number in config.kind_numbers]
    # Without the field, transformers takes a token that small vocabularies do not have.
    return written_layers(config) | dict(no_rope_layers=rotated, use_sliding_window=config.slides, pad_token_id=None)


SMOLLM3 = Family(
    "SmolLM3ForCausalLM",
    NAMES,
    switches=dict(qk_norm=False),
    config=_config,
    written=_written,
    followed=(
        "attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval", "use_sliding_window", "sliding_window",
    ),
    defaults=dict(num_key_value_heads=4, rope_theta=2e6, tie_word_embeddings=True),
    without_effect=("max_window_layers", "pretraining_tp"),
)  # fmt: skip
