"""models/decoder.py: the same hidden states however a sequence is cached, packed, padded or rematerialised."""

import dataclasses
import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models import decoder, rope, stack
from rcsd_jax.models.cache import init_cache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import abstract_params, declarations, init_params, layer_matrices
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.few_layers import decoding_variables
from rcsd_jax.models.norm import rms_norm
from rcsd_jax.models.rope import Llama3Rope

QWEN3 = DecoderConfig(
    family="qwen3", vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128,
)  # fmt: skip
ROPE = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=32)
CONFIGS = {
    "qwen3": QWEN3,
    "qwen2": dataclasses.replace(QWEN3, family="qwen2", qkv_bias=True, qk_norm=False, tie_embeddings=True),
    "llama, six layers": dataclasses.replace(QWEN3, family="llama", qk_norm=False, rope_scaling=ROPE, num_layers=6),
}
SEQUENCE = np.random.default_rng(0).integers(1, 24, size=(2, 11)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, variables, tokens, segment_ids, positions):
    return Decoder(config).apply(variables, tokens, segment_ids=segment_ids, positions=positions)[0]


@functools.cache
def params_of(config):
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    key = jax.random.key(1)  # biases and norms too, so that a forgotten one shows
    return jax.tree.map(lambda x: jnp.where(x == 1, 1, 8 * x) + 0.2 * jax.random.normal(key, x.shape, x.dtype), params)


@functools.cache
def plain(config):
    """Hidden states [2, 11, D] of the sequences on their own, unpadded."""
    ones = jnp.ones(SEQUENCE.shape, jnp.int32)
    return np.asarray(forward(config, {"params": params_of(config)}, SEQUENCE, ones, decoder.positions_from_mask(ones)))


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=atol)


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_declarations_cover_the_tree(config):
    config = dataclasses.replace(config, param_dtype=jnp.bfloat16)
    declared, abstract = declarations(config), abstract_params(config)
    real = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert real == abstract
    paths = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(real)}
    assert {path: (p.shape, jnp.dtype(p.dtype)) for path, p in declared.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in paths.items()
    }
    for path, parameter in declared.items():
        assert len(parameter.axes) == len(parameter.shape)
        assert (path[0] == "layers") == (parameter.axes[0] == "layers")
        assert not parameter.is_matrix or len(parameter.shape) == 2 + (path[0] == "layers")
    assert list(layer_matrices(config)) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert (("head",) in declared) != config.tie_embeddings


def test_parameters_are_drawn_apart():
    params = init_params(QWEN3, jax.random.key(0))
    layers = params["layers"]
    assert abs(float(params["embed"].std()) - 0.02) < 0.004 and (layers["input_norm"] == 1).all()
    assert not np.allclose(layers["q"][0], layers["q"][1]) and not np.allclose(layers["gate"], layers["up"])


