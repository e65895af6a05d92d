"""A layer of the decoder: an attention block and a feed-forward block, normed and added to the residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

from rcsd_jax.models import experts, feed_forward, self_attention
from rcsd_jax.models.cache import KVCache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.norm import rms_norm
from rcsd_jax.models.parameters import Declared, scale
from rcsd_jax.models.self_attention import Tokens
from rcsd_jax.models.sharding import LAYOUTS, constrain

Statistics: TypeAlias = dict[str, jax.Array]
"""Name -> what a layer reports besides its output."""


def declared(config: DecoderConfig) -> Declared:
    """The parameters of one layer."""
    norm = scale(config, config.hidden_size)
    before = {"input_norm": norm, "post_norm": norm} if config.pre_norms else {}
    after = {"attention_out_norm": norm, "feed_forward_out_norm": norm} if config.post_norms else {}
    block = experts if config.num_experts else feed_forward
    table = before | block.declared(config) | self_attention.declared(config) | after
    # `init_params` makes a parameter's random key from its place here. So the order stays; new parameters go to the end.
    first = [name for name in ("input_norm", "q", "k", "v", "o", "post_norm") if name in table]
    return {name: table[name] for name in (*first, *table)}


def decoder_layer(
    config: DecoderConfig,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    x: jax.Array,
    tokens: Tokens,
    cache: KVCache | None,
    number: jax.Array | int,
    recorded: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None, Statistics]:
    """Applies layer `number` to x [B, T, D]; arguments as in `self_attention.apply`, and in `experts.apply`.

    Returns:
      [B, T, D], the extended cache, and what the layer reports besides: see `experts.apply`; nothing if its blocks are dense.
    """

    def norm(x: jax.Array, name: str) -> jax.Array:
        return rms_norm(config, x, weights[name]) if name in weights else x

    def added(x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y if config.residual_scale == 1 else x + y * config.residual_scale

    with jax.named_scope("attention"):
        h = norm(x, "input_norm")
        attended, cache = self_attention.apply(config, weights, adapters, h, tokens, cache, number)
        x = added(x, norm(attended, "attention_out_norm"))
    with jax.named_scope("feed_forward"):
        h = norm(x, "post_norm")
        statistics: Statistics = {}
        if config.num_experts:
            real = None if tokens.segment_ids is None else tokens.segment_ids != 0
            y, statistics = experts.apply(config, weights, adapters, h, real, recorded)
        else:
            y = feed_forward.apply(config, weights, adapters, h)
        x = added(x, norm(y, "feed_forward_out_norm"))
    return constrain(x, ("batch", "places", None), LAYOUTS[config.layout]), cache, statistics
