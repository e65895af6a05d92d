"""Qwen2, Qwen2.5 and Qwen3, dense."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields

_BIASES = {f"{side}_bias": f"model.layers.{{layer}}.self_attn.{side}_proj.bias" for side in "qkv"}
_HEAD_NORMS = {f"{side}_norm": f"model.layers.{{layer}}.self_attn.{side}_norm.weight" for side in "qk"}
_WINDOWS = ("sliding_window", "max_window_layers")  # of windows that `use_sliding_window` turns off


def _kv_heads(fields: Fields) -> int:
    # Without the field transformers takes 32; with null, as many as there are heads.
    absent = "num_key_value_heads" not in fields.raw
    return fields.size("num_key_value_heads", 32 if absent else fields.size("num_attention_heads"))


def _qwen2(fields: Fields) -> dict[str, Any]:
    head_dim = fields.size("head_dim", fields.size("hidden_size") // fields.size("num_attention_heads"))
    return dict(num_kv_heads=_kv_heads(fields), head_dim=head_dim, qkv_bias=True, qk_norm=False)


def _qwen3(fields: Fields) -> dict[str, Any]:
    return dict(num_kv_heads=_kv_heads(fields), head_dim=fields.size("head_dim", 128), qkv_bias=False, qk_norm=True)


_FOLLOWED = ("num_key_value_heads", "head_dim")
QWEN2 = Family("Qwen2ForCausalLM", NAMES | _BIASES, _qwen2, _FOLLOWED, _WINDOWS)
QWEN3 = Family("Qwen3ForCausalLM", NAMES | _HEAD_NORMS, _qwen3, _FOLLOWED, _WINDOWS)
