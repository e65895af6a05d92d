"""Qwen3's mixtures of experts."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.models.config import DecoderConfig

_MLP = "model.layers.{layer}.mlp"
_DENSE = {name: template for name, template in NAMES.items() if not template.startswith(_MLP)}
_EXPERTS = {f"expert_{side}": f"{_MLP}.experts.{{expert}}.{side}_proj.weight" for side in ("gate", "up", "down")}


def _config(fields: Fields) -> dict[str, Any]:
    for name, value in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if fields.get(name, value) != value:
            raise fields.broken("layers without experts are not supported", name, fields.raw[name])
    if fields.raw["num_key_value_heads"] is None:  # which other families take for as many as there are heads
        raise fields.broken("is null", "num_key_value_heads", None)
    experts, chosen = _experts(fields), fields.size("num_experts_per_tok", 8)
    if chosen > experts:
        raise fields.broken(f"more than the {experts} experts", "num_experts_per_tok", chosen)
    return dict(
        num_experts=experts,
        experts_per_token=chosen,
        expert_size=fields.size("moe_intermediate_size", 768),
        renormalised=fields.flag("norm_topk_prob", False),
    )


def _experts(fields: Fields) -> int:
    # transformers 5 has another name for the same number.
    names = [name for name in ("num_experts", "num_local_experts") if fields.raw.get(name) is not None]
    counts = [fields.size(name) for name in names] or [128]
    if len(set(counts)) > 1:
        raise fields.broken(f"contradicts {names[0]} = {counts[0]}", names[1], counts[1])
    return counts[0]


def _written(config: DecoderConfig) -> dict[str, Any]:
    return dict(
        num_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
        moe_intermediate_size=config.expert_size,
        norm_topk_prob=config.renormalised,
    )


QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    _DENSE | _EXPERTS | {"router": f"{_MLP}.gate.weight"},
    switches=dict(qk_norm=True),
    config=_config,
    written=_written,
    followed=(
        "attention_bias", "decoder_sparse_step", "mlp_only_layers", "num_experts", "num_local_experts",
        "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    ),
    defaults=dict(num_key_value_heads=4),
    # The loss that balances experts is no part of the logits, and without `use_sliding_window` there are no windows.
    without_effect=("output_router_logits", "router_aux_loss_coef", "sliding_window", "max_window_layers"),
    fused={
        "expert_gate": (f"{_MLP}.experts.gate_up_proj", 0, 2),
        "expert_up": (f"{_MLP}.experts.gate_up_proj", 1, 2),
        "expert_down": (f"{_MLP}.experts.down_proj", 0, 1),
    },
)  # fmt: skip
