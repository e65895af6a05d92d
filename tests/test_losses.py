"""Divergences against a float64 oracle, their properties, and the chunked path against the plain one."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax import losses


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


S, T = draw(2, 5, 11, seed=1), draw(2, 5, 11, seed=2)


def oracle(s, t, beta=0.0, temperature=1.0, top_k=None, top_k_support="teacher", tail="renormalize",
           entry_clip=np.inf, token_clip=np.inf):
    out = np.zeros(s.shape[:-1])
    for at in np.ndindex(out.shape):
        p, q = (np.exp(x[at].astype(np.float64) / temperature) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        if top_k:
            keep = np.argsort(-(p if top_k_support == "teacher" else q))[:top_k]
            p, q = p[keep], q[keep]
            if tail == "bucket":
                p, q = np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())
            else:
                p, q = p / p.sum(), q / q.sum()
        total = 0.0
        for a, b in zip(p, q):
            m = beta * a + (1 - beta) * b
            term = a * np.log(a / b) if beta == 0 else b * np.log(b / a) if beta == 1 else (
                beta * a * np.log(a / m) + (1 - beta) * b * np.log(b / m))
            total += min(term, entry_clip)
        out[at] = min(total, token_clip)
    return out


CASES = [
    {}, {"beta": 1.0}, {"beta": 0.3, "temperature": 1.2}, {"beta": 0.3, "entry_clip": 0.02}, {"token_clip": 0.5},
    {"top_k": 4, "entry_clip": 0.05}, {"top_k": 4, "top_k_support": "student", "tail": "bucket", "beta": 1.0},
    {"top_k": 4, "tail": "bucket", "beta": 0.5},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_oracle(options):
    np.testing.assert_allclose(losses.per_token_divergence(S, T, **options), oracle(S, T, **options), atol=2e-5)


@pytest.mark.parametrize("options", CASES + [{"divergence": "sampled_token"}], ids=str)
def test_chunked_is_plain(options):
    hs, ws, ht, wt = draw(2, 7, 6), draw(6, 13, seed=3) / 4, draw(2, 7, 4, seed=4), draw(4, 13, seed=5) / 4
    tokens, weight = np.arange(14).reshape(2, 7) % 13, draw(2, 7, seed=6)
    plain_options = {k: v for k, v in options.items() if k != "divergence"}

    def plain(h, w):
        if "divergence" in options:
            return losses.sampled_token_loss(h @ w, ht @ wt, tokens)
        return losses.per_token_divergence(h @ w, ht @ wt, **plain_options)

    def chunked(h, w, t=wt):
        return losses.score_from_hidden(h, w, ht, t, tokens, chunk_size=3, **options)

    stats = chunked(hs, ws)
    np.testing.assert_allclose(stats.divergence, plain(hs, ws), atol=1e-5)
    np.testing.assert_allclose(stats.teacher_log_probs, losses.token_log_probs(ht @ wt, tokens,
                               temperature=options.get("temperature", 1.0)), atol=1e-5)
    want = jax.grad(lambda *a: (plain(*a) * weight).sum(), (0, 1))(hs, ws)
    got = jax.jit(jax.grad(lambda *a: (chunked(*a).divergence * weight).sum(), (0, 1, 2)))(hs, ws, wt)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert not np.any(got[2])


def test_finite_differences():
    gradient = jax.grad(lambda s: losses.per_token_divergence(s, T, beta=0.3).sum())(S)
    step = 1e-4 * draw(*S.shape, seed=9)
    want = (oracle(S + step.astype(float), T, beta=0.3).sum() - oracle(S - step.astype(float), T, beta=0.3).sum()) / 2
    np.testing.assert_allclose((gradient * step).sum(), want, rtol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_properties(beta):
    value = losses.per_token_divergence(S, T, beta=beta)
    assert (value > 0).all()
    np.testing.assert_allclose(losses.per_token_divergence(S, S, beta=beta), 0, atol=1e-6)
    np.testing.assert_allclose(losses.per_token_divergence(S + 3, T - 2, beta=beta), value, atol=1e-5)
    np.testing.assert_allclose(losses.per_token_divergence(S, T, beta=beta, top_k=11, tail="bucket"), value, atol=1e-6)
    assert not np.any(jax.grad(lambda t: losses.per_token_divergence(S, t, beta=beta).sum())(T))


def test_stability_bound():
    p, p_hat, q = (np.asarray(jax.nn.softmax(x)) for x in (S, T, draw(2, 5, 11, seed=8)))
    gap = np.abs(((p - p_hat) * -np.log(q)).sum(-1))
    assert (gap <= 2 * (-np.log(q)).max(-1) * np.abs(p - p_hat).sum(-1) / 2 + 1e-6).all()


def test_masked_mean_ignores_what_is_masked_out():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    for mask, want, slope in (([1, 0, 0], 1.0, [1, 0, 0]), ([0, 0, 0], 0.0, [0, 0, 0])):
        value, gradient = jax.value_and_grad(losses.masked_mean)(values, jnp.array(mask))
        assert value == want and gradient.tolist() == slope


def test_importance_weight_and_bfloat16():
    weight = losses.importance_weight(jnp.array([0.0, 500.0]), jnp.array([0.1, 0.0]))
    np.testing.assert_allclose(weight, [np.exp(-0.1), 2.0], rtol=1e-6)
    assert losses.per_token_divergence(S.astype(jnp.bfloat16), T.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("option, value", [("tail", "drop"), ("top_k", 0), ("beta", 1.5), ("temperature", 0.0)])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=str(value)):
        losses.per_token_divergence(S, T, **{option: value})


def test_imports_nothing_else_of_ours():
    code = "import sys, rcsd_jax.losses; print(*[m for m in sys.modules if m.startswith('rcsd_jax.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["rcsd_jax.losses"]


def test_memory():
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(2, 256, 32), (32, 4096)] * 2]

    def temporaries(f):
        step = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*arrays).compile()
        return step.memory_analysis().temp_size_in_bytes

    plain = temporaries(lambda h, w, ht, wt: losses.per_token_divergence(h @ w, ht @ wt).sum())
    assert temporaries(lambda *a: losses.divergence_from_hidden(*a, chunk_size=16).sum()) <= plain / 8
