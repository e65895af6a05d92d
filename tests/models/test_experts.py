"""models/experts.py: mixtures of experts against NumPy in float64, against torch's gradients, and on eight devices."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models import dealt_experts, experts, quantization, router
from rcsd_jax.models.cache import init_cache
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params, layer_matrices
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.few_layers import decoding_variables
from rcsd_jax.models.kernels.grouped_matmul import grouped_matmul
from rcsd_jax.models.lora import merge
from rcsd_jax.models.merged_adapters import merged
from rcsd_jax.models.quantization import FORMS, quantized
from rcsd_jax.models.sharding import AXES, DEFAULT_RULES
from rcsd_jax.models.weights import OfStack, plain
from tests import eight_devices

CONFIG = DecoderConfig(
    family="qwen3_moe", vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, max_position=128, num_experts=8, experts_per_token=3, expert_size=12, renormalised=True,
)  # fmt: skip
BLOCK = tuple(experts.declared(CONFIG))


@functools.cache
def params():
    drawn = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.where(x == 1, 1, 8 * x), drawn)


def adapters(config=CONFIG, rank=2):
    """Adapters of the experts, of one layer, that change something."""
    keys = iter(jax.random.split(jax.random.key(5), 6))
    shapes = {name: experts.declared(config)[name].shape for name in experts.NAMES}
    return {
        name: {
            "a": jax.random.normal(next(keys), (*shape[:-1], rank)),
            "b": 0.1 * jax.random.normal(next(keys), (shape[0], rank, shape[-1])),
        }
        for name, shape in shapes.items()
    }


def in_numpy(config, weights, h, real):
    """The block one token and one expert at a time, in float64, and how many tokens each expert has."""
    w = {name: np.asarray(x, np.float64) for name, x in weights.items()}
    out, load = np.zeros(h.shape), np.zeros(config.num_experts)
    for place in np.ndindex(h.shape[:2]):
        if not real[place]:
            continue
        x = np.asarray(h[place], np.float64)
        logits = w["router"] @ x
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        chosen = np.argsort(-probabilities, kind="stable")[: config.experts_per_token]
        total = probabilities[chosen].sum() if config.renormalised else 1.0
        for e in chosen:
            gate, up = x @ w["expert_gate"][e], x @ w["expert_up"][e]
            out[place] += probabilities[e] / total * ((gate / (1 + np.exp(-gate)) * up) @ w["expert_down"][e])
            load[e] += 1
    return out, load


def block(empty=()):
    """The weights of one layer's block; the router never chooses the experts `empty`."""
    weights = {name: params()["layers"][name][0] for name in BLOCK}
    # The first channel of h is 1, see `inputs`.
    weights["router"] = weights["router"].at[list(empty), 0].set(-100.0) if empty else weights["router"]
    return weights


def inputs():
    h = jax.random.normal(jax.random.key(3), (2, 7, CONFIG.hidden_size)).at[..., 0].set(1.0)
    return h, np.arange(7) >= np.array([[0], [3]])


@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize("empty", [(), (0, 3, 7), (1, 2, 4, 5, 6)])
def test_the_block_is_that_of_numpy(renormalised, empty):
    """Also with experts that no token chooses, first, last and between."""
    config = dataclasses.replace(CONFIG, renormalised=renormalised)
    weights, (h, real) = block(empty), inputs()
    out, reported = experts.apply(config, weights, {}, h, jnp.asarray(real))
    expected, load = in_numpy(config, weights, h, real)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(reported["expert_load"], load)
    assert load.sum() == 3 * real.sum() and (load[list(empty)] == 0).all() and np.abs(expected).max() > 0.1


def test_without_a_mask_all_tokens_are_real():
    weights, (h, _) = block(), inputs()
    out, reported = experts.apply(CONFIG, weights, {}, h, None)
    expected, load = in_numpy(CONFIG, weights, h, np.ones(h.shape[:2], bool))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(reported["expert_load"], load)


