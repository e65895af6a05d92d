"""A layer of the decoder: an attention block and a feed-forward block, each behind a norm and added to the residual."""

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
    norms = {name: scale(config, config.hidden_size) for name in ("input_norm", "post_norm")}
    block = experts if config.num_experts else feed_forward
    table = norms | block.declared(config) | self_attention.declared(config)
    # `init_params` makes a parameter's random key from its place here. So the order stays; new parameters go to the end.
    first = ("input_norm", "q", "k", "v", "o", "post_norm")
    return {name: table[name] for name in (*first, *table)}


def decoder_layer(
    config: DecoderConfig,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    x: jax.Array,
    tokens: Tokens,
    cache: KVCache | None,
    number: jax.Array | int,
) -> tuple[jax.Array, KVCache | None, Statistics]:
    """Applies layer `number` to x [B, T, D]; arguments as in `self_attention.apply`.

    Returns:
      [B, T, D], the extended cache, and what the layer reports besides: see `experts.apply`; nothing if its blocks are dense.
    """
    with jax.named_scope("attention"):
        h = rms_norm(config, x, weights["input_norm"])
        attended, cache = self_attention.apply(config, weights, adapters, h, tokens, cache, number)
        x = x + attended
    with jax.named_scope("feed_forward"):
        h = rms_norm(config, x, weights["post_norm"])
        statistics: Statistics = {}
        if config.num_experts:
            real = None if tokens.segment_ids is None else tokens.segment_ids != 0
            y, statistics = experts.apply(config, weights, adapters, h, real)
        else:
            y = feed_forward.apply(config, weights, adapters, h)
        x = x + y
    return constrain(x, ("batch", "places", None), LAYOUTS[config.layout]), cache, statistics
