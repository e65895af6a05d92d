"""continuous_batching.py: the tokens of `generate`, in slots that are hardly ever idle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax import world
from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.models.config import DecoderConfig, LayerKind
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.rope import Rope
from rcsd_jax.roles.contexts import Role, encode_role, pad_left
from rcsd_jax.sampling import SamplingConfig, generate
from rcsd_jax.sampling.slots import generate_queue
from tests import eight_devices

PAD = 2
CONFIG = DecoderConfig(
    family="qwen3", vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128,
)  # fmt: skip
SAMPLING = SamplingConfig(max_new_tokens=14, temperature=0.8, eos_ids=(3, 5))


def heavy_tailed(count, longest, seed=0):
    """Length limits: four of five short and lognormal, the others anywhere up to the longest."""
    rng = np.random.default_rng(seed)
    short = np.clip(rng.lognormal(np.log(longest / 8), 0.5, count).astype(int), 1, longest)
    return np.where(rng.random(count) < 0.8, short, rng.integers(1, longest + 1, count)).astype(np.int32)


def small(config=CONFIG):
    """Variables of a model whose tokens depend on context, 24 prompts, and keys for three samples of each."""
    params = jax.tree.map(lambda x: x * 15, init_params(config, jax.random.key(0)))
    params = params | {"final_norm": params["final_norm"] / 10}
    rng = np.random.default_rng(1)
    tokens, mask = pad_left([rng.integers(6, 24, size=n) for n in rng.integers(1, 10, size=24)], 10, PAD)
    return {"params": params}, tokens, mask, jax.random.split(jax.random.key(3), 72)


def longer(config=CONFIG):
    """The same with prompts that are prefilled at each of the lengths 16, 32 and 40."""
    rng = np.random.default_rng(2)
    tokens, mask = pad_left([rng.integers(6, 24, size=n) for n in np.linspace(3, 40, 24).astype(int)], 40, PAD)
    variables, _, _, keys = small(config)
    return variables, tokens, mask, keys


def check(variables, tokens, mask, keys, samples_per_prompt, limits, config=CONFIG, **settings):
    """The queue's samples are those of one static batch, cut at their limits; returns both and the occupancy."""
    repeat = lambda x: np.repeat(x, samples_per_prompt, axis=0)
    whole = jax.jit(lambda *a: generate(Decoder(config), *a, SAMPLING, pad_id=PAD))(
        variables, repeat(tokens), repeat(mask), keys
    )
    queue = jax.jit(
        lambda *a: generate_queue(
            Decoder(config),
            *a[:4],
            SAMPLING,
            limits=a[4],
            samples_per_prompt=samples_per_prompt,
            pad_id=PAD,
            **settings,
        )
    )
    ours, occupancy = jax.tree.map(np.asarray, queue(variables, tokens, mask, keys, limits))
    same(ours, jax.tree.map(np.asarray, whole), limits)
    return ours, occupancy


def same(ours, whole, limits):
    lengths = whole.mask.sum(axis=1)
    kept = np.minimum(lengths, np.inf if limits is None else limits)
    mask = np.arange(whole.mask.shape[1]) < kept[:, None]
    np.testing.assert_array_equal(ours.mask, mask)
    np.testing.assert_array_equal(ours.tokens, np.where(mask, whole.tokens, PAD))
    np.testing.assert_allclose(ours.log_probs, np.where(mask, whole.log_probs, 0), rtol=0, atol=2e-3)
    np.testing.assert_array_equal(ours.cut, whole.cut | (kept < lengths))