def test_the_activation_is_the_families():
    h, weights, real = inputs()[0], block(), None
    of = lambda name: experts.apply(dataclasses.replace(CONFIG, activation=name), weights, {}, h, real)[0]
    one = dataclasses.replace(CONFIG, num_experts=1, experts_per_token=1, activation="gelu_tanh")
    only = {name: x[:1] for name, x in weights.items()}
    x = np.asarray(h, np.float64)
    gate, up = (x @ np.asarray(only[f"expert_{side}"][0], np.float64) for side in ("gate", "up"))
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    wanted = (gelu * up) @ np.asarray(only["expert_down"][0], np.float64)
    np.testing.assert_allclose(experts.apply(one, only, {}, h, real)[0], wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(of("gelu_tanh") - of("silu")).max() > 1e-2


def test_adapters_of_experts_are_matrices_that_are_added():
    config = dataclasses.replace(CONFIG, lora_scale=1.5)
    weights, (h, real), lora = block(), inputs(), adapters()
    out, _ = experts.apply(config, weights, lora, h, jnp.asarray(real))
    whole = weights | {n: weights[n] + 1.5 * jnp.einsum("eir,ero->eio", lora[n]["a"], lora[n]["b"]) for n in lora}
    expected, _ = in_numpy(config, whole, h, real)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - in_numpy(config, weights, h, real)[0]).max() > 0.1 * np.abs(expected).max()
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), lora)
    variables = {"params": params(), "lora": stacked}
    both = merge(params(), stacked, 1.5), merged(config, variables, DEFAULT_RULES)["params"]
    for name in lora:
        for one in both:
            np.testing.assert_allclose(one["layers"][name][0], whole[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_quantized_experts_are_their_rounded_matrices(form, monkeypatch):
    monkeypatch.setattr(quantization, "GROUP", 4)
    small = quantized(CONFIG, params(), form)["layers"]
    weights, (h, real) = block(), inputs()
    rounded = dict(weights)
    for name in experts.NAMES:
        scale = np.asarray(small[name].scale[0], np.float64)
        values = np.asarray(small[name].qvalue[0], np.float64)
        rounded[name] = values * scale.repeat(values.shape[1] // scale.shape[1], axis=1)
    for name in experts.NAMES:  # every expert and column has a scale of its own
        groups = weights[name].shape[1] // 4 if form == "int4" else 1
        assert small[name].scale.shape == (2, 8, groups, weights[name].shape[-1])
        step = np.abs(weights[name]).max(axis=1, keepdims=True) / (127 if form == "int8" else 7)
        assert (np.abs(rounded[name] - weights[name]) <= (0.51 if form == "int8" else 1.0) * step).all()
    fewer_bits = weights | {n: jax.tree.map(lambda x: x[0], small[n]) for n in experts.NAMES}
    out, _ = experts.apply(CONFIG, fewer_bits, {}, h, jnp.asarray(real))
    expected, _ = in_numpy(CONFIG, rounded, h, real)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(130, 0, 5, 64), (0, 0, 3, 0)])
def test_gradients_by_kernels_are_those_of_xla(sizes):
    """Of a layer in a stack; with rows after the last group, whose products are 0, and empty groups."""
    sizes = jnp.asarray(sizes, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    x, stack = jax.random.normal(keys[0], (210, 40)), jax.random.normal(keys[1], (2, 4, 40, 24))
    weigh = jax.random.normal(keys[2], (210, 24))

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(x, w, kernels, layer=None):
        y = grouped_matmul(x, w, sizes, kernels, layer)
        return (weigh * y).sum(), y

    found = loss(x, stack, "pallas_interpret", 1)
    expected = loss(x, stack[1], "xla")
    placed = lambda gradient: jnp.zeros_like(stack).at[1].set(gradient)
    expected = expected[0], (expected[1][0], placed(expected[1][1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected)
    assert np.abs(expected[1][1]).max() > 1 and not np.asarray(found[0][1])[int(sizes.sum()) :].any()


def test_matrices_in_a_stack_are_read_there():
    """By the kernels, in int8 too, and with adapters."""
    h, real = inputs()
    small = quantized(CONFIG, params())["layers"]
    by_kernels = dataclasses.replace(CONFIG, kernels="pallas_interpret")
    for layers in (params()["layers"], small):
        of_layer = {name: jax.tree.map(lambda x: x[1], layers[name]) for name in BLOCK}
        expected, _ = experts.apply(CONFIG, of_layer, adapters(), h, jnp.asarray(real))
        whole = experts.whole(by_kernels, layers)
        assert set(whole) == set(experts.NAMES)
        in_stack = of_layer | {name: OfStack(stack, 1) for name, stack in whole.items()}
        out, _ = jax.jit(experts.apply, static_argnums=0)(by_kernels, in_stack, adapters(), h, jnp.asarray(real))
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_layer_gets_its_own_matrices_where_they_are_gathered_or_converted(monkeypatch):
    monkeypatch.setattr(quantization, "GROUP", 4)
    by_kernels, layers = dataclasses.replace(CONFIG, kernels="pallas"), params()["layers"]
    assert not experts.whole(CONFIG, layers)
    assert not experts.whole(dataclasses.replace(by_kernels, dtype=jnp.bfloat16), layers)
    assert not experts.whole(by_kernels, quantized(CONFIG, params(), "int4")["layers"])
    for shape, kept in ((dict(fsdp=2), 0), (dict(expert=2), 3)):
        sizes = {name: shape.get(name, 1) for name in AXES}
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(tuple(sizes.values()), AXES)):
            assert len(experts.whole(by_kernels, layers)) == kept
            assert len(experts.whole(dataclasses.replace(by_kernels, layout="sampling"), layers)) == 3


@pytest.mark.parametrize("kernels, tokens, rows", [("xla", 9, 8), ("xla", 9, 1000), ("pallas_interpret", 150, 256)])
def test_a_devices_rows_in_parts_are_all_its_rows(kernels, tokens, rows):
    """Values and all gradients, against every expert for every token. The devices' routes lie one after the other, as gathered."""
    config, devices, k, own = dataclasses.replace(CONFIG, kernels=kernels), 3, CONFIG.experts_per_token, 2
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((devices * tokens, 8)) * (1 + np.arange(8)), axis=1)[
        :, :k
    ]  # the first are chosen most
    shares = rng.random(chosen.shape).astype(np.float32)
    routes = chosen.reshape(devices, tokens * k)
    order = np.argsort(routes, axis=1, kind="stable")
    counts = np.stack([np.bincount(row, minlength=8) for row in routes])
    device = np.arange(devices)[:, None]
    dealt = dealt_experts.Dealt(
        *(jnp.asarray(y, jnp.int32) for y in (
            (order // k + device * tokens).reshape(-1),
            np.cumsum(counts[:, :own].T.reshape(-1)),
            (np.cumsum(counts, axis=1) - counts + device * tokens * k)[:, :own].T.reshape(-1),
            counts[:, :own].sum(axis=0),
        ))
    )  # fmt: skip
    assert (rows < counts[:, :own].sum()) == (rows != 1000)
    parts = {name: {"w": x[:own]} for name, x in block().items() if name in experts.NAMES}
    x = jax.random.normal(jax.random.key(3), (devices * tokens, CONFIG.hidden_size))
    weigh = jax.random.normal(jax.random.key(4), x.shape)

    def ours(parts, x, shares):
        of_routes = jnp.take_along_axis(shares.reshape(devices, -1), order, axis=1).reshape(-1)
        out = dealt_experts.given(config, rows, parts, x, of_routes, dealt)
        return (weigh * out).sum(), out

    def theirs(parts, x, shares):  # one expert after the other
        out = jnp.zeros_like(x)
        for e in range(own):
            gate, up = (x @ parts[name]["w"][e] for name in experts.NAMES[:2])
            share = jnp.where(chosen == e, shares, 0).sum(axis=1)[:, None]
            out += share * ((jax.nn.silu(gate) * up) @ parts[experts.NAMES[2]]["w"][e])
        return (weigh * out).sum(), out

    compute = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(parts, x, shares)
    for a, b in zip(jax.tree.leaves(compute(ours)), jax.tree.leaves(compute(theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))
    if kernels == "xla":
        return
    # Matrices in int8 and in a stack get no gradient, and pass on that of the rows.
    small = quantized(config, params())["layers"]
    rounded = {name: {"w": plain(jax.tree.map(lambda x: x[0, :own], small[name]), jnp.float32)} for name in parts}
    parts = {
        name: {"w": small[name].qvalue[:, :own], "scale": small[name].scale[:, :own], "layer": jnp.int32(0)}
        for name in parts
    }
    of_int8 = jax.grad(lambda x: ours(parts, x, shares)[0])(x)
    np.testing.assert_allclose(of_int8, jax.grad(lambda x: theirs(rounded, x, shares)[0])(x), rtol=0, atol=1e-3)


def test_a_frozen_router_gets_no_gradient_and_passes_on_that_of_its_input():
    weights, (h, real) = block(), inputs()

    def loss(router_matrix, h, train):
        config = dataclasses.replace(CONFIG, train_router=train)
        out, _ = experts.apply(config, weights | {"router": router_matrix}, {}, h, jnp.asarray(real))
        return jnp.square(out).sum()

    of_router, of_input = zip(
        *(jax.grad(loss, argnums=(0, 1))(weights["router"], h, t) for t in (True, False)), strict=True
    )
    assert np.abs(of_router[0]).max() > 1e-3 and not np.any(of_router[1])
    np.testing.assert_array_equal(*of_input)


def test_experts_are_targets_of_adapters_and_the_router_is_not():
    assert list(layer_matrices(CONFIG)) == ["q", "k", "v", "o", *experts.NAMES]
    assert layer_matrices(CONFIG)["expert_down"].shape == (2, 8, 12, 16)


def test_statistics_are_of_real_tokens_of_every_layer():
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 1, 24)
    mask = jnp.asarray(np.arange(9) >= np.array([[0], [4]]), jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, tokens):
        variables, places = {"params": params()}, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        how = dict(segment_ids=mask, positions=places, mutable=["statistics"])
        return Decoder(config).apply(variables, tokens, **how)[1]["statistics"]["expert_load"][0]

    load = run(CONFIG, tokens)
    assert load.shape == (2, 8) and (load.sum(axis=1) == 3 * mask.sum()).all()
    np.testing.assert_array_equal(load, run(CONFIG, jnp.where(mask > 0, tokens, 7)))  # padding is any token
    np.testing.assert_array_equal(load, run(dataclasses.replace(CONFIG, remat="full"), tokens))


def test_single_tokens_go_the_way_of_whole_sequences():
    """Through the cache, with the layers apart, as the sampler decodes."""
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 1, 24)
    places = jnp.broadcast_to(jnp.arange(6), (2, 6))
    model, variables = Decoder(CONFIG), {"params": params()}
    whole, _ = model.apply(variables, tokens, segment_ids=jnp.ones_like(tokens), positions=places)
    apart = decoding_variables(CONFIG, variables, layer_matrices(CONFIG))
    step = jax.jit(functools.partial(model.apply, apart))
    cache = init_cache(CONFIG, 2, 8)
    for t in range(6):
        now = jnp.full((2, 1), t)
        hidden, cache = step(tokens[:, t : t + 1], positions=now, cache=cache, cache_index=now[:, 0])
        np.testing.assert_allclose(hidden[:, 0], whole[:, t], rtol=0, atol=1e-5 * float(jnp.abs(whole).max()))


def test_router_probabilities_are_of_float32():
    """In bfloat16, logits that are this near to each other would be one number, and the lower expert would win."""
    matrix = jnp.zeros((8, 16)).at[2, 0].set(1.0).at[5, :2].set(jnp.array([1.0, 2**-7]))
    h = jnp.zeros((1, 1, 16), jnp.bfloat16).at[..., 0].set(64.0).at[..., 1].set(1.0)
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16, experts_per_token=1)
    chosen, _ = router.routes(config, matrix, h, None)
    assert int(chosen.experts[0, 0, 0]) == 5


# -- eight devices -----------------------------------------------------------------------------------------------------

EIGHT = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from rcsd_jax.models import decoder, sharding
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.placement import check_divisible, lora_shardings, param_shardings
from rcsd_jax.models.quantization import on_mesh
from rcsd_jax.sampling import SamplingConfig, generate
from tests.models.test_experts import CONFIG, adapters, params
one = jax.tree.map(np.asarray, params())
lora = jax.tree.map(lambda x: np.stack([x, 2 * x]), adapters())
rng = np.random.default_rng(0)
tokens, mask = rng.integers(1, 24, size=(8, 8)).astype(np.int32), np.arange(8)[None] >= np.arange(8)[:, None] % 4

def loss(variables, config, tokens, mask):
    model = decoder.Decoder(config)
    how = dict(segment_ids=mask.astype(jnp.int32), positions=decoder.positions_from_mask(mask), mutable=["statistics"])
    (hidden, _), seen = model.apply(variables, tokens, **how)
    logits = hidden @ head_matrix(config, variables["params"])
    return jnp.where(mask[..., None], jnp.square(logits), 0).sum(), seen["statistics"]["expert_load"][0]

report = {}
for name, shape in {"one": {}, **json.loads(sys.argv[1])}.items():
    devices = jax.devices()[: int(np.prod(list(shape.values())))]
    mesh = sharding.make_mesh(**shape, devices=devices)
    config = dataclasses.replace(CONFIG, layout="split" if name == "split" else "train")
    check_divisible(config, mesh, {})
    with jax.set_mesh(mesh):
        place = {"params": param_shardings(config, mesh), "lora": lora_shardings(config, mesh, lora)}
        on = jax.tree.map(jax.device_put, {"params": one, "lora": lora}, place)
        rows = sharding.to_mesh((tokens, mask), mesh)
        compute = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1, out_shardings=((None, None), place))
        (value, load), gradient = compute(on, config, *rows)
        found = {"loss": float(value), "load": load.tolist(), "gradient": jax.tree.map(lambda x: np.asarray(x).tolist(), gradient)}
        found["held"] = on["params"]["layers"]["expert_up"].addressable_shards[0].data.shape
        if name != "split":
            keys = jax.vmap(jax.random.key)(jnp.arange(8))
            int8 = {"params": on_mesh(config, on["params"], mesh), "lora": on["lora"]}
            for kind, variables in (("samples", on), ("of int8", int8)):
                draw = jax.jit(lambda v: generate(decoder.Decoder(config), v, *rows, keys, SamplingConfig(5)))
                found[kind] = np.asarray(draw(variables).tokens).tolist()
        report[name] = found
