"""models/cache.py and cached_attention.py: block by block, or by the paged kernel, it is plain attention to the places in use."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rcsd_jax.models.cache import KVCache, init_cache, int8_cache, write
from rcsd_jax.models.cached_attention import cached_attention
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels.paged import PAGE
from tests import eight_devices

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128


def config(kernels="xla", unrolled=False):
    return DecoderConfig(
        family="qwen3", vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=3 if unrolled else 5,
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, kernels=kernels,
    )  # fmt: skip


def filled(config, batch, length):
    """A cache in which every place holds something, large at places that must not be seen."""
    draw = lambda seed: lambda x: 3 * jax.random.normal(jax.random.key(seed), x.shape)
    cache = init_cache(config, batch, length)
    return KVCache(jax.tree.map(draw(0), cache.k), jax.tree.map(draw(1), cache.v))


def expected(q, cache, layer, index, window=None):
    """By a loop over rows, tokens and heads, in float64."""
    k, v = (
        np.concatenate([np.asarray(x, np.float64) for x in pools], axis=1)[:, layer] for pools in (cache.k, cache.v)
    )
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(*q.shape[:3]):
        n = int(index[b]) + t + 1
        seen = slice(max(0, n - window) if window else 0, n)
        scores = k[h // (HEADS // KV_HEADS), b, seen] @ np.asarray(q[b, h, t], np.float64) / np.sqrt(HEAD_DIM)
        weights = np.exp(scores - scores.max())
        out[b, h, t] = weights / weights.sum() @ v[h // (HEADS // KV_HEADS), b, seen]
    return out


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("tokens, length, index", [
    (1, 40, [0, 39, 17]), (5, 40, [0, 35, 17]), (1, 700, [0, 3, 255]), (3, 700, [697, 256, 0]), (1, 700, [511, 512, 699]),
])  # fmt: skip
def test_it_is_attention_to_the_places_in_use(unrolled, tokens, length, index):
    cache, index = filled(config(unrolled=unrolled), 3, length), jnp.asarray(index)
    q = jax.random.normal(jax.random.key(2), (3, HEADS, tokens, HEAD_DIM))
    out = jax.jit(cached_attention, static_argnums=(0, 3))(config(unrolled=unrolled), q, cache, 1, index)
    np.testing.assert_allclose(out, expected(q, cache, 1, index), rtol=0, atol=5e-5)


@pytest.mark.parametrize("kernels, tokens, length, index", [
    ("xla", 1, 40, [0, 39, 17]), ("xla", 3, 900, [0, 780, 897]), ("pallas", 1, 1280, [0, 1279, 639]), ("pallas", 3, 1280, [90, 1000, 640]),
])  # fmt: skip
def test_a_layer_may_see_the_last_places_only(kernels, tokens, length, index):
    """One program for layers with and without a window; what stands before all rows' windows is not read."""
    windowed = dataclasses.replace(config(kernels), window=100)
    cache, index = filled(windowed, 3, length), jnp.asarray(index)
    q = jax.random.normal(jax.random.key(2), (3, HEADS, tokens, HEAD_DIM))
    run = jax.jit(cached_attention, static_argnums=(0, 3))
    interpreted = pltpu.force_tpu_interpret_mode if kernels == "pallas" else contextlib.nullcontext
    with interpreted():
        for sliding, window in ((True, 100), (False, None)):
            out = run(windowed, q, cache, 1, index, jnp.asarray(sliding))
            np.testing.assert_allclose(out, expected(q, cache, 1, index, window), rtol=0, atol=1e-4)
        if length > 256:
            late = jnp.maximum(index, length - 100)  # no row's window reaches the first blocks
            lost = jax.tree.map(lambda x: x.at[:, :, :, :256].set(jnp.nan), cache)
            assert np.isfinite(run(windowed, q, lost, 1, late - tokens, jnp.asarray(True))).all()


def test_blocks_beyond_the_places_in_use_are_not_read():
    cache = filled(config(), 2, 700)
    cache = jax.tree.map(lambda x: x.at[:, :, :, 256:].set(jnp.nan), cache)  # would show even where it is masked
    q = jax.random.normal(jax.random.key(2), (2, HEADS, 1, HEAD_DIM))
    run = lambda index: cached_attention(config(), q, cache, 0, jnp.asarray(index))
    assert np.isfinite(run([255, 9])).all() and np.isnan(run([256, 9])).any()


