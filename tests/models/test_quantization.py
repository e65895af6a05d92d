"""models/quantization.py: the decoder with quantized kernels is the decoder with those values, and training goes through it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from rcsd_jax.host.errors import UserError
from rcsd_jax.models import lora, quantization, sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder, positions_from_mask
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.placement import check_divisible
from rcsd_jax.models.weights import cast, matmul
from rcsd_jax.sampling import SamplingConfig, generate
from tests import eight_devices

KERNELS = ("q", "k", "v", "o", "gate", "up", "down")


def config(num_layers=3, **changes):
    shape = dict(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16) | changes
    return DecoderConfig(family="qwen3", vocab_size=64, num_layers=num_layers, lora_scale=2.0, **shape)


def model(config, form="int8"):
    """Parameters, the same with quantized kernels, and adapters that do something."""
    params = init_params(config, jax.random.key(0))
    adapters = lora.init_lora(config, jax.random.key(1), rank=4, alpha=8.0, targets=("q", "up"))
    adapters = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters)
    return params, jax.jit(functools.partial(quantization.quantized, config, form=form))(params), adapters


def value(kernel):
    """The numbers that a quantized kernel stands for."""
    scale = np.asarray(kernel.scale, np.float32)
    return np.asarray(kernel.qvalue, np.float32) * scale.repeat(kernel.shape[1] // scale.shape[1], axis=1)


def in_float(params):
    return params | {"layers": {k: value(x) if k in KERNELS else x for k, x in params["layers"].items()}}


def hidden(config, variables, tokens):
    mask = jnp.ones(tokens.shape, jnp.int32)
    return Decoder(config).apply(variables, tokens, segment_ids=mask, positions=positions_from_mask(mask))[0]


TOKENS = jax.random.randint(jax.random.key(3), (2, 9), 0, 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel_is_rounded_to_its_columns_scale(dtype):
    params, int8, _ = model(config(param_dtype=jnp.dtype(dtype)))
    for name, x in params["layers"].items():
        if name not in KERNELS:
            assert int8["layers"][name] is not None and not isinstance(int8["layers"][name], qwix.QArray)
            continue
        kernel, got = np.asarray(x, np.float64), int8["layers"][name]
        assert got.qvalue.dtype == jnp.int8 and got.scale.dtype == jnp.float32
        assert got.scale.shape == (3, 1, kernel.shape[2])
        np.testing.assert_allclose(got.scale, np.abs(kernel).max(axis=1, keepdims=True) / 127.5, rtol=1e-6)
        error = np.abs(np.asarray(got.qvalue, np.float64) * np.asarray(got.scale, np.float64) - kernel)
        assert (error <= 0.51 * np.asarray(got.scale)).all() and error.max() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_groups_of_32_numbers_have_a_scale_that_makes_their_largest_minus_8(dtype):
    """Against NumPy in float64, with a group of zeros."""
    c = config(1, param_dtype=jnp.dtype(dtype))
    params = init_params(c, jax.random.key(0))
    params["layers"]["up"] = params["layers"]["up"].at[0, :32, 5].set(0)
    int4 = jax.jit(functools.partial(quantization.quantized, c, form="int4"))(params)
    for name in KERNELS:
        kernel, got = np.asarray(params["layers"][name], np.float64)[0], int4["layers"][name]
        groups = kernel.reshape(-1, 32, kernel.shape[1])
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), axis=1)
        scale = np.where(largest == 0, 1, largest / -8).astype(jnp.bfloat16).astype(np.float64)
        values = np.clip(np.rint(groups / scale), -8, 7)
        assert got.qvalue.dtype == jnp.int4 and got.scale.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(got.scale[0], np.float64), scale[:, 0])
        # In float32, a number in the middle of two steps may go to the other.
        same = np.asarray(got.qvalue[0], np.float64).reshape(values.shape) == values
        assert same.mean() > 0.999 and (values == -8).any(axis=1)[largest[:, 0] != 0].all()
        error = np.abs(value(got)[0].reshape(groups.shape) - groups) / np.abs(scale)
        # Numbers next to the largest, of the other sign, are cut off at 7.
        assert (error[groups / scale < 7.5] < 0.51).all() and error.max() < 1.05


@pytest.mark.parametrize(
    "form, num_layers, with_lora",
    [
        ("int8", 6, True),
        ("int4", 6, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("int8", 3, True), ("int8", 3, False), ("int8", 6, False), ("int4", 3, False))
        ),
    ],
)
def test_the_decoder_takes_quantized_kernels(form, num_layers, with_lora):
    """Unrolled with three layers, else scanned."""
    c = config(num_layers)
    params, int8, adapters = model(c, form)
    more = {"lora": adapters} if with_lora else {}
    ours, plain = (hidden(c, {"params": p} | more, TOKENS) for p in (int8, params))
    np.testing.assert_allclose(ours, hidden(c, {"params": in_float(int8)} | more, TOKENS), rtol=0, atol=1e-4)
    assert 1e-3 < np.abs(ours - plain).max() < (0.2 if form == "int8" else 2)
    # And token by token, where the scale multiplies the product.
    sampling = SamplingConfig(6, temperature=0.0)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    of = lambda p: generate(Decoder(c), {"params": p} | more, TOKENS, TOKENS >= 0, keys, sampling)
    mine, theirs = of(int8), of(in_float(int8))
    np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_allclose(mine.log_probs, theirs.log_probs, rtol=0, atol=1e-5)


def test_partial_sums_of_int8_products_are_in_the_dtype_of_activations():
    _, int8, _ = model(config())
    matrix = jax.tree.map(lambda x: x[0], int8["layers"]["up"])
    h = jax.random.normal(jax.random.key(5), (2, 1, 64), jnp.bfloat16)
    traced = jax.make_jaxpr(matmul)(h, matrix)
    (product,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "dot_general")
    assert product.outvars[0].aval.dtype == jnp.bfloat16  # what a mesh adds up
    exact = np.asarray(h, np.float64) @ (np.asarray(matrix.qvalue, np.float64) * np.asarray(matrix.scale, np.float64))
    np.testing.assert_allclose(np.asarray(matmul(h, matrix), np.float64), exact, rtol=2**-7, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", quantization.FORMS)
def test_adapters_over_quantized_kernels_have_the_gradient_of_those_over_their_values(form):
    c = config(6, remat="mlp")
    _, int8, adapters = model(c, form)

    def loss(adapters, params):
        logits = hidden(c, {"params": params, "lora": adapters}, TOKENS) @ head_matrix(c, params)
        return jax.nn.log_softmax(logits)[..., 0].sum()

    ours, theirs = jax.grad(loss)(adapters, int8), jax.grad(loss)(adapters, in_float(int8))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)
        assert np.abs(y).max() > 0.01


SCRIPT = """
import functools, jax, numpy as np
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.placement import check_divisible, param_shardings
from rcsd_jax.models import quantization, sharding
from tests.models.test_quantization import TOKENS, config, hidden

