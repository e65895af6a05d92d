"""Gemma 3: the text models, and the text model of the checkpoints that also see images."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers, written_layers
from rcsd_jax.checkpoints.rope_fields import ropes_by_type
from rcsd_jax.models.config import DecoderConfig


def _config(fields: Fields) -> dict[str, Any]:
    period = fields.size("sliding_window_pattern", 6)
    ropes = ropes_by_type(fields, full=1e6, sliding=1e4, sliding_theta="rope_local_base_freq")
    return layers(
        fields, fields.size_or_none("sliding_window"), lambda layer: (layer + 1) % period != 0, ropes=ropes
    ) | dict(
        embedding_scale=fields.size("hidden_size") ** 0.5,
        score_scale=fields.positive("query_pre_attn_scalar") ** -0.5,
    )


def _written(config: DecoderConfig) -> dict[str, Any]:
    return written_layers(config) | dict(query_pre_attn_scalar=round(config.query_scale**-2))


GEMMA3_TEXT = Family(
    "Gemma3ForCausalLM",
    NAMES | {
        "attention_out_norm": "model.layers.{layer}.post_attention_layernorm.weight",
        "post_norm": "model.layers.{layer}.pre_feedforward_layernorm.weight",
        "feed_forward_out_norm": "model.layers.{layer}.post_feedforward_layernorm.weight",
    },
    switches=dict(post_norms=True, norm_plus_one=True, norm_in_float32=True, qk_norm=True),
    config=_config,
    written=_written,
    followed=(
        "attention_bias", "query_pre_attn_scalar", "sliding_window", "sliding_window_pattern", "rope_local_base_freq",
    ),
    # The checkpoints that also see images leave out what transformers takes anyway.
    defaults=dict(
        vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256, hidden_activation="gelu_pytorch_tanh", max_position_embeddings=131072,
        tie_word_embeddings=True, query_pre_attn_scalar=256, sliding_window=4096,
    ),
    without_effect=("cache_implementation", "_sliding_window_pattern"),
    activation="hidden_activation",
)  # fmt: skip

# In transformers their text model is a part of another: so are the names of tensors and of LoRA's modules.
GEMMA3 = GEMMA3_TEXT._replace(
    architecture="Gemma3ForConditionalGeneration",
    names={name: tensor.replace("model.", "model.language_model.", 1) for name, tensor in GEMMA3_TEXT.names.items()},
    text_config="text_config",
    saved_as="gemma3_text",
    renamed={
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": None, "model.vision_tower.": None,
        "multi_modal_projector.": None, "model.multi_modal_projector.": None,
    },
)  # fmt: skip
