"""Attention of whole sequences by JAX's splash kernel, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from rcsd_jax.models.kernels import LANES

_BLOCK = 1024  # the largest; long sequences are padded to halves of it, so that blocks are never small


def padding(length: int) -> int:
    """By how much the kernel needs sequences padded: to a multiple of 128, beyond 1024 of 512."""
    return -length % (LANES if length <= _BLOCK else _BLOCK // 2)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, scale: float, interpret: bool
) -> jax.Array:
    """Causal attention within segments, of one device's rows and heads.

    Args:
      q: [b, h, T, Hd]; k, v: [b, k, T, Hd], with T of `padding`.
      segment_ids: [b, T] int32; padding (0) attends to padding.
      scale: of the scores.
      interpret: run the kernel's interpreter, for devices other than TPUs.

    Returns:
      [b, h, T, Hd] in q's dtype.
    """
    heads, length = q.shape[1:3]
    block = next(b for b in range(min(_BLOCK, length), 0, -LANES) if length % b == 0)
    # The fused backward kernel makes one gradient of the queries for each block of keys, and these are then summed. Larger
    # blocks of keys would make fewer, but on the diagonal the kernel also computes what is masked.
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
    return jax.vmap(kernel)(q * jnp.asarray(scale, q.dtype), k, v, splash.SegmentIds(segment_ids, segment_ids))