mesh, worst = sharding.make_mesh(fsdp=4, tensor=2), 0.0
for form, shape in (("int8", {}), ("int4", dict(hidden_size=256, intermediate_size=256, head_dim=64))):
    c = config(6, **shape)
    check_divisible(c, mesh, {}, quantization=form)
    placed = jax.device_put(init_params(c, jax.random.key(0)), param_shardings(c, mesh))
    fewer = quantization.on_mesh(c, placed, mesh, form=form)
    for name in ("q", "o", "down"):
        kernel, got = placed["layers"][name], fewer["layers"][name]
        assert got.qvalue.sharding.is_equivalent_to(kernel.sharding, 3), (name, got.qvalue.sharding)
        if form == "int4":
            assert got.scale.addressable_shards[0].data.size * 8 == got.scale.size, name
    with jax.set_mesh(mesh):
        ours = jax.jit(functools.partial(hidden, c))({"params": fewer}, TOKENS.repeat(4, axis=0))
    alone = hidden(c, {"params": jax.device_put(fewer, jax.devices()[0])}, TOKENS)
    worst = max(worst, float(np.abs(np.asarray(ours)[::4] - np.asarray(alone)).max()))
print(worst)
"""


@pytest.mark.slow
def test_on_a_mesh_quantized_kernels_lie_where_their_kernels_lay():
    assert eight_devices.run(SCRIPT) < 1e-4


def test_a_mesh_that_cuts_groups_of_int4_apart_is_refused():
    sizes = tuple(4 if axis == "fsdp" else 1 for axis in sharding.AXES)
    mesh = jax.sharding.AbstractMesh(sizes, sharding.AXES)
    shape = config(num_kv_heads=4)
    check_divisible(shape, mesh, {}, quantization="int8")
    with pytest.raises(UserError, match="the 64 rows of the matrix q are not whole groups of 32 on 4 devices") as error:
        check_divisible(shape, mesh, {}, quantization="int4")
    assert error.value.field == "model.quantization"
    # The 64 rows of "o" are whole as they are stored, and not when four devices share the heads.
    wide = config(num_kv_heads=4, hidden_size=128, intermediate_size=128, head_dim=16)
    with pytest.raises(UserError, match="the 64 rows of the teacher's matrix o") as error:
        check_divisible(wide, mesh, {}, quantization="int4", whose="teacher's ")
    assert error.value.field == "teacher.quantization"


def test_only_float_parameters_are_cast():
    _, int8, _ = model(config())
    got = cast(int8, jnp.bfloat16)
    assert got["layers"]["q"].qvalue.dtype == jnp.int8 and got["layers"]["q"].scale.dtype == jnp.float32
    assert got["embed"].dtype == got["layers"]["q_norm"].dtype == jnp.bfloat16
