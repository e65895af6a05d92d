"""Llama 3, and what has its architecture: SmolLM2."""

from __future__ import annotations

from rcsd_jax.checkpoints.families.family import Family

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
    # Where a family has them.
    **{f"{side}_bias": f"model.layers.{{layer}}.self_attn.{side}_proj.bias" for side in "qkvo"},
    **{f"{side}_bias": f"model.layers.{{layer}}.mlp.{side}_proj.bias" for side in ("gate", "up", "down")},
    **{f"{side}_norm": f"model.layers.{{layer}}.self_attn.{side}_norm.weight" for side in "qk"},
}
"""Of Llama, and of the families that follow it."""

LLAMA = Family(
    "LlamaForCausalLM",
    NAMES,
    switches=dict(qk_norm=False),
    followed=("attention_bias", "mlp_bias"),
    without_effect=("pretraining_tp",),
)
