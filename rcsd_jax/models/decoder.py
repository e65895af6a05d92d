"""One decoder for all model families; `DecoderConfig` says in what they differ.

It is a Linen module because Linen's variable collections are exactly the split that self-distillation needs: `params`
(frozen or trained) and `lora` (adapters; without the collection they are off). `Decoder(config).apply` is a pure function of
plain nested dicts, so teacher and student are two calls of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcsd_jax.models.cache import KVCache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.kernels import FEW
from rcsd_jax.models.layer import Statistics
from rcsd_jax.models.norm import rms_norm
from rcsd_jax.models.self_attention import tokens_at
from rcsd_jax.models.sharding import LAYOUTS, automatic, constrain
from rcsd_jax.models.stack import run_layers


class Decoder(nn.Module):
    """The decoder up to its final norm; `head.logits(hidden, head_matrix(config, params))` gives logits.

    `apply({"params": params}, ...)`, or `apply({"params": params, "lora": adapters}, ...)` with adapters
    {target: {"a": [L, in, r], "b": [L, r, out]}} in use. Matrices of layers can be quantized, see `quantization.quantized`.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_index: jax.Array | None = None,
        experts: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the decoder.

        Args:
          tokens: [B, T] int32 below vocab_size.
          positions: [B, T] int32, for RoPE.
          segment_ids: [B, T] int32; a token attends to earlier tokens of its own segment; 0 is padding. With a
            `cache_index`, None: a token attends to the places of the cache up to its own.
          cache: where these tokens' keys and values are written. Place j of a row is its position j, but see
            `cache_places` for rings. There is no padding before or between tokens; what stands after a row's tokens is
            overwritten by those to come.
          cache_index: [B] int32, the place of each row's first token, with cache_index + T at most the cache's length
            (XLA would move the write back silently). None: the cache is empty and without rings, and the tokens,
            which stand first in it, attend only among themselves.
          experts: [B, T, L, k] int, experts that were chosen before for whole sequences, see `router.routes`; None: none.

        Returns:
          Hidden states [B, T, D] in `config.dtype` after the final norm, and the extended cache (None without one). At
          padding they are finite and mean nothing. What layers report besides is sown into the collection "statistics".

        Raises:
          KeyError: the collection `params` is missing or lacks an entry.
        """
        if self.is_initializing():
            params: Mapping[str, Any] = init_params(self.config, self.make_rng("params"))
            for name, value in params.items():
                self.param(name, lambda _, value=value: value)
        else:
            params = self.variables["params"]
        lora = dict(self.variables.get("lora", {}))
        run = automatic(functools.partial(_run, self.config), tokens, cache)
        hidden, cache, statistics = run(params, lora, tokens, segment_ids, positions, cache, cache_index, experts)
        for name, value in statistics.items():
            self.sow("statistics", name, value)
        return hidden, cache


def _run(
    config: DecoderConfig,
    params: Mapping[str, Any],
    lora: Mapping[str, Any],
    tokens: jax.Array,
    segment_ids: jax.Array | None,
    positions: jax.Array,
    cache: KVCache | None,
    cache_index: jax.Array | None,
    experts: jax.Array | None,
) -> tuple[jax.Array, KVCache | None, Statistics]:
    shape = tokens.shape
    if cache_index is not None and shape[1] <= FEW:
        # As rows of one token, which products read the weights in place for. Only attention sees which belong together.
        tokens = tokens.reshape(-1, 1)
    with jax.named_scope("embed"):
        x = params["embed"][tokens].astype(config.dtype)  # [B, T, D], or [B * T, 1, D]
        if config.embedding_scale != 1:
            x = x * jnp.asarray(config.embedding_scale, config.dtype)
        x = constrain(x, ("batch", "places", None), LAYOUTS[config.layout])
    at = tokens_at(config, positions, segment_ids, cache_index)
    recorded = None if experts is None else jnp.moveaxis(experts, 2, 0)
    x, cache, statistics = run_layers(config, params["layers"], lora, x, at, cache, recorded)
    with jax.named_scope("final_norm"):
        return rms_norm(config, x, params["final_norm"]).reshape(*shape, -1), cache, statistics


def apply_and_report(
    decoder: Decoder, variables: Any, tokens: jax.Array, **how: Any
) -> tuple[jax.Array, KVCache | None, Statistics]:
    """What `decoder.apply(variables, tokens, **how)` gives, and what its layers report, stacked; see `experts.apply`."""
    applied: Any = decoder.apply(variables, tokens, **how, mutable=["statistics"])
    (hidden, cache), reported = applied
    return hidden, cache, {name: value for name, (value,) in reported.get("statistics", {}).items()}


def positions_from_mask(mask: jax.Array) -> jax.Array:
    """Positions that count real tokens; padding repeats the position before it, at least 0 (as transformers' generate).

    Args:
      mask: [B, T] bool or int, true for real tokens; padding may stand anywhere.

    Returns:
      [B, T] int32.
    """
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
