"""Causal attention within segments over whole sequences: plain XLA, and on TPU the splash kernel that comes with JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models.sharding import LAYOUTS, has_mesh, spec

KERNELS = ("xla", "pallas", "pallas_interpret")
"""How attention is computed: by XLA (scores in memory), by Pallas TPU kernels, or by these interpreted on any device."""

_LANES = 128  # splash's blocks are multiples of this
_QUERIES = 64  # of a block, at least, where scores are in memory
_QUERY_BLOCKS = 8  # at most: each is compiled for itself
_BLOCK = 1024  # the largest; long sequences are padded to halves of it, so that blocks are never small


def segment_mask(segment_ids: jax.Array) -> jax.Array:
    """[B, T] int32 -> [B, T, T] bool: a token attends to itself and to earlier tokens of its segment; 0 is padding."""
    same = segment_ids[:, None, :] == segment_ids[:, :, None]
    causal = jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))
    return same & causal & (segment_ids != 0)[:, :, None]


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Causal grouped-query attention with its scores in memory, those of a block of queries with the keys up to its end.

    Args:
      q: [B, H, T, Hd]; k, v: [B, K, T, Hd], H a multiple of K.
      mask: [B, T, T] bool, true where a query may look; never after itself.

    Returns:
      [B, H, T, Hd] in v's dtype; where a query may look nowhere, an average of v.
    """
    length = q.shape[2]
    block = max(_QUERIES, -(-length // _QUERY_BLOCKS))
    blocks = [  # the last may be shorter
        _masked_attention(
            q[:, :, i : i + block], k[:, :, : i + block], v[:, :, : i + block], mask[:, i : i + block, : i + block]
        )
        for i in range(0, length, block)
    ]
    return jnp.concatenate(blocks, axis=2)


def _masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, H, C, Hd], k and v [B, K, S, Hd], mask [B, C, S]."""
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(batch, kv_heads, heads // kv_heads, length, head_dim)
    scores = jnp.einsum("bkgtd,bksd->bkgts", q, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    # A finite floor: a padding query, which may attend to nothing, gets an average instead of NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksd->bkgtd", probs, v).reshape(batch, heads, length, head_dim)


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, layout: str = "train", interpret: bool = False
) -> jax.Array:
    """The same values as `masked_attention` under `segment_mask`, but for padding; memory is linear in T.

    The kernel is JAX's `splash_attention`, forward and backward. Over a mesh every device runs it on its own rows and
    heads. T is padded to a multiple of 128, of 512 beyond 1024.

    Args:
      q: [B, H, T, Hd]; k, v: [B, K, T, Hd].
      segment_ids: [B, T] int32; padding (0) attends to padding.
      layout: of `sharding.LAYOUTS`.
      interpret: run the kernel's interpreter, for devices other than TPUs.

    Returns:
      [B, H, T, Hd] in q's dtype.
    """
    length = q.shape[2]
    pad = -length % (_LANES if length <= _BLOCK else _BLOCK // 2)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))
    kernel = functools.partial(_splash, interpret=interpret)
    if has_mesh():
        rules = LAYOUTS[layout]
        q_spec = spec(("batch", "heads", None, None), rules)
        kv_spec = spec(("batch", "kv_heads", None, None), rules)
        specs = (q_spec, kv_spec, kv_spec, spec(("batch", None), rules))
        kernel = jax.shard_map(kernel, in_specs=specs, out_specs=q_spec, check_vma=False)
    return kernel(q, k, v, segment_ids)[:, :, :length]


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, interpret: bool) -> jax.Array:
    """One device's rows and heads: q [b, h, T, Hd], k and v [b, k, T, Hd], T a multiple of 128."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length, head_dim = q.shape[1:]
    block = next(b for b in range(min(_BLOCK, length), 0, -_LANES) if length % b == 0)
    # The fused backward kernel makes a gradient of the queries for every block of keys, which are then added up. Larger blocks
    # of keys would be fewer, but of those on the diagonal it computes what is masked as well.
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    return jax.vmap(kernel)(q * jnp.asarray(head_dim**-0.5, q.dtype), k, v, splash.SegmentIds(segment_ids, segment_ids))


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    mask: jax.Array | None,
    *,
    kernels: str,
    layout: str,
) -> jax.Array:
    """Attention of whole sequences by the named kernels; `mask` is `segment_mask(segment_ids)`, which XLA alone reads."""
    if kernels == "xla":
        assert mask is not None, "it is missing for other kernels alone"
        return checkpoint_name(masked_attention(q, k, v, mask), "attention")
    return splash_attention(q, k, v, segment_ids, layout=layout, interpret=kernels == "pallas_interpret")
