"""models/scoring.py: a shared prefix is run once, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.scoring import completion_hidden, completion_hidden_shared, pack
from tests.sampling.test_continuous_batching import CONFIG

B, M, P, N = 3, 2, 9, 5


@pytest.fixture(scope="module")
def variables():
    return {"params": jax.tree.map(lambda x: x * 10, init_params(CONFIG, jax.random.key(0)))}


def drawn(suffix):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.integers(1, 24, size=shape), jnp.int32)
    prefix_mask = jnp.arange(P) >= jnp.asarray([[0], [4], [8]])  # left-padded
    prefix_mask = prefix_mask.at[0, 3].set(False)  # and a hole
    suffix_mask = jnp.arange(suffix) >= jnp.asarray(rng.integers(0, max(suffix, 1), size=(B, M, 1)))
    completion_mask = jnp.arange(N) < jnp.asarray(rng.integers(1, N + 1, size=(B, M, 1)))
    return (draw(B, P), prefix_mask, draw(B, M, suffix), suffix_mask, draw(B, M, N), completion_mask)


@pytest.mark.parametrize("suffix", [0, 6])
def test_a_shared_prefix_scores_as_each_context_alone(variables, suffix):
    prefix, prefix_mask, suffixes, suffix_mask, completions, mask = drawn(suffix)
    shared = jax.jit(lambda v, *a: completion_hidden_shared(Decoder(CONFIG), v, *a))
    hidden = shared(variables, prefix, prefix_mask, suffixes, suffix_mask, completions, mask)
    assert hidden.shape == (B, M, N, CONFIG.hidden_size)
    alone = jax.jit(lambda v, *a: completion_hidden(Decoder(CONFIG), v, *a))
    for m in range(M):
        context = jnp.concatenate([prefix, suffixes[:, m]], axis=1)
        context_mask = jnp.concatenate([prefix_mask, suffix_mask[:, m]], axis=1)
        expected = alone(variables, context, context_mask, completions[:, m], mask[:, m])
        scale = float(jnp.abs(expected).max())
        for b in range(B):
            n = int(mask[b, m].sum())
            np.testing.assert_allclose(hidden[b, m, :n], expected[b, :n], rtol=0, atol=2e-5 * scale)


def test_gradients_reach_the_shared_prefix(variables):
    arguments = drawn(6)
    config = dataclasses.replace(CONFIG, remat="full")
    weight = arguments[-1][..., None]
    loss = lambda v, *a: (completion_hidden_shared(Decoder(config), v, *a) ** 3 * weight).sum()

    def apart(v, prefix, prefix_mask, suffixes, suffix_mask, completions, mask):
        total = 0.0
        for m in range(M):
            context = jnp.concatenate([prefix, suffixes[:, m]], axis=1)
            context_mask = jnp.concatenate([prefix_mask, suffix_mask[:, m]], axis=1)
            hidden = completion_hidden(Decoder(config), v, context, context_mask, completions[:, m], mask[:, m])
            total += (hidden**3 * weight[:, m]).sum()
        return total

    ours, expected = (jax.jit(jax.grad(f))(variables, *arguments) for f in (loss, apart))
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()))
    assert float(jnp.abs(ours["params"]["layers"]["k"]).max()) > 0


def test_pack_keeps_order():
    tokens, lengths = pack(jnp.asarray([[9, 4, 9, 5], [1, 2, 9, 9]]), jnp.asarray([[0, 1, 0, 1], [1, 1, 0, 0]], bool))
    np.testing.assert_array_equal(tokens[:, :2], [[4, 5], [1, 2]])
    np.testing.assert_array_equal(lengths, [2, 2])