@pytest.mark.parametrize("kernels, dtype", [("xla", "float32"), ("pallas", "float32"), ("pallas", "bfloat16")])
@pytest.mark.parametrize("unrolled", [False, True])
def test_writes_go_to_each_rows_own_place_and_nowhere_else(unrolled, kernels, dtype):
    cache = jax.tree.map(lambda x: x.astype(dtype), filled(config(kernels, unrolled), 3, 128))
    draw = lambda seed, n: jax.random.normal(jax.random.key(seed), (3, KV_HEADS, n, HEAD_DIM)).astype(dtype)
    whole = lambda pools: np.concatenate([np.asarray(x) for x in pools], axis=1)
    interpreted = pltpu.force_tpu_interpret_mode if kernels == "pallas" else contextlib.nullcontext
    # Several tokens cross tiles of 8 or 16 places, or end with the row; for more than a few there is no kernel.
    for index, tokens in ((None, 7), ([0, 5, 127], 1), ([3, 124, 14], 4), ([3, 16, 119], 9)):
        k, v = draw(5, tokens), draw(6, tokens)
        with interpreted():
            written = write(config(kernels, unrolled), cache, k, v, 2, None if index is None else jnp.asarray(index))
        for old, new, values in ((cache.k, written.k, k), (cache.v, written.v, v)):
            wanted = whole(old).copy()
            for b, start in enumerate(index or [0] * 3):
                wanted[:, 2, b, start : start + tokens] = np.asarray(values[b])
            np.testing.assert_array_equal(whole(new), wanted)


def test_the_pallas_cache_has_whole_pages():
    assert init_cache(config("pallas"), 2, 129).length == 2 * PAGE
    assert init_cache(config(), 2, 129).length == 129


@pytest.mark.parametrize("unrolled, tokens, length, index", [
    (False, 1, 380, [0, 383, 130]), (True, 1, 380, [0, 383, 130]), (False, 4, 1280, [0, 1276, 639]), (True, 3, 1280, [638, 640, 1000]),
])  # fmt: skip
def test_kernels_are_the_plain_path(unrolled, tokens, length, index):
    pallas, index = config("pallas", unrolled), jnp.asarray(index)
    # The paged kernel reads keys and values as bfloat16, whatever they are.
    cache = jax.tree.map(lambda x: x.astype(jnp.bfloat16), filled(pallas, 3, length))
    q = jax.random.normal(jax.random.key(2), (3, HEADS, tokens, HEAD_DIM))
    with pltpu.force_tpu_interpret_mode():
        out = jax.jit(cached_attention, static_argnums=(0, 3))(pallas, q, cache, 2, index)
    np.testing.assert_allclose(out, expected(q, cache, 2, index), rtol=0, atol=1e-4)


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from rcsd_jax.models.cached_attention import cached_attention
from rcsd_jax.models import sharding
from rcsd_jax.models.kernels import paged
from tests.models.test_cache import HEAD_DIM, HEADS, config, filled

def by_hand(q, k_pages, v_pages, lengths, page_indices, *, pages_per_compute_block):
    # What the kernel computes; itself interpreted, it waits for devices that wait for it.
    assert page_indices.shape[1] % pages_per_compute_block == 0
    take = lambda pages: pages[:, page_indices].reshape(k_pages.shape[0], q.shape[0], -1, q.shape[-1])
    k, v = take(k_pages), take(v_pages)
    q = q.reshape(q.shape[0], k.shape[0], -1, q.shape[-1])
    scores = jnp.einsum("bkgd,kbsd->bkgs", q, k)
    scores = jnp.where(jnp.arange(k.shape[2]) < lengths[:, None, None, None], scores, -1e30)
    return jnp.einsum("bkgs,kbsd->bkgd", jax.nn.softmax(scores), v).reshape(q.shape[0], -1, q.shape[-1])

paged.paged_attention = by_hand
pallas, axes = config("pallas"), ("kv_heads", None, "batch", None, None)
cache, index = filled(pallas, 8, 256), jnp.asarray([0, 255, 128, 5, 127, 64, 200, 3])
q = jax.random.normal(jax.random.key(2), (8, HEADS, 1, HEAD_DIM))
attend = jax.jit(cached_attention, static_argnums=0)
expected = np.asarray(attend(config(), q, cache, 3, index))
mesh = sharding.make_mesh(2, 2, 2)
with jax.set_mesh(mesh):
    place = lambda x, axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, sharding.spec(axes)))
    arguments = (
        place(q, ("batch", "heads", None, None)), jax.tree.map(lambda x: place(x, axes), cache), 3, place(index, ("batch",))
    )
    assert "all-gather" not in attend.lower(pallas, *arguments).compile().as_text()
    out = attend(pallas, *arguments)
