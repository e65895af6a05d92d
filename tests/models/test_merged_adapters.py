"""models/merged_adapters.py: the same model without adapters, and no small update is rounded away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models import lora, merged_adapters, sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import decoding
from rcsd_jax.sampling.slots import generate_queue
from tests import eight_devices

CONFIG = DecoderConfig(
    family="qwen3", vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128, lora_scale=2.0,
)  # fmt: skip
SCANNED = dataclasses.replace(CONFIG, num_layers=5)
PLAIN = decoding.SamplingConfig(max_new_tokens=10, temperature=0.8, eos_ids=(3,))
MERGED = dataclasses.replace(PLAIN, merged_adapters=True)


def variables(config, size=0.3, targets=None):
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    params = jax.tree.map(lambda x: 10 * x if x.ndim > 2 else x, params)
    params["head"] *= 30  # far from uniform
    targets = targets or lora.lora_targets(config)
    adapters = lora.init_lora(config, jax.random.key(1), rank=3, alpha=6.0, targets=targets)
    noise = lambda number, x: size * jax.random.normal(jax.random.key(number), x.shape)
    adapters = {t: {"a": x["a"], "b": noise(i, x["b"])} for i, (t, x) in enumerate(adapters.items())}
    return {"params": params, "lora": adapters}


def prompts():
    mask = np.arange(9)[None] >= np.arange(6)[:, None]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(6))
    return np.random.default_rng(0).integers(4, 32, (6, 9)).astype(np.int32), mask, keys


@pytest.mark.parametrize("config", [pytest.param(CONFIG, marks=pytest.mark.slow), SCANNED], ids=["unrolled", "scanned"])
def test_completions_are_those_with_adapters(config):
    given = variables(config, targets=("q", "v", "down"))
    run = jax.jit(decoding.generate, static_argnums=(0, 5))
    plain, merged = (run(Decoder(config), given, *prompts(), s) for s in (PLAIN, MERGED))
    np.testing.assert_array_equal(merged.tokens, plain.tokens)
    np.testing.assert_allclose(merged.log_probs, plain.log_probs, rtol=0, atol=1e-4)
    base = run(Decoder(config), {"params": given["params"]}, *prompts(), PLAIN)
    assert (np.asarray(base.tokens) != plain.tokens).mean() > 0.2  # the adapters matter

    queue = jax.jit(generate_queue, static_argnums=(0, 5), static_argnames="slots")
    queued, _ = queue(Decoder(config), given, *prompts(), MERGED, slots=2)
    np.testing.assert_array_equal(queued.tokens, plain.tokens)


@pytest.mark.parametrize("merge", [False, True])
def test_no_adapter_is_left_in_the_loop(merge):
    make = lambda v: decoding.decoding_weights(Decoder(SCANNED), v, merge_adapters=merge).variables
    given = jax.eval_shape(make, variables(SCANNED))
    assert ("lora" in given) is not merge
    made = jax.eval_shape(lambda v: decoding.decoding_weights(Decoder(SCANNED), v).variables, variables(SCANNED))
    assert given["params"] == made["params"]  # the same shapes and dtypes


def test_it_is_the_sum_in_float32():
    given = variables(SCANNED)
    merged = jax.jit(lambda v: merged_adapters.merged(SCANNED, v, sharding.SAMPLING_RULES))(given)["params"]
    for target, adapter in given["lora"].items():
        w, a, b = (np.asarray(x, np.float64) for x in (given["params"]["layers"][target], adapter["a"], adapter["b"]))
        np.testing.assert_allclose(merged["layers"][target], w + 2.0 * a @ b, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(merged["layers"]["input_norm"], given["params"]["layers"]["input_norm"])


def test_a_random_rounding_is_to_a_neighbour_and_right_on_average():
    x = jnp.concatenate([jnp.float32([1.0, -2.5, 0.0]), jax.random.normal(jax.random.key(0), (1000,))])
    draws = jax.vmap(lambda key: merged_adapters.rounded_at_random(x, jnp.bfloat16, key))
    rounded = np.asarray(draws(jax.random.split(jax.random.key(1), 4000)), np.float64)
    assert (rounded[:, :3] == [1.0, -2.5, 0.0]).all()  # what bfloat16 has stays as it is
    x = np.asarray(x, np.float64)
    step = 2.0 ** (np.floor(np.log2(np.abs(x) + (x == 0))) - 7)  # between two bfloat16 numbers
    assert (np.abs(rounded - x) < step).all() and (np.ptp(rounded, axis=0) <= step).all()
    error = (rounded.mean(axis=0) - x) / step
    assert np.abs(error).max() < 5 * 0.5 / np.sqrt(4000)


def test_updates_that_rounding_to_the_nearest_would_lose_are_kept():
    config = dataclasses.replace(SCANNED, hidden_size=512, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    given = variables(config, size=1e-5, targets=("q",))
    merge = jax.jit(lambda v: merged_adapters.merged(config, v, sharding.SAMPLING_RULES))
    merged = merge(given)["params"]["layers"]["q"]
    w, a, b = (np.asarray(x, np.float64) for x in (given["params"]["layers"]["q"], *given["lora"]["q"].values()))
    change = np.asarray(merged, np.float64) - w
    wanted = 2.0 * a @ b  # [L, in, out]
    nearest = np.asarray(lora.merge(given["params"], given["lora"], 2.0)["layers"]["q"], np.float64) - w
    # What an output sums up along an update's own direction.
    along = lambda x: np.einsum("lio,lio->", x, wanted) / np.einsum("lio,lio->", wanted, wanted)
    assert abs(along(nearest)) < 0.5, along(nearest)
    assert abs(along(change) - 1) < 0.25, along(change)
    assert (np.asarray(merged) == np.asarray(merge(given)["params"]["layers"]["q"])).all()


SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.models import merged_adapters, sharding
from tests.models import test_merged_adapters as t
import dataclasses
config = dataclasses.replace(t.SCANNED, dtype=jnp.bfloat16)
given = t.variables(config)
report = {}
for name, shape in {"one": dict(), "eight": dict(group=4, fsdp=2)}.items():
    mesh = sharding.make_mesh(**shape, devices=jax.devices()[: 8 if shape else 1])
    with jax.set_mesh(mesh):
        placed = {
            "params": jax.tree.map(jax.device_put, given["params"], param_shardings(config, mesh)),
            "lora": jax.tree.map(jax.device_put, given["lora"], lora_shardings(config, mesh, given["lora"])),
        }
        made = jax.jit(lambda v: merged_adapters.merged(config, v, sharding.SAMPLING_RULES))(placed)
    made = made["params"]["layers"]
    report[name] = {
        "shard": {target: made[target].addressable_shards[0].data.shape for target in ("up", "down")},
        "values": {target: np.asarray(made[target], np.float32).tolist() for target in ("up", "down")},
    }
print(json.dumps(report))
"""


@pytest.mark.slow
def test_a_mesh_makes_the_same_weights_in_the_layout_of_sampling():
    report = eight_devices.run(SCRIPT, timeout=300)
    assert report["eight"]["shard"] == {"up": [5, 16, 16], "down": [5, 16, 16]}
    for target, one in report["one"]["values"].items():
        eight = report["eight"]["values"][target]
        assert np.mean(np.asarray(one) == eight) > 0.99  # but for sums that end a bit on the other side
        np.testing.assert_allclose(eight, one, rtol=2**-7)
