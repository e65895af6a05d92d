"""models/quantization.py: the decoder with int8 kernels is the decoder with those values, and training goes through it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from rcsd_jax.models import lora, quantization
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder, positions_from_mask
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.weights import cast, matmul
from rcsd_jax.sampling import SamplingConfig, generate
from tests import eight_devices

KERNELS = ("q", "k", "v", "o", "gate", "up", "down")


def config(num_layers=3, **changes):
    return DecoderConfig(
        family="qwen3", vocab_size=64, hidden_size=64, intermediate_size=96, num_layers=num_layers, num_heads=4,
        num_kv_heads=2, head_dim=16, lora_scale=2.0, **changes,
    )  # fmt: skip


def model(config):
    """Parameters, the same with int8 kernels, and adapters that do something."""
    params = init_params(config, jax.random.key(0))
    adapters = lora.init_lora(config, jax.random.key(1), rank=4, alpha=8.0, targets=("q", "up"))
    adapters = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters)
    return params, jax.jit(functools.partial(quantization.int8_kernels, config))(params), adapters


def in_float(int8):
    layers = {k: np.asarray(x.qvalue, np.float32) * x.scale if k in KERNELS else x for k, x in int8["layers"].items()}
    return int8 | {"layers": layers}


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


@pytest.mark.parametrize("num_layers", [pytest.param(3, marks=pytest.mark.slow), 6], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("with_lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_decoder_takes_int8_kernels(num_layers, with_lora):
    c = config(num_layers)
    params, int8, adapters = model(c)
    more = {"lora": adapters} if with_lora else {}
    ours, plain = (hidden(c, {"params": p} | more, TOKENS) for p in (int8, params))
    np.testing.assert_allclose(ours, hidden(c, {"params": in_float(int8)} | more, TOKENS), rtol=0, atol=1e-4)
    assert 1e-3 < np.abs(ours - plain).max() < 0.2
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
def test_adapters_over_int8_kernels_have_the_gradient_of_those_over_their_values():
    c = config(6, remat="mlp")
    _, int8, adapters = model(c)

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
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models import quantization, sharding
from tests.models.test_quantization import TOKENS, config, hidden

c = config(6)
params = init_params(c, jax.random.key(0))
mesh = sharding.make_mesh(fsdp=4, tensor=2)
placed = jax.device_put(params, param_shardings(c, mesh))
int8 = quantization.on_mesh(c, placed, mesh)
for name in ("q", "o", "down"):
    kernel, got = placed["layers"][name], int8["layers"][name]
    assert got.qvalue.sharding.is_equivalent_to(kernel.sharding, 3), (name, got.qvalue.sharding)
with jax.set_mesh(mesh):
    ours = jax.jit(functools.partial(hidden, c))({"params": int8}, TOKENS.repeat(4, axis=0))
alone = hidden(c, {"params": jax.device_put(int8, jax.devices()[0])}, TOKENS)
print(float(np.abs(np.asarray(ours)[::4] - np.asarray(alone)).max()))
"""


@pytest.mark.slow
def test_on_a_mesh_int8_kernels_lie_where_their_kernels_lay():
    assert eight_devices.run(SCRIPT) < 1e-4


def test_only_float_parameters_are_cast():
    _, int8, _ = model(config())
    got = cast(int8, jnp.bfloat16)
    assert got["layers"]["q"].qvalue.dtype == jnp.int8 and got["layers"]["q"].scale.dtype == jnp.float32
    assert got["embed"].dtype == got["layers"]["q_norm"].dtype == jnp.bfloat16
