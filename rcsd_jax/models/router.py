"""The router of a mixture of experts (arXiv 1701.06538): it chooses a few experts for each token, and their shares."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.parameters import Declared, Parameter
from rcsd_jax.models.sharding import LAYOUTS, constrain


class Routes(NamedTuple):
    """Where tokens go.

    Attributes:
      experts: [B, T, k] int32; `config.num_experts`, which is none, at padding.
      shares: [B, T, k] in the activations' dtype, the weights of their outputs.
    """

    experts: jax.Array
    shares: jax.Array


def declared(config: DecoderConfig) -> Declared:
    """The router's matrix, of one layer: [experts, D], as checkpoints store it. It has no adapter and is never in int8."""
    shape = (config.num_experts, config.hidden_size)
    return {"router": Parameter(shape, config.param_dtype, (None, "embed"), nn.initializers.normal(0.02))}


def routes(config: DecoderConfig, router: jax.Array, h: jax.Array, real: jax.Array | None) -> Routes:
    """The likeliest experts of every token, by a softmax over all of them in float32.

    Args:
      config: of the decoder.
      router: [experts, D].
      h: [B, T, D].
      real: [B, T] bool, False at padding; None: all are real.
    """
    router = constrain(router.astype(h.dtype), (None, None), LAYOUTS[config.layout])
    if not config.train_router:
        router = jax.lax.stop_gradient(router)
    logits = jnp.einsum("btd,ed->bte", h, router, preferred_element_type=jnp.float32)
    shares, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), config.experts_per_token)
    if config.renormalised:
        shares /= shares.sum(axis=-1, keepdims=True)
    if real is not None:
        experts = jnp.where(real[..., None], experts, config.num_experts)
    return Routes(experts.astype(jnp.int32), shares.astype(h.dtype))


def load(config: DecoderConfig, chosen: Routes) -> jax.Array:
    """How many tokens each expert has, [experts] float32; padding counts nowhere."""
    there = chosen.experts[..., None] == jnp.arange(config.num_experts)
    return there.sum(axis=(0, 1, 2), dtype=jnp.float32)
