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
    """The router's matrix, of one layer: [experts, D], as checkpoints store it. It has no adapter and is never quantized."""
    shape = (config.num_experts, config.hidden_size)
    return {"router": Parameter(shape, config.param_dtype, (None, "embed"), nn.initializers.normal(0.02))}


def routes(
    config: DecoderConfig, router: jax.Array, h: jax.Array, real: jax.Array | None, recorded: jax.Array | None = None
) -> tuple[Routes, dict[str, jax.Array]]:
    """The likeliest experts of every token, by a softmax over all of them in float32; or those that were recorded.

    Args:
      config: of the decoder.
      router: [experts, D].
      h: [B, T, D].
      real: [B, T] bool, False at padding; None: all are real.
      recorded: [B, T, k] int, experts that were chosen before, `config.num_experts` or more where none are recorded. With
        `config.replays_experts` they are chosen again, with the shares that the router gives them now.

    Returns:
      The routes, and what the router reports: `expert_load` [experts] float32, how many tokens each expert has, and
      with `recorded` also `rerouted` [2] float32: tokens for which the router would choose other experts than those
      recorded, and tokens with recorded ones. Padding counts nowhere.
    """
    router = constrain(router.astype(h.dtype), (None, None), LAYOUTS[config.layout])
    if not config.train_router:
        router = jax.lax.stop_gradient(router)
    logits = jnp.einsum("btd,ed->bte", h, router, preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(logits, axis=-1)
    shares, experts = jax.lax.top_k(probabilities, config.experts_per_token)
    reported: dict[str, jax.Array] = {}
    if recorded is not None:
        there = recorded[..., 0] < config.num_experts
        there = there if real is None else there & real
        other = (jnp.sort(experts, axis=-1) != jnp.sort(recorded.astype(jnp.int32), axis=-1)).any(axis=-1)
        reported["rerouted"] = jnp.stack([(there & other).sum(), there.sum()]).astype(jnp.float32)
        if config.replays_experts:
            experts = jnp.where(there[..., None], recorded.astype(jnp.int32), experts)
            shares = jnp.take_along_axis(probabilities, experts, axis=-1)
    if config.renormalised:
        shares /= shares.sum(axis=-1, keepdims=True)
    if real is not None:
        experts = jnp.where(real[..., None], experts, config.num_experts)
    of_expert = experts[..., None] == jnp.arange(config.num_experts)
    reported["expert_load"] = of_expert.sum(axis=(0, 1, 2), dtype=jnp.float32)
    return Routes(experts.astype(jnp.int32), shares.astype(h.dtype)), reported