def test_linen_init_gives_the_tree_of_init_params_and_nothing_warns():
    config = dataclasses.replace(QWEN3, num_layers=1)  # its own compilation
    ones = jnp.ones(SEQUENCE.shape, jnp.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variables = Decoder(config).init(jax.random.key(0), SEQUENCE, segment_ids=ones, positions=ones)
        adapters = {"q": {"a": jnp.ones((1, 16, 2)), "b": jnp.ones((1, 2, 32))}}
        hidden = forward(config, variables | {"lora": adapters}, SEQUENCE, ones, ones)
    assert set(variables) == {"params"} and np.isfinite(hidden).all()
    assert jax.eval_shape(lambda: variables["params"]) == abstract_params(config)


def test_missing_parameters_are_named():
    params = {k: v for k, v in params_of(QWEN3).items() if k != "final_norm"}
    with pytest.raises(KeyError, match="final_norm"):
        forward(QWEN3, {"params": params}, SEQUENCE, SEQUENCE, SEQUENCE)


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_decoding_is_the_full_forward(config):
    config = dataclasses.replace(config, remat="full")  # which must not matter here
    n, lengths = SEQUENCE.shape[1], np.array([5, 3])
    variables = {"params": params_of(config)}
    run = jax.jit(functools.partial(Decoder(config).apply, variables))
    cache = init_cache(config, 2, n + 4)  # longer than needed: empty places must not be seen
    assert len(cache.k) == (config.num_layers if config.num_layers <= 4 else 1) and cache.length == n + 4
    assert cache.k[0].shape == (config.num_kv_heads, config.num_layers // len(cache.k), 2, n + 4, config.head_dim)
    cache = jax.tree.map(lambda x: x + 50, cache)
    # Each row's own length: what stands after it is padding, and is overwritten.
    places = jnp.broadcast_to(jnp.arange(6), (2, 6))
    mask = (places < lengths[:, None]).astype(jnp.int32)
    hidden, cache = run(SEQUENCE[:, :6], segment_ids=mask, positions=places, cache=cache)
    tolerance = 1e-5 * float(np.abs(plain(config)).max())
    for row, length in enumerate(lengths):
        close(hidden[row, :length], plain(config)[row, :length], tolerance)
    # Three tokens at once, then one by one.
    for width in (3, 1, 1, 1):
        places = lengths[:, None] + jnp.arange(width)
        tokens = jnp.take_along_axis(SEQUENCE, places, axis=1)
        hidden, cache = run(tokens, positions=places, cache=cache, cache_index=jnp.asarray(lengths))
        close(hidden, np.take_along_axis(plain(config), np.asarray(places)[..., None], 1), tolerance)
        lengths = lengths + width
    assert lengths[0] == n and (cache.k[0][:, :, 0, n:] == 50).all() and (cache.k[0][:, :, 0, :n] != 50).any()


def test_unstacked_variables_are_the_same_decoder():
    config = dataclasses.replace(QWEN3, lora_scale=1.5)
    adapters = {"q": {"a": jnp.ones((2, 16, 3)), "b": jax.random.normal(jax.random.key(2), (2, 3, 32))}}
    variables = {"params": params_of(QWEN3), "lora": adapters}
    apart = decoding_variables(config, variables, layer_matrices(config))
    assert len(apart["params"]["layers"]["q"].values) == len(apart["lora"]["q"]["a"]) == 2
    ones, places = jnp.ones(SEQUENCE.shape, jnp.int32), jnp.broadcast_to(jnp.arange(11), SEQUENCE.shape)
    run = lambda v: Decoder(config).apply(
        v, SEQUENCE, segment_ids=ones, positions=places, cache=init_cache(config, 2, 11)
    )
    close(run(apart)[0], run(variables)[0])
    close(run(variables)[0], forward(config, variables, SEQUENCE, ones, places))

    # and token by token, where kernels lie transposed
    cache, hidden = init_cache(config, 2, 11), []
    for t in range(11):
        index = jnp.full((2,), t)
        one, cache = Decoder(config).apply(
            apart, SEQUENCE[:, t : t + 1], positions=index[:, None], cache=cache, cache_index=index
        )
        hidden.append(one)
    close(jnp.concatenate(hidden, axis=1), run(variables)[0])


@pytest.mark.parametrize("layout", ["left", "right", "hole", "everywhere"])
def test_padding_changes_nothing_wherever_it_stands(layout):
    n = SEQUENCE.shape[1]
    gaps = {"left": [0] * 5, "right": [n] * 5, "hole": [4] * 5, "everywhere": [0, 0, 3, 3, 7, n]}[layout]
    mask = np.insert(np.ones(n, bool), gaps, False)
    tokens = np.full((2, len(mask)), 13, np.int32)
    tokens[:, mask] = SEQUENCE
    mask = jnp.asarray(np.stack([mask, mask]))
    hidden = forward(
        QWEN3, {"params": params_of(QWEN3)}, tokens, mask.astype(jnp.int32), decoder.positions_from_mask(mask)
    )
    close(hidden[:, mask[0]], plain(QWEN3))
    assert np.isfinite(hidden).all()


def test_positions_count_real_tokens():
    mask = jnp.asarray([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0] * 6])
    expected = [[0, 0, 0, 1, 1, 2], [0, 1, 2, 2, 2, 2], [0] * 6]
    for dtype in (bool, jnp.int32):
        positions = decoder.positions_from_mask(mask.astype(dtype))
        np.testing.assert_array_equal(positions, expected)
        assert positions.dtype == jnp.int32


def test_packed_segments_are_separate_sequences():
    n = SEQUENCE.shape[1]
    tokens = np.concatenate([SEQUENCE[0], SEQUENCE[1], [13] * 3])[None]
    segment_ids = np.repeat([1, 2, 0], [n, n, 3])[None]
    positions = np.concatenate([np.arange(n), np.arange(n), [0] * 3])[None]
    hidden = forward(QWEN3, {"params": params_of(QWEN3)}, tokens, segment_ids, positions)
    close(hidden[0, : 2 * n].reshape(2, n, -1), plain(QWEN3))
    assert np.isfinite(hidden).all()


def test_a_token_sees_the_past_only():
    changed = SEQUENCE.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 24
    ones = jnp.ones(SEQUENCE.shape, jnp.int32)
    hidden = forward(QWEN3, {"params": params_of(QWEN3)}, changed, ones, decoder.positions_from_mask(ones))
    difference = np.abs(hidden - plain(QWEN3)).max(axis=(0, 2))
    assert (difference[:6] < 1e-6).all() and (difference[6:] > 1e-4).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_wholly_masked_row_is_finite_and_so_is_its_gradient(dtype):
    config = dataclasses.replace(QWEN3, dtype=dtype)
    mask = jnp.asarray([[1] * 11, [0] * 11])

    def total(params):
        positions = decoder.positions_from_mask(mask)
        hidden = forward(config, {"params": params}, SEQUENCE, mask, positions)
        return (hidden.astype(jnp.float32) ** 2).sum(), hidden

    (_, hidden), grads = jax.value_and_grad(total, has_aux=True)(params_of(QWEN3))
    assert hidden.dtype == dtype
    assert all(np.isfinite(x.astype(jnp.float32)).all() for x in (hidden, *jax.tree.leaves(grads)))
    close(hidden[0], plain(QWEN3)[0], 2e-5 if dtype == jnp.float32 else 0.1 * np.abs(plain(QWEN3)).max())


# -- parts -------------------------------------------------------------------------------------------------------------


def test_bfloat16_norm_and_rope_compute_in_float32():
    x = jnp.full((1, 1, 1, 64), 300.0, jnp.bfloat16)
    y = rms_norm(QWEN3, x, jnp.ones(64))
    assert y.dtype == jnp.bfloat16
    close(y, np.ones(x.shape), 0.01)
    close(rms_norm(QWEN3, 0 * x, jnp.ones(64)), np.zeros(x.shape))
    # At position 30001 a bfloat16 angle would be off by many radians.
    cos, sin = rope.cos_and_sin(jnp.asarray([[30001]]), head_dim=64, rope=rope.Rope(1e4))
    assert cos.dtype == sin.dtype == jnp.float32
    angles = 30001 * 1e4 ** (-np.arange(0, 64, 2) / 64)
    close(cos[0, 0, 0], np.tile(np.cos(angles), 2), 5e-3)
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 64)).astype(jnp.bfloat16)
    turned = rope.rotate(x, cos, sin)
    assert turned.dtype == jnp.bfloat16
    first, second = np.split(np.asarray(x[0, 0, 0], np.float64), 2)
    expected = np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )
    close(turned[0, 0, 0], expected, 0.03)


