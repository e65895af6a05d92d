"""Right kernels pass, interpreted; a kernel that is made wrong is found: in its values, in its gradients only, in what it writes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from rcsd_jax.check import kernels as checked
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK
from rcsd_jax.models import attention, cached_attention, sharding
from rcsd_jax.models import cache as cache_module
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels import few_queries, splash

SHAPE = dict(
    family="qwen3", vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
)  # fmt: skip
WIDE, NARROW = DecoderConfig(**SHAPE, head_dim=128), DecoderConfig(**SHAPE, head_dim=32)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(checked, "SHORT", 128)


def rows(config=WIDE):
    return checked._whole_sequences(config, False, "rows", checked.SHORT)


def test_right_kernels(monkeypatch):
    monkeypatch.setattr(checked, "LONG", 384)
    monkeypatch.setattr(splash, "_BLOCK", 128)
    findings = checked.check_kernels(WIDE, sharding.make_mesh(devices=jax.devices()[:1]), int8_cache=False, drafts=0)
    assert [finding.verdict for finding in findings] == [OK] * 5
    assert all(max(f.numbers["kernel"].values()) < 2e-5 for f in findings[:4])


def test_bfloat16_is_held_to_its_own_rounding():
    found = rows(DecoderConfig(**SHAPE, head_dim=32, dtype=jnp.bfloat16))
    assert found.verdict == OK and 1e-3 < found.numbers["kernel"]["values"] < checked.LIMITS["bfloat16"][0]


@pytest.mark.parametrize("window, verdict", [(20, OK), (21, FAILED)])
def test_a_window_is_that_of_the_model(window, verdict, monkeypatch):
    """The kernels are given a window of 20 tokens, or by mistake of 21."""
    monkeypatch.setattr(checked, "WINDOW", 20)
    right = attention.splash_attention
    monkeypatch.setattr(attention, "splash_attention", lambda *a, **kw: right(*a, **kw | {"window": window}))
    config = checked._plain(dataclasses.replace(NARROW, window=4096))
    assert checked._whole_sequences(config, False, "rows", checked.SHORT, True).verdict == verdict


def test_heads_for_which_there_is_no_kernel():
    assert checked._cached(NARROW, False, "paged", 1, False).verdict == NOT_CHECKED
    assert checked._write(NARROW, False, False, 1).verdict == NOT_CHECKED


def test_wrong_values_of_one_head_are_found(monkeypatch):
    right = splash.attend
    monkeypatch.setattr(splash, "attend", lambda *a, **kw: right(*a, **kw).at[-1, -1, 5].multiply(1.01))
    found = rows(NARROW)
    assert found.verdict == FAILED and found.measured.startswith("values differ by 0.01")


def test_wrong_gradients_are_found_though_values_are_right(monkeypatch):
    right = splash.attend

    def attend(q, k, v, *rest, **settings):
        function = functools.partial(right, **settings)

        @jax.custom_vjp
        def wrong(q, k, v):
            return function(q, k, v, *rest)

        def backward(inputs, gradient):
            of_q, of_k, of_v = jax.vjp(lambda *x: function(*x, *rest), *inputs)[1](gradient)
            return of_q, of_k * 1.02, of_v

        wrong.defvjp(lambda *inputs: (wrong(*inputs), inputs), backward)
        return wrong(q, k, v)

    monkeypatch.setattr(splash, "attend", attend)
    found = rows(NARROW)
    assert found.verdict == FAILED and "values" not in found.measured.replace("gradient of values", "")
    assert "gradient of keys" in found.measured and "gradient of queries" not in found.measured


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_kernel_that_sees_a_place_too_few_is_found(tokens, monkeypatch):
    module, name = (cached_attention, "_single") if tokens == 1 else (few_queries, "attend")
    right = getattr(module, name)
    late = lambda q, k, v, index, *rest, scale: right(q, k, v, jnp.maximum(index - 1, 0), *rest, scale=scale)
    monkeypatch.setattr(module, name, late)
    assert checked._cached(WIDE, False, "cached", tokens, False).verdict == FAILED


@pytest.mark.parametrize("window, verdict", [(150, OK), (149, FAILED)])
def test_a_ring_is_that_of_the_models_window(window, verdict, monkeypatch):
    right = few_queries.attend
    attend = lambda *a, **how: right(*a[:-1], jnp.int32(window), **how)
    monkeypatch.setattr(few_queries, "attend", attend)
    config = checked._plain(dataclasses.replace(WIDE, num_layers=6, window=4096))
    assert checked._in_ring(config, False, "ring", 2, False).verdict == verdict


def test_a_write_to_another_place_is_found(monkeypatch):
    monkeypatch.setattr(cache_module, "write_places", lambda pool, *_, **how: pool.at[0, 1, 0, 0, 0].add(1.0))
    found = checked._write(WIDE, False, False, 1)
    assert found.verdict == FAILED and found.numbers["differing"] > 1
