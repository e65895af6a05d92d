"""Causal attention within segments over whole sequences: plain XLA, or on TPUs the splash kernel."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels import splash
from rcsd_jax.models.sharding import LAYOUTS, constrain, has_mesh, spec

_QUERIES = 64  # of a block, at least, where scores are in memory
_QUERY_BLOCKS = 8  # at most: each is compiled separately


def causal_attention(
    config: DecoderConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    mask: jax.Array | None,
    sliding: jax.Array | None,
) -> jax.Array:
    """Attention of whole sequences by `config.kernels`.

    Args:
      config: of the decoder.
      q: [B, H, T, Hd]; k, v: [B, K, T, Hd], H a multiple of K.
      segment_ids: [B, T] int32; 0 is padding.
      mask: `segment_mask(segment_ids)`, within the window if the layer has one; only XLA reads it.
      sliding: [] bool, whether the layer has a window; None if no layer has one. Only Pallas kernels read it.

    Returns:
      [B, H, T, Hd].
    """
    if config.kernels == "xla":
        assert mask is not None, "only other kernels go without it"
        return checkpoint_name(masked_attention(q, k, v, mask, scale=config.query_scale), "attention")
    interpret = config.kernels == "pallas_interpret"
    return splash_attention(
        q,
        k,
        v,
        segment_ids,
        sliding,
        scale=config.query_scale,
        window=config.window,
        layout=config.layout,
        interpret=interpret,
    )


def of_whole_rows(config: DecoderConfig, x: jax.Array) -> jax.Array:
    """Heads [B, H, T, Hd] as attention needs them: where devices have parts of rows, they exchange these for some heads of whole rows."""
    rules = LAYOUTS[config.layout]
    # Both sides of the exchange are said: else XLA gathers whole rows before the projections, which is several times as much.
    return (
        constrain(of_places(config, x), ("batch", "heads", None, None), _in_attention(rules)) if rules["places"] else x
    )


def of_places(config: DecoderConfig, x: jax.Array) -> jax.Array:
    """Heads [B, H, T, Hd] as projections have them: of a device's own places; the inverse of `of_whole_rows`."""
    rules = LAYOUTS[config.layout]
    return constrain(x, ("batch", "heads", "places", None), rules) if rules["places"] else x


def _in_attention(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of a layout while rows are whole: what splits their places splits heads."""
    axes = {name: (*(rules["places"] or ()), *_axes(rules[name])) for name in ("heads", "kv_heads")}
    return {**rules, **axes, "places": None}


def _axes(rule: Any) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


def segment_mask(segment_ids: jax.Array) -> jax.Array:
    """[B, T] int32 -> [B, T, T] bool: a token attends to itself and to earlier tokens of its segment; 0 is padding."""
    same = segment_ids[:, None, :] == segment_ids[:, :, None]
    causal = jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))
    return same & causal & (segment_ids != 0)[:, :, None]


def near(positions: jax.Array, window: int) -> jax.Array:
    """[B, T] int32 -> [B, T, T] bool: the key is one of the last `window` tokens up to the query."""
    return positions[:, :, None] - positions[:, None, :] < window


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float) -> jax.Array:
    """Causal grouped-query attention with its scores in memory: those of one block of queries with the keys up to its end.

    Args:
      q: [B, H, T, Hd]; k, v: [B, K, T, Hd], H a multiple of K.
      mask: [B, T, T] bool, true where a query may look; never after itself.
      scale: of the scores.

    Returns:
      [B, H, T, Hd] in v's dtype; where a query may look nowhere, an average of v.
    """
    length = q.shape[2]
    block = max(_QUERIES, -(-length // _QUERY_BLOCKS))
    blocks = [  # the last may be shorter
        _masked_attention(
            q[:, :, i : i + block],
            k[:, :, : i + block],
            v[:, :, : i + block],
            mask[:, i : i + block, : i + block],
            scale,
        )
        for i in range(0, length, block)
    ]
    return jnp.concatenate(blocks, axis=2)


def _masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """q [B, H, C, Hd], k and v [B, K, S, Hd], mask [B, C, S]."""
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(batch, kv_heads, heads // kv_heads, length, head_dim)
    scores = jnp.einsum("bkgtd,bksd->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    # A finite floor: a padding query, which may attend to nothing, gets an average instead of NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksd->bkgtd", probs, v).reshape(batch, heads, length, head_dim)


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    sliding: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    layout: str = "train",
    interpret: bool = False,
) -> jax.Array:
    """The same values as `masked_attention` under `segment_mask`, except at padding; memory is linear in T.

    A window counts places. So no padding may stand inside a segment that is longer than it.

    Over a mesh every device runs the kernel on its own rows and heads.

    Args:
      q: [B, H, T, Hd]; k, v: [B, K, T, Hd].
      segment_ids: [B, T] int32; padding (0) attends to padding.
      sliding: [] bool, whether a token sees only the last `window` tokens; None: it sees all before it.
      scale: of the scores.
      window: tokens, with the token itself.
      layout: of `sharding.LAYOUTS`.
      interpret: run the kernel's interpreter, for devices other than TPUs.

    Returns:
      [B, H, T, Hd] in q's dtype.
    """
    length = q.shape[2]
    pad = splash.padding(length)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))
    kernel = functools.partial(splash.attend, scale=scale, window=window, interpret=interpret)
    if has_mesh():
        rules = _in_attention(LAYOUTS[layout])
        q_spec = spec(("batch", "heads", None, None), rules)
        kv_spec = spec(("batch", "kv_heads", None, None), rules)
        specs = (q_spec, kv_spec, kv_spec, spec(("batch", None), rules), PartitionSpec())
        kernel = jax.shard_map(kernel, in_specs=specs, out_specs=q_spec, check_vma=False)
    return kernel(q, k, v, segment_ids, sliding)[:, :, :length]