def test_adapters_add_the_scaled_product_where_they_are_and_only_when_given():
    config = dataclasses.replace(QWEN3, lora_scale=1.5)
    params, ones = params_of(QWEN3), jnp.ones(SEQUENCE.shape, jnp.int32)
    shapes = {name: params["layers"][name].shape for name in ("q", "k", "v", "o", "gate", "up", "down")}
    draw = lambda seed, shape: 0.2 * jax.random.normal(jax.random.key(seed), shape)
    adapters = {
        name: {"a": draw(i, (layers, rows, 3)), "b": draw(i + 50, (layers, 3, columns))}
        for i, (name, (layers, rows, columns)) in enumerate(shapes.items())
    }
    run = lambda variables: forward(config, variables, SEQUENCE, ones, decoder.positions_from_mask(ones))
    merged = {n: params["layers"][n] + 1.5 * adapters[n]["a"] @ adapters[n]["b"] for n in adapters}
    expected = run({"params": params | {"layers": params["layers"] | merged}})
    close(run({"params": params, "lora": adapters}), expected, 1e-4)
    some = {name: adapters[name] for name in ("q", "down")}
    expected = run({"params": params | {"layers": params["layers"] | {n: merged[n] for n in some}}})
    close(run({"params": params, "lora": some}), expected, 1e-4)
    assert np.abs(np.asarray(expected) - plain(QWEN3)).max() > 0.1
    close(run({"params": params}), plain(QWEN3))


@pytest.mark.parametrize("layers", [2, 6], ids=["unrolled", "scanned"])
def test_what_layers_report_comes_out_stacked(layers, monkeypatch):
    def reporting(config, weights, adapters, x, tokens, cache, number, recorded):
        return x, cache, {"number": jnp.float32(number) * jnp.ones(3)}

    monkeypatch.setattr(stack, "decoder_layer", reporting)
    config = dataclasses.replace(QWEN3, num_layers=layers, remat="full")
    variables, places = {"params": params_of(config)}, jnp.broadcast_to(jnp.arange(11), SEQUENCE.shape)
    bound = dict(segment_ids=places + 1, positions=places, mutable=["statistics"])
    run = jax.jit(lambda cache: Decoder(config).apply(variables, SEQUENCE, cache=cache, **bound)[1])
    for cache in (None, init_cache(config, 2, 11)):
        reported = run(cache)
        (numbers,) = reported["statistics"]["number"]
        np.testing.assert_array_equal(numbers, np.arange(layers)[:, None] * np.ones(3))


def test_profiles_name_the_parts():
    ones = jnp.ones(SEQUENCE.shape, jnp.int32)
    lowered = forward.lower(QWEN3, {"params": params_of(QWEN3)}, SEQUENCE, ones, ones)
    text = lowered.as_text(debug_info=True)
    for part in ("embed", "attention", "feed_forward", "final_norm"):
        assert re.search(f'["/]{part}/', text), part


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 6])  # unrolled, and a loop
def test_rematerialisation_gives_the_same_gradients(layers):
    base = dataclasses.replace(QWEN3, num_layers=layers, tie_embeddings=True)
    ones, grads, text = jnp.ones(SEQUENCE.shape, jnp.int32), {}, {}
    for remat in ("none", "full"):
        config = dataclasses.replace(base, remat=remat)

        def loss(p, config=config):
            return (forward(config, {"params": p}, SEQUENCE, ones, decoder.positions_from_mask(ones)) ** 3).sum()

        text[remat] = str(jax.make_jaxpr(jax.grad(loss))(params_of(base)))
        grads[remat] = jax.grad(loss)(params_of(base))
    assert "remat" in text["full"] and "remat" not in text["none"]
    for a, b in zip(*map(jax.tree.leaves, grads.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))
        assert np.abs(a).max() > 0
