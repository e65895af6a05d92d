"""Each Pallas kernel against plain attention in float32: values and gradients, in the run's dtype and head shapes.

On TPUs every device runs the kernels on its own rows and heads, as in a run. Elsewhere they are interpreted, on one device with one
device's share of the heads. All inputs are exact in bfloat16, so a difference is the kernel's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, Finding
from rcsd_jax.models import attention, cache, few_layers, kernels, sharding
from rcsd_jax.models.cache import KVCache
from rcsd_jax.models.cache_places import ring_places
from rcsd_jax.models.cached_attention import cached_attention
from rcsd_jax.models.config import DecoderConfig, LayerKind
from rcsd_jax.models.kernels.paged import PAGE
from rcsd_jax.models.placement import sampling_layout

SHORT, LONG = 256, 1100
"""Tokens of rows that are one block of splash attention, and of a packed row of several blocks."""
PLACES = 3 * PAGE
"""Of a row of the cache."""
WINDOW = 150
"""Tokens that a layer with a window sees, at most."""

LIMITS = {"float32": (1e-4, 2e-4), "bfloat16": (0.02, 0.06)}
"""Largest error of values and of gradients. A value's is relative to the length of its own token's vector, a gradient's to the mean
length of all: a token that sees only itself has no gradient. Bfloat16 rounds by 0.004."""


def check_kernels(config: DecoderConfig, mesh: jax.sharding.Mesh, *, int8_cache: bool, drafts: int) -> list[Finding]:
    """Checks every kernel that a decoder of this shape runs on TPUs.

    Args:
      config: of the decoder.
      mesh: the run's.
      int8_cache: whether the run samples with keys and values in int8.
      drafts: tokens that the run's sampler guesses.
    """
    native = jax.default_backend() == "tpu"
    kinds, config = _kinds(config), _plain(config)
    with jax.set_mesh(mesh) if native else contextlib.nullcontext():
        if native:
            shares = config, dataclasses.replace(config, layout=sampling_layout(config))
        else:
            shares = _share(config, mesh.shape["tensor"]), _share(config, mesh.shape["fsdp"] * mesh.shape["tensor"])
        findings = []
        for sliding in kinds:
            which = ", in a window" if sliding else ""
            findings += [
                _whole_sequences(shares[0], native, f"splash attention, rows{which}", SHORT, sliding),
                _whole_sequences(shares[0], native, f"splash attention, a packed row{which}", LONG, sliding),
                _cached(shares[1], native, f"attention of one token{which}", 1, int8_cache, sliding),
                _cached(shares[1], native, f"attention of a few tokens{which}", 1 + (drafts or 3), int8_cache, sliding),
            ]
        if True in kinds:
            findings.append(_in_ring(shares[1], native, "write and attention in a ring", 1 + drafts, int8_cache))
        findings.append(_write(shares[1], native, int8_cache, 1 + drafts))
    return findings


def _kinds(config: DecoderConfig) -> list[bool | None]:
    """Of the kinds of layers, whether they have a window; None of a decoder without any."""
    kinds: list[bool | None] = [None]
    return [*sorted({kind.sliding for kind in config.kinds})] if config.slides else kinds


def _plain(config: DecoderConfig) -> DecoderConfig:
    """Its heads and its way to attend, with a window that is short enough to matter here."""
    window = config.window and min(config.window, WINDOW)
    return dataclasses.replace(config, layer_kinds=(), window=window)


def _share(config: DecoderConfig, parts: int) -> DecoderConfig:
    """The heads of one of so many devices; all of them if these do not divide them."""
    if config.num_kv_heads % parts or config.num_heads % parts:
        return config
    return dataclasses.replace(config, num_heads=config.num_heads // parts, num_kv_heads=config.num_kv_heads // parts)


def _limits(config: DecoderConfig) -> tuple[float, float]:
    # TPUs multiply float32 in passes of bfloat16.
    exact = config.dtype == jnp.float32 and jax.default_backend() != "tpu"
    return LIMITS["float32" if exact else "bfloat16"]


def _draw(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal values that are exact in bfloat16."""
    return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16).astype(dtype)


def _errors(got: jax.Array, exact: jax.Array, *, by_token: bool) -> jax.Array:
    """[] float32: the largest error of a token's vector, relative to its own length or to the mean length of all."""
    got, exact = got.astype(jnp.float32), exact.astype(jnp.float32)
    error, length = jnp.linalg.norm(got - exact, axis=-1), jnp.linalg.norm(exact, axis=-1)
    length = jnp.where(length > 0, length, 1.0) if by_token else jnp.sqrt(jnp.mean(length**2))
    relative = jnp.max(error / length)
    return jnp.where(jnp.isfinite(relative), relative, jnp.inf)


# --- whole sequences -------------------------------------------------------------------------------------------------


