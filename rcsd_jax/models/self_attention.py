"""The attention block of a layer: causal grouped-query self-attention with RoPE (arXiv 2305.13245)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models import rope
from rcsd_jax.models.attention import causal_attention, near, of_places, of_whole_rows, segment_mask
from rcsd_jax.models.cache import KVCache, write
from rcsd_jax.models.cached_attention import cached_attention
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.linear import project
from rcsd_jax.models.norm import rms_norm
from rcsd_jax.models.parameters import Declared, bias, matrix, scale


def declared(config: DecoderConfig) -> Declared:
    """The block's parameters, of one layer. Biases and norms are there if the family has them."""
    embed = ("embed", config.hidden_size)
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = {
        "q": matrix(config, embed, ("heads", heads)),
        "k": matrix(config, embed, ("kv_heads", kv_heads)),
        "v": matrix(config, embed, ("kv_heads", kv_heads)),
        "o": matrix(config, ("heads", heads), embed),
    }
    if config.qkv_bias:
        table["q_bias"] = bias(config, "heads", heads)
        table["k_bias"] = bias(config, "kv_heads", kv_heads)
        table["v_bias"] = bias(config, "kv_heads", kv_heads)
    if config.qk_norm:
        table["q_norm"] = scale(config, heads if config.qk_norm_joint else config.head_dim)
        table["k_norm"] = scale(config, kv_heads if config.qk_norm_joint else config.head_dim)
    if config.o_bias:
        table["o_bias"] = bias(config, None, config.hidden_size)
    return table


class Tokens(NamedTuple):
    """Where the tokens stand, and which of them see each other.

    Of a decoder with several kinds of layers, what hangs on the kind has a first axis for `DecoderConfig.kinds`; `of_layer`
    takes it away.

    Attributes:
      cos, sin: [B, 1, T, Hd] float32, of RoPE; by kind.
      sliding: [] bool, whether a token sees only the last `DecoderConfig.window` tokens; by kind. None if no layer has a window.
      positions: [B, T] int32.
      segment_ids: [B, T] int32; None for tokens that follow those in a cache.
      mask: [B, T, T] bool, `segment_mask` of these, for kernels that read it.
      cache_index: [B] int32, the place in the cache of each row's first token; None for whole sequences.
    """

    cos: jax.Array
    sin: jax.Array
    sliding: jax.Array | None
    positions: jax.Array
    segment_ids: jax.Array | None
    mask: jax.Array | None
    cache_index: jax.Array | None


def tokens_at(
    config: DecoderConfig, positions: jax.Array, segment_ids: jax.Array | None, cache_index: jax.Array | None
) -> Tokens:
    """What attention has to know of tokens at these positions [B, T]; see `Decoder` for the others."""
    kinds = config.kinds
    angles = [rope.cos_and_sin(positions, head_dim=config.head_dim, rope=kind.rope) for kind in kinds]
    cos, sin = angles[0] if len(kinds) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *angles)
    sliding = None
    if config.slides:
        sliding = jnp.asarray([kind.sliding for kind in kinds] if len(kinds) > 1 else kinds[0].sliding)
    mask = None
    if cache_index is None and config.kernels == "xla":
        assert segment_ids is not None, "whole sequences have them"
        mask = segment_mask(segment_ids)
    return Tokens(cos, sin, sliding, positions, segment_ids, mask, cache_index)


def of_layer(config: DecoderConfig, tokens: Tokens, layer: jax.Array | int) -> Tokens:
    """What attention has to know of the tokens in one layer."""
    if len(config.kinds) == 1:
        return tokens
    numbers = config.kind_numbers
    kind = numbers[layer] if isinstance(layer, int) else jnp.asarray(numbers)[layer]
    sliding = None if tokens.sliding is None else tokens.sliding[kind]
    return tokens._replace(cos=tokens.cos[kind], sin=tokens.sin[kind], sliding=sliding)


def apply(
    config: DecoderConfig,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    h: jax.Array,
    tokens: Tokens,
    cache: KVCache | None,
    layer: jax.Array | int,
) -> tuple[jax.Array, KVCache | None]:
    """Attention of h [B, T, D] to itself, or to the cache up to each token's own place. Few tokens may come as h [B * T, 1, D].

    Args:
      config: of the decoder.
      weights, adapters: as in `linear.project`.
      h: [B, T, D].
      tokens: where they stand.
      cache: into which keys and values are written; None for none.
      layer: the number of the layer, for its kind and its place in the cache.

    Returns:
      An array like h, and the extended cache.
    """
    table = declared(config)
    tokens = of_layer(config, tokens, layer)
    batch, _, length, _ = tokens.cos.shape
    projected = project(config, table, weights, adapters, h, "q", "k", "v")
    if h.shape[1] == 1 and (length > 1 or "q" not in adapters):
        # For one token XLA would split the product by heads, and transpose the matrix every time to do so.
        projected = jax.lax.optimization_barrier(projected)
    if config.qk_norm and config.qk_norm_joint:
        projected[0] = rms_norm(config, projected[0], weights["q_norm"])
        projected[1] = rms_norm(config, projected[1], weights["k_norm"])
    heads = (y.reshape(batch, length, -1, config.head_dim) for y in projected)
    q, k, v = (y.swapaxes(1, 2) for y in heads)  # [B, heads, T, Hd]: each head's sequence is contiguous
    if config.qk_norm and not config.qk_norm_joint:
        q = rms_norm(config, q, weights["q_norm"])
        k = rms_norm(config, k, weights["k_norm"])
    q, k = rope.rotate(q, tokens.cos, tokens.sin), rope.rotate(k, tokens.cos, tokens.sin)
    if cache is not None:
        cache = write(config, cache, k, v, layer, tokens.cache_index)
    if tokens.cache_index is None:
        assert tokens.segment_ids is not None, "whole sequences have them"
        mask = tokens.mask
        if mask is not None and tokens.sliding is not None:
            assert config.window is not None, "sliding layers have one"
            mask = mask & (~tokens.sliding | near(tokens.positions, config.window))
        q, k, v = (checkpoint_name(of_whole_rows(config, y), "qkv") for y in (q, k, v))
        attended = of_places(config, causal_attention(config, q, k, v, tokens.segment_ids, mask, tokens.sliding))
    else:
        assert cache is not None, "the index is a place in it"
        attended = cached_attention(config, q, cache, layer, tokens.cache_index, tokens.sliding)
    attended = attended.swapaxes(1, 2).reshape(*h.shape[:2], -1)
    (out,) = project(config, table, weights, adapters, attended, "o")
    return checkpoint_name(out, "attention_out"), cache
