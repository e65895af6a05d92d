"""models/lora.py: initial values, settings that no adapter can have, and merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.models import lora
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params

RANK, ALPHA = 4, 12
ALL = ("q", "k", "v", "o", "gate", "up", "down")
CONFIG = DecoderConfig(
    family="qwen3", vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, rope_theta=1e4, tie_embeddings=True, max_position=64,
)  # fmt: skip


def test_initial_values():
    def init(key, targets, rank=RANK):
        return lora.init_lora(CONFIG, jax.random.key(key), rank=rank, alpha=ALPHA, targets=targets)

    adapters = init(0, ALL, rank=64)
    assert set(adapters) == set(lora.lora_targets(CONFIG)) == set(ALL)
    assert adapters["down"]["a"].shape == (2, 24, 64)
    assert adapters["k"]["b"].shape == (2, 64, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype(jnp.float32)}
    # peft draws from U(-1/sqrt(in), 1/sqrt(in)): the same standard deviation, so the same first updates of b.
    assert float(adapters["down"]["a"].std()) == pytest.approx((3 * 24) ** -0.5, rel=0.05)
    assert not any(adapter["b"].any() for adapter in adapters.values())
    np.testing.assert_array_equal(init(0, ("v",))["v"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(init(0, ALL)["k"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(init(1, ALL)["v"]["a"], init(0, ALL)["v"]["a"])
    assert not np.array_equal(adapters["q"]["a"][0], adapters["q"]["a"][1])


BAD_SETTINGS = [
    ({"targets": ("q", "gates")}, r"lora\.targets.*gates.*did you mean 'gate'"),
    ({"targets": ("q_proj",)}, "did you mean 'q'"),
    ({"targets": ("embed",)}, "not a LoRA target.*valid: q, k, v, o, gate, up, down"),
    ({"targets": ()}, "names no target"),
    ({"rank": 0}, r"lora\.rank.*positive"),
    ({"alpha": -1}, r"lora\.alpha.*positive"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings(settings, message):
    settings = {"rank": RANK, "alpha": ALPHA, "targets": ("q",), **settings}
    with pytest.raises(UserError, match=message):
        lora.init_lora(CONFIG, jax.random.key(0), **settings)


def test_merging_keeps_the_parameter_dtype_and_rounds_once():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(CONFIG, jax.random.key(0)))
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)
    adapters = {"down": {"a": 0.1 * draw(1, 2, 24, RANK), "b": 0.1 * draw(2, 2, RANK, 16)}}
    merged = lora.merge(params, adapters, 3.0)["layers"]["down"]
    adapter = jax.tree.map(np.float64, adapters["down"])
    exact = np.asarray(params["layers"]["down"], np.float64) + 3.0 * adapter["a"] @ adapter["b"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), exact, rtol=2**-8, atol=1e-6)
    wide = lora.merge(params, adapters, 3.0, dtype=jnp.float32)["layers"]["down"]
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-7)
