"""models/cache_places.py: a ring holds what a window shows, and all that samples gives the same with rings as without."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rcsd_jax.models.cache import init_cache, int8_cache, with_rings, write
from rcsd_jax.models.cache_places import folded, layers_of, ring_places
from rcsd_jax.models.cached_attention import cached_attention
from rcsd_jax.models.config import LayerKind
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.rope import Rope
from rcsd_jax.sampling import SamplingConfig, decoding, generate
from tests import eight_devices
from tests.models.test_cache import HEAD_DIM, HEADS, KV_HEADS, config, filled
from tests.sampling import test_continuous_batching as small_models

NEAR, FAR = LayerKind(True, Rope(1e3)), LayerKind(False, Rope(1e4))


def sliding(config, kinds, window):
    return dataclasses.replace(config, num_layers=len(kinds), layer_kinds=kinds, window=window)


def test_a_ring_is_as_long_as_a_window_and_its_drafts_and_never_as_long_as_a_row():
    plain, pallas = (sliding(config(kernels), (NEAR, FAR), 100) for kernels in ("xla", "pallas"))
    assert [ring_places(plain, n) for n in (100, 101)] == [None, 100] and ring_places(plain, 200, 5) == 104
    assert [ring_places(pallas, n) for n in (128, 129)] == [None, 128] and ring_places(pallas, 999, 30) == 256
    assert ring_places(config(), 1000) is None


def test_a_row_is_folded_to_its_last_places():
    """By a loop over positions. Rows are shorter than a ring, as long, and up to several turns."""
    lengths, places, ring = [2, 5, 6, 13, 17], 17, 5
    pool = jax.random.normal(jax.random.key(0), (2, 3, len(lengths), places, 4))
    got = np.asarray(folded(pool, jnp.asarray(lengths), ring))
    assert got.shape[3] == ring
    for row, length in enumerate(lengths):
        for position in range(max(length - ring, 0), length):
            np.testing.assert_array_equal(got[:, :, row, position % ring], pool[:, :, row, position])
    np.testing.assert_array_equal(folded(pool, jnp.asarray(lengths), 20), pool)


@pytest.mark.parametrize("kernels, tokens, int8, kinds", [
    ("xla", 3, True, (NEAR, NEAR, NEAR, FAR, NEAR)), ("xla", 3, False, (FAR, NEAR)), ("pallas", 3, True, (NEAR, NEAR, NEAR, FAR, NEAR)),
    pytest.param("pallas", 1, False, (FAR, NEAR, NEAR, NEAR, NEAR), marks=pytest.mark.slow),
])  # fmt: skip
def test_attention_to_rings_is_attention_to_windows(kernels, tokens, int8, kinds):
    """Prompts, then new tokens, of which all but the first are rejected, then others, in every layer. Writes go on at a ring's beginning."""
    c = sliding(config(kernels), kinds, 98 if kernels == "pallas" else 40)
    places = 384
    lengths = jnp.asarray([1, 97, 127, 381 - tokens])
    ring = ring_places(c, places, tokens)
    # Exact in bfloat16, as which the paged kernel reads keys and values.
    rounded = lambda x: x.astype(jnp.bfloat16).astype(x.dtype)
    whole = jax.tree.map(rounded, filled(c, 4, places))
    used = (jnp.arange(places) < lengths[:, None])[:, :, None]
    whole = jax.tree.map(lambda x: jnp.where(used, x, 0), whole)
    whole = int8_cache(whole, lengths) if int8 else whole
    rings = with_rings(c, whole, lengths, places, ring)
    assert rings.ring.length == ring < places and len(rings.ring.k) == (kinds.count(NEAR) if len(kinds) < 5 else 1)
    shapes = lambda cache: jax.tree.map(lambda x: (x.shape, x.dtype), cache)
    assert shapes(rings) == shapes(init_cache(c, 4, places, int8=int8, ring=ring))
    draw = lambda seed, heads: rounded(jax.random.normal(jax.random.key(seed), (4, heads, tokens, HEAD_DIM)))

    def both(config, q, k, v, cache, layer, index):
        cache = write(config, cache, k, v, layer, index)
        of_kind = jnp.asarray([kind.sliding for kind in kinds])[layer]
        return cache, cached_attention(config, q, cache, layer, index, of_kind)

    number = int if len(kinds) < 5 else jnp.asarray  # of an unrolled decoder it is static
    run = jax.jit(both, static_argnums=(0, 5) if len(kinds) < 5 else 0)
    plain = dataclasses.replace(c, kernels="xla")
    interpreted = pltpu.force_tpu_interpret_mode if kernels == "pallas" else contextlib.nullcontext
    visited = range(0, len(kinds), 1 if kernels == "xla" else 3)
    for index in (lengths, lengths + 1):
        for layer in visited:
            new = draw(3 * layer, HEADS) / 4, draw(3 * layer + 1, KV_HEADS), draw(3 * layer + 2, KV_HEADS)
            whole, exact = run(plain, *new, whole, number(layer), index)
            with interpreted():
                rings, got = run(c, *new, rings, number(layer), index)
            np.testing.assert_allclose(got, exact, rtol=0, atol=3e-2 if int8 else 2e-4)
    of_rows = with_rings(c, whole, lengths + 1 + tokens, places, ring).ring
    written = [i for i, layer in enumerate(layers_of(c)[1]) if layer in visited]
    for ours, theirs in ((rings.ring.k, of_rows.k), (rings.ring.v, of_rows.v)):
        ours, theirs = (np.concatenate(pools, axis=1)[:, written] for pools in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


KINDS = {"scanned": (NEAR,) * 5 + (FAR,), "unrolled": (NEAR, FAR, NEAR), "all": (NEAR,) * 5}


@pytest.mark.parametrize("kinds, int8", [("scanned", False), ("scanned", True), ("unrolled", True), ("all", False)])
def test_samples_are_those_without_rings(kinds, int8, monkeypatch):
    """Prompts of 1 to 9 tokens, a window of 4, and completions that go around the ring more than twice."""
    c = sliding(small_models.CONFIG, KINDS[kinds], 4)
    variables, tokens, mask, keys = small_models.small(c)
    sampling = SamplingConfig(max_new_tokens=14, temperature=0.8, eos_ids=(3, 5), int8_cache=int8)
    seen = []
    kept = decoding.with_rings
    monkeypatch.setattr(decoding, "with_rings", lambda *a: seen.append(a[-1]) or kept(*a))
    run = lambda: jax.jit(lambda *a: generate(Decoder(c), *a, sampling))(variables, tokens, mask, keys[:24])
    ours = run()
    assert seen == [4] and ours.mask.sum(axis=1).max() == 14
    monkeypatch.setattr(decoding, "ring_places", lambda *a: None)
    whole = run()
    np.testing.assert_array_equal(ours.tokens, whole.tokens)
    np.testing.assert_allclose(ours.log_probs, whole.log_probs, rtol=0, atol=2e-4)


def test_a_scanned_decoder_copies_no_pool_in_its_loop():
    c = sliding(small_models.CONFIG, KINDS["scanned"], 4)
    rows = jax.eval_shape(lambda: decoding.Rows(jnp.zeros((3, 16)), init_cache(c, 3, 31, ring=4), jnp.zeros(3, int)))
    variables, *_ = small_models.small(c)
    weights = jax.eval_shape(lambda: decoding.decoding_weights(Decoder(c), variables))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    step = lambda weights, rows, keys: decoding.decode_step(Decoder(c), weights, rows, keys, small_models.SAMPLING)
    text = jax.jit(step, donate_argnums=1).lower(weights, rows, keys).compile().as_text()
    assert "f32[2,5,3,4,8]" in text and "f32[2,1,3,31,8]" in text and "conditional(" in text
    copies = [line for line in text.splitlines() if " copy(" in line or " copy-start(" in line]
    assert not [line for line in copies if "[2,5,3,4,8]" in line or "[2,1,3,31,8]" in line]


SCRIPT = """
import dataclasses, jax, numpy as np
from rcsd_jax.models import placement, sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling.slots import generate_queue
from tests.models import test_rings
from tests.sampling.test_continuous_batching import CONFIG, SAMPLING, small

config = test_rings.sliding(CONFIG, test_rings.KINDS["scanned"], 4)
variables, tokens, mask, keys = small(config)
run = jax.jit(lambda *a: generate_queue(Decoder(config), *a, SAMPLING, slots=8, refill=4, draft_tokens=2))
alone, _ = jax.tree.map(np.asarray, run(variables, tokens, mask, keys[:24]))
mesh = sharding.make_mesh(2, 2, 2)
with jax.set_mesh(mesh):
    params = jax.device_put(variables["params"], placement.param_shardings(config, mesh))
    place = lambda x: jax.device_put(x, sharding.batch_sharding(mesh))
    ours, _ = jax.tree.map(np.asarray, run({"params": params}, place(tokens), place(mask), place(keys[:24])))
np.testing.assert_array_equal(ours.tokens, alone.tokens)
print(int(ours.mask.sum()))
"""


@pytest.mark.slow
def test_on_a_mesh_tokens_are_those_of_one_device():
    assert eight_devices.run(SCRIPT, timeout=500) > 100
