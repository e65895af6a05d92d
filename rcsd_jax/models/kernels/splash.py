"""Attention of whole sequences by JAX's splash kernel, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from rcsd_jax.models.kernels import LANES

_BLOCK = 1024  # the largest; long sequences are padded to halves of it, so that blocks are never small


def padding(length: int) -> int:
    """By how much the kernel needs sequences padded: to a multiple of 128, beyond 1024 of 512."""
    return -length % (LANES if length <= _BLOCK else _BLOCK // 2)


def block(length: int) -> int:
    """Queries, and keys, of a block of the kernel, for sequences of a length with `padding`."""
    return next(b for b in range(min(_BLOCK, length), 0, -LANES) if length % b == 0)


def _keys_at_once(block: int, head_dim: int) -> int:
    """Keys of a block that the backward kernel multiplies at once: with wide heads, scores of a whole block exceed vector memory."""
    most = _BLOCK * LANES // max(head_dim, LANES)
    return next(keys for keys in range(block, 0, -LANES) if block % keys == 0 and keys <= most)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    sliding: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    interpret: bool,
) -> jax.Array:
    """Causal attention within segments, of one device's rows and heads.

    Of a single row it computes only the pairs of blocks that share a segment. Rows that are packed come singly, and short rows
    are one block, so several rows at a time are not worth a loop over them.

    Args:
      q: [b, h, T, Hd]; k, v: [b, k, T, Hd], with T of `padding`.
      segment_ids: [b, T] int32; padding (0) attends to padding.
      sliding: [] bool, whether a token sees only the last `window` places; None: it sees all before it.
      scale: of the scores.
      window: places, with the token's own.
      interpret: run the kernel's interpreter, for devices other than TPUs.

    Returns:
      [b, h, T, Hd] in q's dtype.
    """
    heads, length = q.shape[1:3]
    size = block(length)
    # The fused backward kernel makes one gradient of the queries for each block of keys, and these are then summed. Larger
    # blocks of keys would make fewer, but on the diagonal the kernel also computes what is masked.
    blocks = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=_keys_at_once(size, q.shape[3]),
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
    if sliding is not None:
        assert window is not None, "sliding layers have one"
        kernel = _of_window(kernel, sliding, window, size)
    q = q * jnp.asarray(scale, q.dtype)
    if len(q) > 1 or size == length:
        return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment_ids, segment_ids))
    ids = segment_ids[0]
    return _of_segments(kernel, blocks_of_segments(ids, size))(q[0], k[0], v[0], splash.SegmentIds(ids, ids))[None]


def blocks_of_segments(segment_ids: jax.Array, block: int) -> jax.Array:
    """Which blocks of queries and keys may share a segment, besides those on the diagonal, where all tokens see themselves.

    Args:
      segment_ids: [T] int32, rising along the row; 0 is padding.
      block: tokens of a block, which divides T.

    Returns:
      [T / block, T / block] bool, queries first.
    """
    ids = segment_ids.reshape(-1, block)
    last = ids.max(axis=1)
    first = jnp.where(ids > 0, ids, np.iinfo(np.int32).max).min(axis=1)
    shared = (first[:, None] <= last[None, :]) & (first[None, :] <= last[:, None])
    return shared | jnp.eye(len(ids), dtype=bool)


def _of_segments(kernel: Any, shared: jax.Array) -> Any:
    """The kernel without the blocks of a causal mask that share no segment."""
    return _changed(kernel, lambda info: _only(info, shared))


def _of_window(kernel: Any, sliding: jax.Array, window: int, block: int) -> Any:
    """The kernel of a causal mask that keeps within a window if `sliding`, which is known only when it runs.

    So layers with and without a window are one program. The kernel calls a mask function with the places of queries, which are
    an array, and of keys. Queries that slide say so by a large number that is added to their places.
    """

    def changed(info: Any) -> Any:
        ahead = jnp.arange(info.block_mask.shape[-2])[:, None] - jnp.arange(info.block_mask.shape[-1])
        within = ~sliding | ((ahead - 1) * block + 1 < window)  # the nearest places of two blocks
        return _only(info, within)._replace(q_sequence=info.q_sequence + jnp.where(sliding, _SLIDES, 0))

    return _changed(kernel, changed, mask_function=_window_mask(window))


_SLIDES = 1 << 24  # more than any place


@functools.cache
def _window_mask(window: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(places of queries, places of keys) -> bool. Cached, so that equal windows are equal static arguments."""

    def mask(queries: jax.Array, keys: jax.Array) -> jax.Array:
        slides = queries >= _SLIDES
        places = jnp.where(slides, queries - _SLIDES, queries)
        return (keys <= places) & (keys > jnp.where(slides, places - window, -1))

    return mask


def _only(info: Any, blocks: jax.Array) -> Any:
    """Information about a mask without the other blocks."""
    return info._replace(block_mask=jnp.where(blocks, info.block_mask, 0).astype(info.block_mask.dtype))


def _changed(kernel: Any, change: Callable[[Any], Any], **static: Any) -> Any:
    """The kernel with its information about masks changed, and with other static arguments."""
    (forward, queries, keys_and_values), old = kernel.tree_flatten()
    assert queries is None, "the fused backward kernel needs none"
    return type(kernel).tree_unflatten({**old, **static}, (change(forward), None, change(keys_and_values)))
