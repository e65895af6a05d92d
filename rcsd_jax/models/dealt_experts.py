"""Experts that are dealt out over devices: tokens travel, and each device computes what its own experts give.

The devices of the axis gather each other's tokens, and add up what they computed for each. With eight experts for each token and
as many devices, most tokens have an expert on most devices. So little travels in vain.

How many rows a device gets depends on the tokens, and may be anything up to all. So it takes them in parts, of a fourth more than all
devices' average. The first is usually all; a loop takes the others, as many as there are, and nothing is dropped. A loop of unknown
length has no gradient of JAX's. So the gradient is written here. Of the first part, recomputation (`config.REMAT`) decides what is kept;
the others are computed anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.expert_rows import NAMES, Parts, down, gate_and_up
from rcsd_jax.models.kernels import LANES

FEW = 4096
"""Rows of all devices that are one part in any case."""
PARTS = "more_expert_parts"
"""The scope of the loop over parts after the first, which is usually all."""
_TOGETHER = 128  # tokens to which the kernel adds up rows at a time


class Dealt(NamedTuple):
    """The rows of this device's experts, sorted by expert and then by the device that they come from.

    Attributes:
      token: [S * R] int32, for all devices' routes, sorted by expert on each: the token's place among those of all devices.
      ends: [E * S] int32, the row after the last of each expert and device.
      starts: [E * S] int32, where the routes of an expert and a device start in `token`.
      sizes: [E] int32, rows of each expert.
    """

    token: jax.Array
    ends: jax.Array
    starts: jax.Array
    sizes: jax.Array


def apply(
    config: DecoderConfig, parts: Parts, x: jax.Array, experts: jax.Array, shares: jax.Array, axis: str
) -> jax.Array:
    """What the experts of all devices of the axis give to the tokens of this device; inside `jax.shard_map`.

    Args:
      config: of the decoder.
      parts: of the device's own experts.
      x: [N, D], the device's tokens.
      experts, shares: [N, k], where they go, among all experts; `config.num_experts` for nowhere.
      axis: of the mesh.

    Returns:
      The sums [N, D]. Where experts are also split by their width, they are partial sums.
    """
    tokens, k = shares.shape
    own, devices = parts[NAMES[0]]["w"].shape[-3], jax.lax.axis_size(axis)
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    counts = (flat[:, None] == jnp.arange(config.num_experts)).sum(axis=0, dtype=jnp.int32)
    gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=0)
    # [S, E] of this device's experts, and where each begins among the routes of its device
    counts = gather(counts)
    here = lambda y: jax.lax.dynamic_slice_in_dim(y, jax.lax.axis_index(axis) * own, own, axis=1)
    first = np.arange(devices)[:, None]
    starts = here(jnp.cumsum(counts, axis=1) - counts) + first * len(flat)
    counts = here(counts)
    dealt = Dealt(
        (gather(order // k) + first * tokens).reshape(-1).astype(jnp.int32),
        jnp.cumsum(counts.T.reshape(-1)).astype(jnp.int32),
        starts.T.reshape(-1).astype(jnp.int32),
        counts.sum(axis=0),
    )
    rows = _rows(len(flat), devices)
    of_all, shares = gather_tokens(axis, x), gather(_at(shares.reshape(-1), order)).reshape(-1)
    return add_up(axis, given(config, rows, parts, of_all, shares, dealt))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_tokens(axis: str, x: jax.Array) -> jax.Array:
    """[N, D] of every device of the axis, one after the other, [S * N, D]."""
    return jax.lax.all_gather(x, axis, axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def add_up(axis: str, x: jax.Array) -> jax.Array:
    """The sum over the devices of the part [N, D] of x [S * N, D] that is this device's.

    XLA would add up all parts on all devices, which is twice the way.
    """
    parts = x.reshape(jax.lax.axis_size(axis), -1, x.shape[1])
    return jax.lax.all_to_all(parts, axis, 0, 0).sum(axis=0, dtype=jnp.float32).astype(x.dtype)


gather_tokens.defvjp(lambda axis, x: (gather_tokens(axis, x), None), lambda axis, _, y: (add_up(axis, y),))
add_up.defvjp(lambda axis, x: (add_up(axis, x), None), lambda axis, _, y: (gather_tokens(axis, y),))


def _rows(routes: int, devices: int) -> int:
    """Rows of a part, for so many routes of each device."""
    whole = routes * devices
    part = whole if whole <= FEW else min(routes + routes // 4, whole)
    return -(-part // LANES) * LANES


def _usual(rows: int, dealt: Dealt) -> int:
    """Rows that all experts of a device usually have in a part: those of all devices over the devices."""
    return min(rows, len(dealt.token) * len(dealt.sizes) // len(dealt.ends))


@jax.custom_vjp
def _at(x: jax.Array, order: jax.Array) -> jax.Array:
    """x[order] for x [R] and a permutation, whose gradient is a read as well."""
    return x[order]


_at.defvjp(lambda x, order: (x[order], order), lambda order, gradient: (gradient[jnp.argsort(order)], None))


_Kept: TypeAlias = tuple[jax.Array, jax.Array]
"""Of a part's rows, x @ gate and x @ up."""