np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)
assert out.addressable_shards[0].data.shape == (2, HEADS // 2, 1, HEAD_DIM)
print(list(out.addressable_shards[0].data.shape))
"""


def test_on_a_mesh_every_device_attends_with_its_own_rows_and_heads():
    assert eight_devices.run(SCRIPT, timeout=300) == [2, HEADS // 2, 1, HEAD_DIM]


def int8_and_plain(config, lengths, places, seed=0):
    """A plain cache of prompts, larger in some channels of keys than in others, and its int8 twin."""
    cache = filled(config, len(lengths), places)
    loud = jnp.exp(jax.random.normal(jax.random.key(seed), (HEAD_DIM,)))
    cache = KVCache(tuple(x * loud for x in cache.k), cache.v)
    return cache, int8_cache(cache, jnp.asarray(lengths))


@pytest.mark.parametrize("unrolled", [False, True])
def test_an_int8_cache_is_near_the_plain_one_and_of_every_row_alone(unrolled):
    c, lengths = config(unrolled=unrolled), [40, 7, 23]
    plain, int8 = int8_and_plain(c, lengths, 40)
    assert {x.dtype for x in int8.k + int8.v} == {jnp.dtype("int8")}
    assert int8.k_scale[0].shape == (KV_HEADS, plain.k[0].shape[1], 3, 1, HEAD_DIM)
    for pools, ints, scales in ((plain.k, int8.k, int8.k_scale), (plain.v, int8.v, int8.v_scale)):
        for x, y, scale in zip(pools, ints, scales, strict=True):
            error = np.abs(np.asarray(y, np.float64) * scale - x)
            for row, length in enumerate(lengths):
                assert (error <= 0.501 * np.asarray(scale))[:, :, row, :length].all()
                assert np.abs(np.asarray(y))[:, :, row, :length].max() in range(80, 128)  # headroom, but not more
    one = int8_cache(jax.tree.map(lambda x: x[:, :, 1:2], plain), jnp.asarray(lengths[1:2]))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, :, 1:2], y), int8, one)


@pytest.mark.parametrize("tokens, kernels", [(1, "xla"), (3, "xla"), (1, "pallas"), (3, "pallas")])
def test_attention_to_an_int8_cache_with_new_tokens(tokens, kernels):
    c, lengths = config(kernels), jnp.asarray([100, 60, 1])
    plain, int8 = int8_and_plain(c, lengths, PAGE)
    k, v = (jax.random.normal(jax.random.key(s), (3, KV_HEADS, tokens, HEAD_DIM)) for s in (5, 6))
    q = jax.random.normal(jax.random.key(7), (3, HEADS, tokens, HEAD_DIM)) / 4
    interpreted = pltpu.force_tpu_interpret_mode if kernels == "pallas" else contextlib.nullcontext
    with interpreted():
        written = write(c, int8, k, v, 2, lengths)
    dequantized = KVCache(*(
        tuple(np.asarray(x, np.float32) * s for x, s in zip(pools, scales, strict=True))
        for pools, scales in ((written.k, written.k_scale), (written.v, written.v_scale))
    ))  # fmt: skip
    wanted = expected(q, dequantized, 2, lengths)
    windowed = dataclasses.replace(c, window=30)
    with interpreted():
        got = cached_attention(c, q, written, 2, lengths)
        near_ones = cached_attention(windowed, q, written, 2, lengths, jnp.asarray(True)) if tokens == 1 else got
    tolerance = 5e-5 if kernels == "xla" else 3e-2
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    of_window = expected(q, dequantized, 2, lengths, window=30) if tokens == 1 else wanted
    np.testing.assert_allclose(near_ones, of_window, rtol=0, atol=tolerance)
    assert tokens > 1 or np.abs(of_window - wanted).max() > 0.1
    near = expected(q, write(config(), plain, k, v, 2, lengths), 2, lengths)
    assert np.abs(got - near)[:2].max() < 0.2  # the third row's prompt is one token: new ones go beyond its scale


def test_heads_that_do_not_fill_registers_are_not_the_kernels():
    # Its blocks cannot be lowered for TPU; `configs/tiny.py` has heads of 32.
    narrow = dataclasses.replace(config("pallas"), head_dim=32)
    q = jnp.zeros((2, HEADS, 1, 32))
    text = str(
        jax.make_jaxpr(lambda q: cached_attention(narrow, q, init_cache(narrow, 2, 128), 0, jnp.zeros(2, int)))(q)
    )
    assert "pallas_call" not in text
