"""OLMo 2 and OLMo 3: norms after the blocks only, and queries and keys normed over all heads."""

from __future__ import annotations

from typing import Any

from rcsd_jax.checkpoints.families.family import Family
from rcsd_jax.checkpoints.families.llama import NAMES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers, written_layers
from rcsd_jax.checkpoints.rope_fields import ropes_by_type

_NAMES = NAMES | {
    "attention_out_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "feed_forward_out_norm": "model.layers.{layer}.post_feedforward_layernorm.weight",
}
_SWITCHES = dict(pre_norms=False, post_norms=True, norm_in_float32=True, qk_norm=True, qk_norm_joint=True)


def _olmo3(fields: Fields) -> dict[str, Any]:
    ropes = ropes_by_type(fields, full=5e5, sliding=5e5, sliding_theta=None)
    return layers(fields, fields.size_or_none("sliding_window"), lambda layer: (layer + 1) % 4 != 0, ropes=ropes)


OLMO2 = Family("Olmo2ForCausalLM", _NAMES, _SWITCHES, followed=("attention_bias",), defaults=dict(rms_norm_eps=1e-5))
OLMO3 = Family(
    "Olmo3ForCausalLM",
    _NAMES,
    _SWITCHES,
    config=_olmo3,
    written=written_layers,
    followed=("attention_bias", "sliding_window"),
    defaults=dict(rms_norm_eps=1e-5, sliding_window=4096),
)
