"""`int8_weights`: completions are those of the model with rounded matrices, and only the student's sampling is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from rcsd_jax import losses
from rcsd_jax.models import merged_adapters, sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import SamplingConfig, decoding, generate
from rcsd_jax.sampling.slots import generate_queue
from tests import eight_devices
from tests.models.test_merged_adapters import prompts, variables

SCANNED = DecoderConfig(
    family="qwen3", vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=6, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128, lora_scale=2.0,
)  # fmt: skip
UNROLLED = dataclasses.replace(SCANNED, num_layers=2)
GREEDY = SamplingConfig(max_new_tokens=10, temperature=0.0, eos_ids=(3,))
INT8 = dataclasses.replace(GREEDY, int8_weights=True)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
run = jax.jit(generate, static_argnums=(0, 5))
queue = jax.jit(generate_queue, static_argnums=(0, 5), static_argnames="slots")


def rounded(config, given, sampling):
    """The same model with its matrices as the copy rounds them, in float32; checks that it rounds to the nearest."""
    copy = jax.jit(decoding.sampled_variables, static_argnums=(0, 2))(config, given, sampling)
    layers = dict(given["params"]["layers"])
    for name in MATRICES:
        w = np.asarray(layers[name], np.float64)  # [L, in, out]
        if sampling.merged_adapters:
            a, b = (np.asarray(given["lora"][name][x], np.float64) for x in "ab")
            w = w + config.lora_scale * a @ b
        int8 = np.asarray(copy["params"]["layers"][name].qvalue, np.float64)
        scale = np.abs(w).max(axis=1, keepdims=True) / 127.5
        assert (np.abs(int8 - w / scale) < 0.5001).all() and np.abs(int8).max() >= 127
        layers[name] = jnp.float32(int8 * scale)
    kept = {} if sampling.merged_adapters else {"lora": given["lora"]}
    return {"params": {**given["params"], "layers": layers}, **kept}


def scored(config, given, samples):
    """Log-probabilities [B, N] of samples by the scoring of whole sequences."""
    tokens, mask, _ = prompts()
    hidden = completion_hidden(Decoder(config), given, tokens, mask, samples.tokens, samples.mask)
    head = head_matrix(config, given["params"])
    log_probs, _ = losses.token_log_probs_from_hidden(hidden, head, samples.tokens, chunk_size=8)
    return np.where(samples.mask, log_probs, 0)


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize(
    "config", [SCANNED, pytest.param(UNROLLED, marks=pytest.mark.slow)], ids=["scanned", "unrolled"]
)
def test_completions_are_those_of_the_rounded_model(config, merge):
    given, settings = variables(config), dataclasses.replace(INT8, merged_adapters=merge)
    ours, oracle = run(Decoder(config), given, *prompts(), settings), rounded(config, given, settings)
    np.testing.assert_array_equal(ours.tokens, run(Decoder(config), oracle, *prompts(), GREEDY).tokens)
    np.testing.assert_allclose(ours.log_probs, scored(config, oracle, ours), rtol=0, atol=2e-4)
    assert np.abs(ours.log_probs - scored(config, given, ours)).max() > 1e-2  # the trainer's are others

    queued, _ = queue(Decoder(config), given, *prompts(), settings, slots=2)
    np.testing.assert_array_equal(queued.tokens, ours.tokens)
    np.testing.assert_allclose(queued.log_probs, ours.log_probs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
def test_the_loop_reads_int8(merge):
    settings = dataclasses.replace(INT8, merged_adapters=merge)

    def weights(given):
        copy = decoding.sampled_variables(SCANNED, given, settings)
        return decoding.decoding_weights(Decoder(SCANNED), copy, merge_adapters=merge).variables

    made = jax.eval_shape(weights, variables(SCANNED))
    assert ("lora" in made) is not merge
    layers = made["params"]["layers"]
    assert {name for name, x in layers.items() if isinstance(x, qwix.QArray)} == set(MATRICES)
    assert all(layers[name].qvalue.dtype == jnp.int8 for name in MATRICES)


def test_updates_far_below_a_step_of_int8_are_merged():
    config = dataclasses.replace(SCANNED, hidden_size=512, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    given = variables(config, size=1e-3, targets=("q",))
    w, a, b = (np.asarray(x, np.float64) for x in (given["params"]["layers"]["q"], *given["lora"]["q"].values()))
    wanted = 2.0 * a @ b  # [L, in, out]
    merge = jax.jit(lambda v: merged_adapters.merged(config, v, sharding.SAMPLING_RULES, int8=True))

    def merged(size):
        given["lora"]["q"]["b"] = jnp.float32(size * b)
        q = merge(given)["params"]["layers"]["q"]
        return np.asarray(q.qvalue, np.float64) * np.asarray(q.scale, np.float64), q.scale

    (change, steps), (before, _) = merged(1.0), merged(0.0)
    assert np.abs(wanted).max() < 0.15 * np.asarray(steps).min()
    along = np.einsum("lio,lio->", change - before, wanted) / np.einsum("lio,lio->", wanted, wanted)
    assert abs(along - 1) < 0.25, along


SCRIPT = """
import dataclasses, functools, json
import jax, numpy as np
from rcsd_jax.models import sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.sampling import decoding
from tests.sampling import test_int8_weights as t

given, report = t.variables(t.SCANNED), {}
for name, shape in {"one": {}, "eight": dict(data=2, group=2, fsdp=2)}.items():
    mesh = sharding.make_mesh(**shape, devices=jax.devices()[: 8 if shape else 1])
    with jax.set_mesh(mesh):
        placed = {
            "params": jax.tree.map(jax.device_put, given["params"], param_shardings(t.SCANNED, mesh)),
            "lora": jax.tree.map(jax.device_put, given["lora"], lora_shardings(t.SCANNED, mesh, given["lora"])),
        }
        prompts = [np.concatenate([x, x[:2]]) for x in t.prompts()[:2]]
        keys = jax.vmap(jax.random.key)(np.arange(8))
        for merge in (False, True):
            settings = dataclasses.replace(t.INT8, merged_adapters=merge)
            made = jax.jit(lambda v: decoding.sampled_variables(t.SCANNED, v, settings))(placed)["params"]["layers"]["up"]
            inputs = (Decoder(t.SCANNED), placed, *prompts, keys, settings)
            samples = t.run(*inputs) if merge else t.queue(*inputs, slots=4)[0]
            report[f"{name} {merge}"] = dict(
                values=np.asarray(made.qvalue).tolist(), tokens=np.asarray(samples.tokens).tolist(),
                shards=[x.addressable_shards[0].data.shape for x in (made.qvalue, made.scale)],
            )
print(json.dumps(report))
"""


@pytest.mark.slow
def test_a_mesh_makes_the_same_copy_where_the_weights_lie():
    report = eight_devices.run(SCRIPT)
    for merge in (False, True):
        one, eight = (report[f"{name} {merge}"] for name in ("one", "eight"))
        assert one["shards"] == [[6, 16, 32], [6, 1, 32]] and eight["shards"] == [[6, 4, 32], [6, 1, 32]]
        assert np.mean(np.asarray(one["values"]) == eight["values"]) > 0.999
        assert one["tokens"] == eight["tokens"]