def _segments(rows: int, length: int) -> np.ndarray:
    """[rows, length] int32: two segments and padding after them, or of short rows the first with padding before it."""
    ids = np.ones((rows, length), np.int32)
    ids[:, 2 * length // 3 :] = 2
    ids[:, length - 20 :] = 0
    if length == SHORT:
        ids[0] = np.arange(length) >= length // 3
    return ids


def _whole_sequences(
    config: DecoderConfig, native: bool, name: str, length: int, sliding: bool | None = None
) -> Finding:
    shards = sharding.row_shards("train")
    rows = max(shards, 2) if length == SHORT else shards
    kernel = dataclasses.replace(config, kernels="pallas" if native else "pallas_interpret", layout="train")
    ids, slides = jnp.asarray(_segments(rows, length)), None if sliding is None else jnp.asarray(sliding)
    shapes = [(rows, heads, length, config.head_dim) for heads in (config.num_heads, *[config.num_kv_heads] * 2)]

    @jax.jit
    def compare(ids: jax.Array) -> dict[str, dict[str, jax.Array]]:
        real = (ids != 0)[:, None, :, None]
        mask = attention.segment_mask(ids)
        if sliding:
            assert config.window is not None, "sliding layers have one"
            mask &= attention.near(jnp.broadcast_to(jnp.arange(length), ids.shape), config.window)
        inputs = [_draw(seed, shape, config.dtype) for seed, shape in enumerate(shapes)]
        weight = _draw(3, shapes[0], jnp.float32)
        plainly = functools.partial(attention.masked_attention, mask=mask, scale=config.query_scale)

        def outcome(attend: Callable[..., jax.Array], inputs: list[jax.Array]) -> list[jax.Array]:
            def loss(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
                out = jnp.where(real, attend(*inputs).astype(jnp.float32), 0.0)
                return jnp.sum(out * weight), out

            (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
            return [out, *gradients]

        with jax.default_matmul_precision("highest"):
            exact = outcome(plainly, [x.astype(jnp.float32) for x in inputs])
        attend = functools.partial(attention.causal_attention, kernel, segment_ids=ids, mask=None, sliding=slides)
        by_kernel = outcome(attend, inputs)
        names = ("values", "gradient of queries", "gradient of keys", "gradient of values")
        return {
            path: {
                what: _errors(x, y, by_token=what == "values") for what, x, y in zip(names, found, exact, strict=True)
            }
            for path, found in (("kernel", by_kernel), ("xla", outcome(plainly, inputs)))
        }

    errors = {path: {what: float(x) for what, x in of.items()} for path, of in compare(ids).items()}
    return _judged(name, config, errors)


def _judged(name: str, config: DecoderConfig, errors: dict[str, dict[str, float]]) -> Finding:
    """The finding of a kernel's errors and XLA's, of values and perhaps of gradients."""
    ours, theirs = errors["kernel"], max(errors["xla"].values())
    for_values, for_gradients = _limits(config)
    limits = {what: for_values if what == "values" else for_gradients for what in ours}
    beyond = [what for what in sorted(ours, key=lambda what: what != "values") if not ours[what] <= limits[what]]
    gradients = [what for what in ours if what != "values"]
    shown = beyond or ["values", *sorted(gradients, key=lambda what: -ours[what])[:1]]
    measured = ", ".join(f"{what} differ by {ours[what]:.2g}" for what in shown)
    allowed = f"at most {for_values:g}" + (f", gradients {for_gradients:g}" if gradients else "")
    numbers = {**errors, "limits": limits}
    return Finding("kernels", name, FAILED if beyond else OK, measured, f"{allowed}; XLA {theirs:.2g}", numbers)


# --- the cache -------------------------------------------------------------------------------------------------------


def _not_used(config: DecoderConfig, name: str) -> Finding | None:
    if config.head_dim % kernels.LANES == 0:
        return None
    reason = f"heads of {config.head_dim} do not fill vector registers"
    return Finding("kernels", name, NOT_CHECKED, reason, "no run of this model uses it")


def _filled(config: DecoderConfig, batch: int, int8: bool) -> KVCache:
    """A cache in which every place holds something."""
    empty = cache.init_cache(config, batch, PLACES)
    draw = lambda seed: lambda x: _draw(seed, x.shape, x.dtype)
    filled = KVCache(jax.tree.map(draw(0), empty.k), jax.tree.map(draw(1), empty.v))
    return cache.int8_cache(filled, jnp.full(batch, PLACES, jnp.int32)) if int8 else filled


def _by_kernels(config: DecoderConfig, native: bool) -> tuple[DecoderConfig, int, contextlib.AbstractContextManager]:
    """The decoder with few layers and kernels, its rows, and the context in which kernels are traced."""
    few = dataclasses.replace(config, num_layers=min(config.num_layers, few_layers.LIMIT + 1), kernels="pallas")
    context = contextlib.nullcontext() if native else pltpu.force_tpu_interpret_mode(pltpu.InterpretParams())
    return few, max(sharding.row_shards(config.layout), 2), context


def _index(rows: int, tokens: int) -> jax.Array:
    """[rows] int32, where new tokens stand: first, last, and between."""
    return jnp.asarray(np.resize([PLACES - tokens, 0, PAGE + 2, 7], rows), jnp.int32)


def _cached(
    config: DecoderConfig, native: bool, name: str, tokens: int, int8: bool, sliding: bool | None = None
) -> Finding:
    if (unused := _not_used(config, name)) is not None:
        return unused
    kernel, rows, context = _by_kernels(config, native)
    plain = dataclasses.replace(kernel, kernels="xla")
    index, layer = _index(rows, tokens), kernel.num_layers - 1

    @jax.jit
    def compare(index: jax.Array) -> dict[str, dict[str, jax.Array]]:
        q = _draw(2, (rows, config.num_heads, tokens, config.head_dim), config.dtype)
        kept = _filled(kernel, rows, int8)
        slides = None if sliding is None else jnp.asarray(sliding)
        attend = lambda by, q: cached_attention(by, q, kept, layer, index, slides)
        with jax.default_matmul_precision("highest"):
            exact = attend(plain, q.astype(jnp.float32))
        found = {"kernel": attend(kernel, q), "xla": attend(plain, q)}
        return {path: {"values": _errors(x, exact, by_token=True)} for path, x in found.items()}

    with context:
        errors = {path: {what: float(x) for what, x in of.items()} for path, of in compare(index).items()}
    return _judged(name, config, errors)


def _in_ring(config: DecoderConfig, native: bool, name: str, tokens: int, int8: bool) -> Finding:
    """New tokens are written into a ring of the last places, against XLA's attention to a cache that keeps all places."""
    if (unused := _not_used(config, name)) is not None:
        return unused
    kernel, rows, context = _by_kernels(config, native)
    kinds = tuple(LayerKind(number == 0, None) for number in range(kernel.num_layers))
    kernel, plain = dataclasses.replace(kernel, layer_kinds=kinds), dataclasses.replace(kernel, kernels="xla")
    index, ring = _index(rows, tokens), ring_places(kernel, PLACES, tokens)
    assert ring is not None, "the window is short"

    def compare(index: jax.Array, layer: jax.Array | int) -> dict[str, dict[str, jax.Array]]:
        q, k, v = (
            _draw(seed, (rows, heads, tokens, config.head_dim), config.dtype)
            for seed, heads in ((2, config.num_heads), (5, config.num_kv_heads), (6, config.num_kv_heads))
        )
        kept, slides = _filled(kernel, rows, int8), jnp.asarray(True)
        rings = cache.write(kernel, cache.with_rings(kernel, kept, index, PLACES, ring), k, v, layer, index)
        whole = cache.write(plain, kept, k, v, layer, index)
        with jax.default_matmul_precision("highest"):
            exact = cached_attention(plain, q.astype(jnp.float32), whole, layer, index, slides)
        found = {"kernel": cached_attention(kernel, q, rings, layer, index, slides)}
        found["xla"] = cached_attention(plain, q, whole, layer, index, slides)
        return {path: {"values": _errors(x, exact, by_token=True)} for path, x in found.items()}

    # In a scanned decoder the layer is known only when it runs, and a conditional takes its part of the cache.
    static = few_layers.unrolled(kernel)
    with context:
        run = jax.jit(compare, static_argnums=(1,) if static else ())
        differences = run(index, 0 if static else jnp.int32(0))
    errors = {path: {what: float(x) for what, x in of.items()} for path, of in differences.items()}
    return _judged(name, config, errors)


def _write(config: DecoderConfig, native: bool, int8: bool, tokens: int) -> Finding:
    name = "write into the cache"
    if (unused := _not_used(config, name)) is not None:
        return unused
    kernel, rows, context = _by_kernels(config, native)
    plain = dataclasses.replace(kernel, kernels="xla")

    @jax.jit
    def compare(index: jax.Array) -> jax.Array:
        kept = _filled(kernel, rows, int8)
        k, v = (_draw(seed, (rows, config.num_kv_heads, tokens, config.head_dim), config.dtype) for seed in (5, 6))
        written = [cache.write(by, kept, k, v, kernel.num_layers - 1, index) for by in (kernel, plain)]
        differing = jax.tree.map(lambda x, y: jnp.sum(x != y), *written)
        return jnp.stack(jax.tree.leaves(differing)).sum()

    with context:
        differing = int(compare(_index(rows, tokens)))
    measured = f"{differing} values differ" if differing else "the same bits"
    return Finding("kernels", name, FAILED if differing else OK, measured, "the same bits", {"differing": differing})
