"""The static description of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from rcsd_jax.models.rope import Llama3Rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Static description of a decoder. It is hashable, so `Decoder(config)` can be a static argument of jit."""

    family: str  # of its checkpoints: a `model_type`, such as "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: Llama3Rope | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = True
    max_position: int = 40960
    num_experts: int = 0  # of a layer's feed-forward block; 0: it is dense
    experts_per_token: int = 0  # that the router chooses
    expert_size: int = 0  # an expert's intermediate size
    renormalised: bool = False  # the shares of the chosen experts add up to 1
    train_router: bool = True  # whether the routers' weights get a gradient
    dtype: Any = jnp.float32  # of activations
    param_dtype: Any = jnp.float32
    remat: str = "none"  # what the backward pass recomputes: a key of `REMAT`
    kernels: str = "xla"  # of attention: one of `kernels.KERNELS`
    layout: str = "train"  # how weights and activations are split over a mesh: a key of `sharding.LAYOUTS`
    lora_scale: float = 1.0  # alpha / rank

    @property
    def query_scale(self) -> float:
        """The factor of attention's scores, query @ key."""
        return self.head_dim**-0.5


REMAT: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "full": (),
    "attention": ("attention",),
    "mlp": ("attention", "qkv", "attention_out"),
    "projections": ("attention", "qkv", "attention_out", "mlp_in", "adapters_in"),
}
"""What a layer keeps for the backward pass besides its input: everything (None), or the named activations.

The backward pass recomputes the rest. From "full" down to "projections", and then "none", a layer needs more memory and less
work: "mlp" recomputes the feed-forward block only.
"""