@pytest.mark.parametrize(
    "slots, refill, samples, layers", [(6, 2, 1, 2), (5, 3, 3, 2), (5, 3, 3, 6), (72, 24, 3, 2), (1, 1, 1, 2)]
)
def test_tokens_are_those_of_a_static_batch(slots, refill, samples, layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    variables, tokens, mask, keys = small(config)
    keys = keys[: 24 * samples]
    limits = None if samples == 1 else heavy_tailed(len(keys), SAMPLING.max_new_tokens)
    ours, occupancy = check(variables, tokens, mask, keys, samples, limits, config, slots=slots, refill=refill)
    assert len(set(map(tuple, ours.tokens))) > 10 and 0 < ours.cut.sum() < len(keys)
    assert occupancy.live == ours.mask.sum() and occupancy.prefills == 24 // refill
    longest = ours.mask.sum(axis=1).max()
    assert max(longest, occupancy.live / slots) <= occupancy.steps <= longest + occupancy.live / slots
    assert slots != 72 or occupancy.steps == longest


def test_prompts_prefilled_at_several_lengths_have_the_tokens_of_a_static_batch():
    config = dataclasses.replace(CONFIG, num_layers=6)
    variables, tokens, mask, keys = longer(config)
    ours, _ = check(variables, tokens, mask, keys[:24], 1, None, config, slots=6, refill=3)
    assert len(set(map(tuple, ours.tokens))) > 10


WINDOWS = dataclasses.replace(CONFIG, window=4, layer_kinds=(LayerKind(True, Rope(1e3)), LayerKind(False, Rope(1e4))))


@pytest.mark.parametrize("drafts, layers", [(0, 2), (3, 5)])
def test_slots_of_a_model_with_windows(drafts, layers):
    """Slots, with drafts too, have the tokens of a static batch; with other windows these are others."""
    config = dataclasses.replace(WINDOWS, num_layers=layers, layer_kinds=(*WINDOWS.layer_kinds * layers,)[:layers])
    variables, tokens, mask, keys = small(config)
    ours, _ = check(variables, tokens, mask, keys[:24], 1, None, config, slots=6, refill=2, draft_tokens=drafts)
    wide = dataclasses.replace(config, window=64)
    other = jax.jit(lambda *a: generate(Decoder(wide), *a, SAMPLING, pad_id=PAD))(variables, tokens, mask, keys[:24])
    assert len(set(map(tuple, ours.tokens))) > 10 and (ours.tokens != np.asarray(other.tokens)).any(axis=1).sum() > 10


@pytest.mark.slow
def test_slots_hardly_idle_on_the_worlds_model_and_tokens_are_those_of_one_row_at_a_time():
    directory, slots, longest = world.base_directory(), 8, 64
    config, params = loading.load_model(directory, dtype=jnp.float32)
    tokenizer = load_tokenizer(directory)
    examples = world.examples("eval", 160)
    rows = [encode_role(tokenizer, e, Role(("question",)), world.PROMPTS, "solve") for e in examples]
    tokens, mask = pad_left(rows, world.QUESTION_TOKENS, PAD)
    keys, limits = jax.random.split(jax.random.key(0), len(rows)), heavy_tailed(len(rows), longest)
    sampling = SamplingConfig(longest, temperature=1.0)  # without an end token the limits are the lengths
    variables = {"params": params}
    queue = jax.jit(lambda *a: generate_queue(Decoder(config), *a[:4], sampling, slots=slots, limits=a[4], pad_id=PAD))
    ours, occupancy = jax.tree.map(np.asarray, queue(variables, tokens, mask, keys, limits))
    np.testing.assert_array_equal(ours.mask.sum(axis=1), limits)
    assert occupancy.live / (slots * occupancy.steps) >= 0.85, occupancy
    waiting = sum(max(limits[i : i + slots]) for i in range(0, len(limits), slots))  # steps of static batches
    assert occupancy.steps < 0.6 * waiting
    one = jax.jit(lambda *a: generate(Decoder(config), *a, sampling, pad_id=PAD))
    chosen = [0, int(limits.argmax()), 57, 110, len(rows) - 1]
    for i in chosen:
        alone = one(variables, tokens[i : i + 1], mask[i : i + 1], keys[i : i + 1])
        n = limits[i]
        np.testing.assert_array_equal(ours.tokens[i, :n], alone.tokens[0, :n])
    together = one(variables, tokens, mask, keys)
    same(ours, jax.tree.map(np.asarray, together), limits)


SCRIPT = """
import json
import jax, numpy as np
from jax.sharding import NamedSharding
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models import sharding
from tests.sampling.test_continuous_batching import CONFIG, PAD, SAMPLING, Decoder, generate_queue, heavy_tailed, longer
variables, tokens, mask, keys = longer()
limits = heavy_tailed(48, SAMPLING.max_new_tokens)
report = {}
for name, shape in {"1": (1, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}.items():
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, variables["params"], param_shardings(CONFIG, mesh))
        def run(params, tokens, mask, limits):
            keys = jax.random.split(jax.random.key(3), 48)
            return generate_queue(
                Decoder(CONFIG), {"params": params}, tokens, mask, keys, SAMPLING, slots=16, refill=8,
                samples_per_prompt=2, limits=limits, pad_id=PAD, draft_tokens=3 if name == "2x2x2" else 0,
            )
        arguments = (placed, *sharding.to_mesh((tokens, mask, limits), mesh))
        samples, occupancy = jax.jit(run)(*arguments)
        report[name] = dict(tokens=np.asarray(samples.tokens).tolist(), mask=np.asarray(samples.mask).tolist(),
            occupancy=[int(x) for x in occupancy], shard=samples.tokens.addressable_shards[0].data.shape)
        try:
            jax.eval_shape(lambda *a: generate_queue(Decoder(CONFIG), {"params": a[0]}, *a[1:3], keys[:24], SAMPLING,
                slots=15, refill=8), *arguments)
        except ValueError as error:
            report[name]["error"] = str(error)
print(json.dumps(report))
"""


@pytest.mark.slow
def test_same_tokens_on_one_device_and_on_eight():
    """With drafts on one of the meshes."""
    report = eight_devices.run(SCRIPT, timeout=400)
    for name in ("1x8x1", "2x2x2"):
        assert report[name]["tokens"] == report["1"]["tokens"] and report[name]["mask"] == report["1"]["mask"], name
        assert report[name]["occupancy"][3] == report["1"]["occupancy"][3] == np.sum(report["1"]["mask"])
        assert "slots = 15" in report[name]["error"]
    assert "error" not in report["1"] and report["1"]["occupancy"][2] == 3
    assert report["1x8x1"]["occupancy"][2] <= 4
    assert (report["1x8x1"]["shard"], report["2x2x2"]["shard"]) == ([6, 14], [12, 14])
