"""The static description of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from rcsd_jax.models.rope import Rope, Scaling


class LayerKind(NamedTuple):
    """What layers of one decoder can differ in.

    Attributes:
      sliding: a token sees only the last `DecoderConfig.window` tokens, itself included; else all before it.
      rope: of queries and keys; None: they are not rotated.
    """

    sliding: bool
    rope: Rope | None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Static description of a decoder. It is hashable, so `Decoder(config)` can be a static argument of jit."""

    family: str  # of its checkpoints: a key of `checkpoints.families.FAMILIES`
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: Scaling | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = True  # norms of queries and keys
    max_position: int = 40960
    num_experts: int = 0  # of a layer's feed-forward block; 0: it is dense
    experts_per_token: int = 0  # that the router chooses
    expert_size: int = 0  # an expert's intermediate size
    renormalised: bool = False  # the shares of the chosen experts add up to 1
    train_router: bool = True  # whether the routers' weights get a gradient
    replays_experts: bool = False  # recorded choices of experts are used; else they are only compared with
    dtype: Any = jnp.float32  # of activations
    param_dtype: Any = jnp.float32
    remat: str = "none"  # what the backward pass recomputes: a key of `REMAT`
    kernels: str = "xla"  # of attention: one of `kernels.KERNELS`
    layout: str = "train"  # how weights and activations are split over a mesh: a key of `sharding.LAYOUTS`
    lora_scale: float = 1.0  # alpha / rank
    # Switches of families. Each default is what Llama does.
    layer_kinds: tuple[LayerKind, ...] = ()  # of every layer; empty: all are global, with the RoPE above
    window: int | None = None  # of sliding layers
    pre_norms: bool = True  # of what attention and feed-forward blocks take in
    post_norms: bool = False  # of what they give, before it is added to the residual
    norm_plus_one: bool = False  # norms multiply by 1 + weight
    norm_in_float32: bool = False  # norms multiply before they round to the activations' dtype
    qk_norm_joint: bool = False  # queries and keys are normed over all heads together
    activation: str = "silu"  # of the feed-forward block: a key of `feed_forward.ACTIVATIONS`
    o_bias: bool = False
    mlp_bias: bool = False
    score_scale: float | None = None  # of attention's scores; None: head_dim**-0.5
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what a block adds to the residual
    logits_scale: float = 1.0

    @property
    def query_scale(self) -> float:
        """The factor of attention's scores, query @ key."""
        return self.head_dim**-0.5 if self.score_scale is None else self.score_scale

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The different kinds of layers."""
        return tuple(dict.fromkeys(self.layer_kinds)) or (LayerKind(False, Rope(self.rope_theta, self.rope_scaling)),)

    @property
    def kind_numbers(self) -> tuple[int, ...]:
        """Of every layer, the place of its kind in `kinds`."""
        kinds = self.kinds
        return tuple(kinds.index(kind) for kind in self.layer_kinds) or (0,) * self.num_layers

    @property
    def slides(self) -> bool:
        """Whether any layer has a window."""
        return any(kind.sliding for kind in self.kinds)


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
