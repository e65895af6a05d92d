"""Llama 3."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.fields import Fields

NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "input_norm": "model.layers.{layer}.input_layernorm.weight",
    "q": "model.layers.{layer}.self_attn.q_proj.weight",
    "k": "model.layers.{layer}.self_attn.k_proj.weight",
    "v": "model.layers.{layer}.self_attn.v_proj.weight",
    "o": "model.layers.{layer}.self_attn.o_proj.weight",
    "post_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "up": "model.layers.{layer}.mlp.up_proj.weight",
    "down": "model.layers.{layer}.mlp.down_proj.weight",
}
"""Of Llama, and of the families that follow it."""


def _config(fields: Fields) -> dict[str, Any]:
    heads = fields.size("num_attention_heads")
    return dict(
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", fields.size("hidden_size") // heads),
        qkv_bias=False,
        qk_norm=False,
    )


LLAMA = Family(
    "LlamaForCausalLM", NAMES, _config, ("num_key_value_heads", "head_dim"), without_effect=("pretraining_tp",)
)