print(json.dumps(report))
"""


def eight_devices_are_one(**meshes):
    """Loss, load, gradients of all weights and of experts' adapters, and drawn tokens; the experts' matrices on a device."""
    report = eight_devices.run(EIGHT, json.dumps(meshes))
    one = report.pop("one")
    assert np.std(one["load"]) > 0 and len(np.unique(one["samples"])) > 5
    for name, found in report.items():
        np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-4, err_msg=name)
        np.testing.assert_array_equal(found["load"], one["load"], err_msg=name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(one["gradient"], is_leaf=lambda x: isinstance(x, list)):
            theirs = functools.reduce(lambda tree, key: tree[key.key], path, found["gradient"])
            scale = max(np.abs(leaf).max(), 1e-3)
            np.testing.assert_allclose(theirs, leaf, rtol=0, atol=2e-4 * scale, err_msg=f"{name} {path}")
        for kind in ("samples", "of int8"):
            assert kind not in found or found[kind] == one[kind], (name, kind)
    return {name: found["held"] for name, found in report.items()}


def test_eight_devices_are_one():
    assert eight_devices_are_one(mesh=dict(expert=4, tensor=2)) == {"mesh": [2, 2, 16, 6]}


@pytest.mark.slow
def test_eight_devices_are_one_however_they_share_the_experts():
    """Also without the axis, and where devices share rows."""
    meshes = dict(
        whole=dict(expert=8), parts=dict(group=2, fsdp=2, expert=2), none=dict(fsdp=8), split=dict(fsdp=2, expert=4)
    )
    held = eight_devices_are_one(**meshes)
    assert held == {"whole": [2, 1, 16, 12], "parts": [2, 4, 4, 12], "none": [2, 8, 2, 12], "split": [2, 2, 8, 12]}
