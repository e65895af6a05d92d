"""The Pallas kernels, interpreted, against attention with its scores in memory: values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models import attention
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder, positions_from_mask
from rcsd_jax.models.kernels import splash


def inputs(length, dtype=jnp.float32, batch=2, heads=4, kv_heads=2, head_dim=32):
    keys = jax.random.split(jax.random.key(length), 4)
    q = jax.random.normal(keys[0], (batch, heads, length, head_dim), dtype)
    k, v = (jax.random.normal(key, (batch, kv_heads, length, head_dim), dtype) for key in keys[1:3])
    weight = jax.random.normal(keys[3], q.shape)
    # Left padding in one row, two segments in the other.
    segment_ids = np.ones((batch, length), np.int32)
    segment_ids[0, : length // 3] = 0
    segment_ids[1:, length // 2 :] = 2
    return q, k, v, weight, jnp.asarray(segment_ids)


@pytest.mark.parametrize("length", [40, 300])
def test_splash_is_masked_attention_with_its_gradients(length):
    q, k, v, weight, segment_ids = inputs(length)
    real = (segment_ids != 0)[:, None, :, None]
    mask = attention.segment_mask(segment_ids)

    def loss(f):
        return lambda q, k, v: jnp.sum(jnp.where(real, f(q, k, v) * weight, 0.0))

    plain = jax.value_and_grad(
        loss(lambda q, k, v: attention.masked_attention(q, k, v, mask, scale=32**-0.5)), argnums=(0, 1, 2)
    )
    kernel = jax.value_and_grad(
        loss(lambda q, k, v: attention.splash_attention(q, k, v, segment_ids, scale=32**-0.5, interpret=True)),
        argnums=(0, 1, 2),
    )
    expected, expected_gradients = plain(q, k, v)
    value, gradients = kernel(q, k, v)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=2e-4, atol=2e-4)


# Packed rows: three segments and padding, of which the kernel skips blocks; one segment; and padding first.
PACKED = {
    "three": [1] * 150 + [2] * 200 + [3] * 90 + [0] * 72,
    "one": [1] * 512,
    "padding first": [0] * 300 + [1] * 212,
}


def packed(segment_ids, **shape):
    """(value, gradients) of splash attention of one row in blocks of 128, and of attention with its scores in memory."""
    q, k, v, weight, _ = inputs(512, batch=1, **shape)
    ids = jnp.asarray([segment_ids], jnp.int32)
    real = (ids != 0)[:, None, :, None]

    def loss(f):
        return jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.where(real, f(q, k, v) * weight, 0.0)), argnums=(0, 1, 2))

    mask = attention.segment_mask(ids)
    plain = loss(lambda q, k, v: attention.masked_attention(q, k, v, mask, scale=32**-0.5))(q, k, v)
    kernel = loss(lambda q, k, v: attention.splash_attention(q, k, v, ids, scale=32**-0.5, interpret=True))(q, k, v)
    return kernel, plain


@pytest.mark.parametrize("name", PACKED)
def test_splash_skips_blocks_without_changing_values_or_gradients(name, monkeypatch):
    monkeypatch.setattr(splash, "_BLOCK", 128)
    (value, gradients), (expected, theirs) = packed(PACKED[name])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for gradient, reference in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=2e-4, atol=2e-4)


def test_with_wide_heads_the_backward_kernel_takes_fewer_keys_at_once(monkeypatch):
    monkeypatch.setattr(splash, "_BLOCK", 256)
    assert [splash._keys_at_once(256, head_dim) for head_dim in (64, 128, 256)] == [256, 256, 128]
    (value, gradients), (expected, theirs) = packed(PACKED["three"], heads=1, kv_heads=1, head_dim=256)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    for gradient, reference in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=2e-3, atol=2e-3)


def test_a_block_that_is_skipped_is_not_computed(monkeypatch):
    """Without the pairs of blocks that two segments share, the values are wrong: so what is skipped is really left out."""
    monkeypatch.setattr(splash, "_BLOCK", 128)
    monkeypatch.setattr(splash, "blocks_of_segments", lambda ids, block: jnp.eye(ids.shape[0] // block, dtype=bool))
    (value, _), (expected, _) = packed(PACKED["one"])
    assert np.isfinite(value) and abs(float(value) - float(expected)) > 1e-2


def test_splash_keeps_within_a_window_that_only_some_layers_have(monkeypatch):
    """One program, of blocks of 128: with and without the window, values and gradients; blocks before it are left out."""
    monkeypatch.setattr(splash, "_BLOCK", 128)
    window, segment_ids = 150, jnp.asarray([[1] * 80 + [2] * 290 + [0] * 14])
    q, k, v, weight, _ = inputs(384, batch=1, heads=2, kv_heads=1)
    real, places = (segment_ids != 0)[:, None, :, None], jnp.arange(384)[None]

    def masked(q, k, v, sliding):
        mask = attention.segment_mask(segment_ids) & (~sliding | attention.near(places, window))
        return attention.masked_attention(q, k, v, mask, scale=0.2)

    def by_kernel(q, k, v, sliding):
        return attention.splash_attention(q, k, v, segment_ids, sliding, scale=0.2, window=window, interpret=True)

    def gradients(f):
        loss = lambda q, k, v, sliding: jnp.sum(jnp.where(real, f(q, k, v, sliding) * weight, 0.0))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

    found = {sliding: gradients(masked)(q, k, v, sliding) for sliding in (True, False)}
    kernel = gradients(by_kernel)
    for sliding, expected in found.items():
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)
        jax.tree.map(close, kernel(q, k, v, sliding), expected)
    assert abs(found[True][0] - found[False][0]) > 1e-2
    monkeypatch.setattr(
        splash, "_only", lambda info, blocks: info._replace(block_mask=info.block_mask * jnp.eye(3, dtype=jnp.int8))
    )
    assert abs(gradients(by_kernel)(q, k, v, True)[0] - found[True][0]) > 1e-2


def test_blocks_that_share_a_segment():
    ids = jnp.asarray([0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 0])
    want = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert splash.blocks_of_segments(ids, 3).astype(int).tolist() == want


@pytest.mark.parametrize("remat", ["attention", "projections"])
def test_what_is_recomputed_changes_no_gradient(remat):
    config = DecoderConfig("qwen3", 50, 32, 48, 2, 4, 2, 8)
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 50)
    mask = jnp.arange(12) >= jnp.array([[0], [4]])

    def loss(params, remat):
        decoder = Decoder(dataclasses.replace(config, remat=remat))
        hidden, _ = decoder.apply(
            {"params": params}, tokens, segment_ids=mask.astype(jnp.int32), positions=positions_from_mask(mask)
        )
        return jnp.sum(jnp.where(mask[..., None], hidden, 0.0) ** 3)

    gradient, expected = (jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in (remat, "none"))
    assert jax.tree.structure(gradient) == jax.tree.structure(expected)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6 * abs(e).max()), gradient, expected)


def test_decoder_with_splash_is_the_decoder():
    config = DecoderConfig("qwen3", 50, 32, 48, 2, 4, 2, 8)
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, 50)
    mask = jnp.arange(20) >= jnp.array([[0], [7]])

    def hidden(kernels):
        decoder = Decoder(dataclasses.replace(config, kernels=kernels))
        y, _ = decoder.apply(
            {"params": params}, tokens, segment_ids=mask.astype(jnp.int32), positions=positions_from_mask(mask)
        )
        return y[mask]

    np.testing.assert_allclose(hidden("pallas_interpret"), hidden("xla"), rtol=1e-4, atol=1e-5)
