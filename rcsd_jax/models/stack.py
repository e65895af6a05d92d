"""All layers of the decoder, one after the other: scanned, with rematerialisation for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models import experts, few_layers
from rcsd_jax.models.cache import KVCache
from rcsd_jax.models.config import REMAT, DecoderConfig
from rcsd_jax.models.layer import Statistics, decoder_layer
from rcsd_jax.models.self_attention import Tokens
from rcsd_jax.models.weights import OfStack


def run_layers(
    config: DecoderConfig,
    layers: Mapping[str, Any],
    adapters: Mapping[str, Any],
    x: jax.Array,
    tokens: Tokens,
    cache: KVCache | None,
    recorded: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None, Statistics]:
    """Applies all layers to x [B, T, D].

    Args:
      config: of the decoder.
      layers: name -> weights, stacked along the layers.
      adapters: name -> {"a", "b"}, stacked likewise.
      x: [B, T, D].
      tokens: where the tokens stand.
      cache: into which keys and values are written; None for none.
      recorded: [L, B, T, k], of each layer as of `router.routes`.

    Returns:
      [B, T, D], the extended cache, and what the layers report, stacked.
    """

    whole: Mapping[str, Any] = {}

    def layer(carry: Any, scanned: Any) -> tuple[Any, Statistics]:
        x, cache = carry
        number, weights, adapters, recorded = scanned
        weights = weights | {name: OfStack(stack, number) for name, stack in whole.items()}
        x, cache, statistics = decoder_layer(config, weights, adapters, x, tokens, cache, number, recorded)
        return (x, cache), statistics

    unrolled = few_layers.unrolled(config)
    if cache is not None and unrolled:
        (x, cache), statistics = few_layers.loop(layer, (x, cache), (layers, adapters, recorded), config.num_layers)
        return x, cache, statistics
    whole = experts.whole(config, layers)
    layers = {name: x for name, x in layers.items() if name not in whole}
    kept = REMAT[config.remat]
    if kept is not None:
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        # A loop keeps XLA from merging the recomputation with the forward pass; without a loop, a flag must prevent it.
        layer = jax.checkpoint(layer, prevent_cse=unrolled, policy=policy)
    scanned = (jnp.arange(config.num_layers), layers, adapters, recorded)
    (x, cache), statistics = jax.lax.scan(layer, (x, cache), scanned, unroll=config.num_layers if unrolled else 1)
    return x, cache, statistics
