"""Qwen2, Qwen2.5 and Qwen3, dense, and Qwen3's mixtures of experts."""

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


def _qwen3_moe(fields: Fields) -> dict[str, Any]:
    for name, value, problem in (
        ("decoder_sparse_step", 1, "layers without experts are not supported"),
        ("mlp_only_layers", [], "layers without experts are not supported"),
    ):
        if fields.get(name, value) != value:
            raise fields.broken(problem, name, fields.raw[name])
    renormalised = fields.get("norm_topk_prob", False)
    if not isinstance(renormalised, bool):
        raise fields.broken("neither true nor false", "norm_topk_prob", renormalised)
    experts, chosen = _experts(fields), fields.size("num_experts_per_tok", 8)
    if chosen > experts:
        raise fields.broken(f"more than the {experts} experts", "num_experts_per_tok", chosen)
    size = fields.size("moe_intermediate_size", 768)
    mixture = dict(num_experts=experts, experts_per_token=chosen, expert_size=size, renormalised=renormalised)
    default = fields.size("hidden_size") // fields.size("num_attention_heads")
    return dict(
        num_kv_heads=fields.size("num_key_value_heads", 4),
        head_dim=fields.size("head_dim", default),
        qkv_bias=False,
        qk_norm=True,
        **mixture,
    )


def _experts(fields: Fields) -> int:
    # transformers 5 has another name for the same number.
    names = [name for name in ("num_experts", "num_local_experts") if fields.raw.get(name) is not None]
    counts = [fields.size(name) for name in names] or [128]
    if len(set(counts)) > 1:
        raise fields.broken(f"contradicts {names[0]} = {counts[0]}", names[1], counts[1])
    return counts[0]


_FOLLOWED = ("num_key_value_heads", "head_dim")
QWEN2 = Family("Qwen2ForCausalLM", NAMES | _BIASES, _qwen2, _FOLLOWED, _WINDOWS)
QWEN3 = Family("Qwen3ForCausalLM", NAMES | _HEAD_NORMS, _qwen3, _FOLLOWED, _WINDOWS)

_MLP = "model.layers.{layer}.mlp"
_EXPERTS = {
    "router": f"{_MLP}.gate.weight",
    **{f"expert_{side}": f"{_MLP}.experts.{{expert}}.{side}_proj.weight" for side in ("gate", "up", "down")},
}
_DENSE = {name: NAMES[name] for name in NAMES if name not in ("gate", "up", "down")}
QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    _DENSE | _HEAD_NORMS | _EXPERTS,
    _qwen3_moe,
    (
        *_FOLLOWED,
        "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
        "decoder_sparse_step", "mlp_only_layers",
    ),
    # The loss that balances experts is no part of the logits.
    (*_WINDOWS, "output_router_logits", "router_aux_loss_coef"),
    {
        "expert_gate": (f"{_MLP}.experts.gate_up_proj", 0, 2),
        "expert_up": (f"{_MLP}.experts.gate_up_proj", 1, 2),
        "expert_down": (f"{_MLP}.experts.down_proj", 0, 1),
    },
)  # fmt: skip
