"""models/linear.py: a product with an adapter is the same for few and many tokens, and few do not copy the matrix."""

import jax
import numpy as np
import pytest

from rcsd_jax.models import self_attention
from rcsd_jax.models.linear import project
from tests.models.test_quantization import config

C = config()
TABLE = self_attention.declared(C)
WEIGHTS = {"q": jax.random.normal(jax.random.key(0), (64, 64))}
ADAPTERS = {
    "q": {"a": jax.random.normal(jax.random.key(1), (64, 4)), "b": jax.random.normal(jax.random.key(2), (4, 64))}
}


def product(h, adapters):
    return project(C, TABLE, WEIGHTS, adapters, h, "q")[0]


@pytest.mark.parametrize("batch, tokens, copied", [(2, 1, False), (3, 21, False), (2, 32, True)])
def test_only_many_tokens_take_one_product_of_matrix_and_adapter(batch, tokens, copied):
    h = jax.random.normal(jax.random.key(3), (batch, tokens, 64))
    w, a, b = (np.asarray(x, np.float64) for x in (WEIGHTS["q"], *ADAPTERS["q"].values()))
    exact = np.asarray(h, np.float64) @ (w + C.lora_scale * a @ b)
    np.testing.assert_allclose(product(h, ADAPTERS), exact, rtol=1e-4, atol=1e-3)
    assert (
        "68,64" in str(jax.make_jaxpr(product)(h, ADAPTERS))
    ) is copied  # 64 rows of the matrix and 4 of the adapter

    ours = jax.grad(lambda x: product(h, x).sum())(ADAPTERS)["q"]
    summed = np.asarray(h, np.float64).sum(axis=(0, 1))  # [in]
    np.testing.assert_allclose(ours["a"], C.lora_scale * np.outer(summed, b.sum(axis=1)), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(
        ours["b"], C.lora_scale * np.repeat((summed @ a)[:, None], 64, axis=1), rtol=1e-3, atol=1e-2
    )