class _Part(NamedTuple):
    """Some of the rows: see `_part`."""

    source: jax.Array  # [C], each row's place in `Dealt.token`; after the last row, more than any
    token: jax.Array  # [C] int32; after the last row, more than any
    sizes: jax.Array  # [E] int32, rows of each expert


def _part(dealt: Dealt, number: jax.Array | int, rows: int) -> _Part:
    row = number * rows + jnp.arange(rows)
    piece = (row[:, None] >= dealt.ends).sum(axis=1)
    begins = jnp.concatenate([jnp.zeros(1, jnp.int32), dealt.ends[:-1]])
    source = row + (dealt.starts - begins)[jnp.minimum(piece, len(dealt.ends) - 1)]
    there = piece < len(dealt.ends)
    token = jnp.where(there, dealt.token.at[source].get(mode="clip"), jnp.iinfo(jnp.int32).max)
    ends = jnp.clip(jnp.cumsum(dealt.sizes) - number * rows, 0, rows)
    return _Part(jnp.where(there, source, len(dealt.token) + row), token, jnp.diff(ends, prepend=0).astype(jnp.int32))


def _over_parts(rows: int, dealt: Dealt, add: Callable[[_Part, Any], Any]) -> Any:
    """`add(part, sums)` for each part with rows; the first has None to add to."""
    first = add(_part(dealt, 0, rows), None)
    if rows >= len(dealt.token):
        return first
    with jax.named_scope(PARTS):
        needed = (dealt.ends[-1] + rows - 1) // rows
        return jax.lax.fori_loop(1, needed, lambda i, sums: add(_part(dealt, i, rows), sums), first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def given(config: DecoderConfig, rows: int, parts: Parts, x: jax.Array, shares: jax.Array, dealt: Dealt) -> jax.Array:
    """The sums [S * N, D] for x [S * N, D]; shares [S * R] as `Dealt.token`."""
    return _given_and_kept(config, rows, parts, x, shares, dealt)[0]


def _given_and_kept(
    config: DecoderConfig, rows: int, parts: Parts, x: jax.Array, shares: jax.Array, dealt: Dealt
) -> tuple[jax.Array, _Kept]:
    kept: list[_Kept] = []  # of the first part

    def add(part: _Part, out: jax.Array | None) -> jax.Array:
        usual = _usual(rows, dealt)
        gate, up = gate_and_up(config, parts, _rows_of(x, part.token), part.sizes, usual)
        if out is None:
            kept.append((gate, up))
        y = down(config, parts, gate, up, _rows_of(shares, part.source), part.sizes, usual)
        return _added(config, out, y, part.token, len(x))

    return _over_parts(rows, dealt, add), kept[0]


def _rows_of(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="clip")


def _added(config: DecoderConfig, sums: jax.Array | None, rows: jax.Array, token: jax.Array, count: int) -> jax.Array:
    """Sums [N, D] for `count` tokens, if there are some, plus rows [C, D] of the tokens [C]; rows of others count nowhere."""
    if config.kernels == "xla":
        added = jnp.zeros((count, rows.shape[1]), rows.dtype).at[token].add(rows, mode="drop")
    elif count <= _TOGETHER:
        hot = (token == jnp.arange(count)[:, None]).astype(rows.dtype)
        added = jnp.matmul(hot, rows, preferred_element_type=jnp.float32).astype(rows.dtype)
    else:
        # XLA adds rows one after the other. Sorted by token, those of some tokens together are a group, and their sums a product
        # with zeros and ones.
        order = jnp.argsort(token)
        rows, token = rows[order], token[order]
        blocks = -(-count // _TOGETHER)
        sizes = (token[:, None] // _TOGETHER == jnp.arange(blocks)).sum(axis=0, dtype=jnp.int32)
        hot = (token % _TOGETHER == jnp.arange(_TOGETHER)[:, None]).astype(rows.dtype)
        how = dict(tiling=(_TOGETHER, _TOGETHER, rows.shape[1]), interpret=config.kernels == "pallas_interpret")
        added = tgmm(hot, rows, sizes, rows.dtype, **how).reshape(-1, rows.shape[1])[:count]
    return added if sums is None else sums + added


def _given_backward(
    config: DecoderConfig,
    rows: int,
    residuals: tuple[tuple[Parts, jax.Array, jax.Array, Dealt], _Kept],
    gradient: jax.Array,
) -> tuple[Parts, jax.Array, jax.Array, None]:
    (parts, x, shares, dealt), kept = residuals
    numbers = lambda y: jnp.issubdtype(y.dtype, jnp.floating)
    exact = {name: {key: y for key, y in part.items() if not numbers(y)} for name, part in parts.items()}
    inexact = {name: {key: y for key, y in part.items() if numbers(y)} for name, part in parts.items()}
    both = lambda inexact: {name: exact[name] | inexact[name] for name in exact}
    usual = _usual(rows, dealt)

    def add(part: _Part, sums: tuple[Parts, jax.Array, jax.Array] | None) -> tuple[Parts, jax.Array, jax.Array]:
        into = lambda inexact, x: gate_and_up(config, both(inexact), x, part.sizes, usual)
        out = lambda inexact, gate, up, shares: down(config, both(inexact), gate, up, shares, part.sizes, usual)
        gate_up, pull_in = jax.vjp(into, inexact, _rows_of(x, part.token))
        gate_up = kept if sums is None else gate_up
        _, pull_out = jax.vjp(out, inexact, *gate_up, _rows_of(shares, part.source))
        of_down, of_gate, of_up, of_shares = pull_out(_rows_of(gradient, part.token))
        of_others, of_x = pull_in((of_gate, of_up))
        of_parts = jax.tree.map(jnp.add, of_down, of_others)
        before = (None, None, jnp.zeros_like(shares)) if sums is None else sums
        return (
            of_parts if before[0] is None else jax.tree.map(jnp.add, before[0], of_parts),
            _added(config, before[1], of_x, part.token, len(x)),
            before[2].at[part.source].set(of_shares, mode="drop", unique_indices=True),
        )

    of_parts, of_x, of_shares = _over_parts(rows, dealt, add)
    of_exact = {
        name: {key: np.zeros(y.shape, jax.dtypes.float0) for key, y in part.items()} for name, part in exact.items()
    }
    return {name: of_exact[name] | of_parts[name] for name in parts}, of_x, of_shares, None


def _given_forward(
    config: DecoderConfig, rows: int, *inputs: Any
) -> tuple[jax.Array, tuple[tuple[Parts, jax.Array, jax.Array, Dealt], _Kept]]:
    out, kept = _given_and_kept(config, rows, *inputs)
    return out, (inputs, kept)


given.defvjp(_given_forward, _given_backward)
