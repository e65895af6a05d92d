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


def oracle(
    s,
    t,
    beta=0.0,
    temperature=1.0,
    top_k=None,
    top_k_support="teacher",
    tail="renormalize",
    entry_clip=np.inf,
    token_clip=np.inf,
):
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
        for a, b in zip(p, q, strict=True):
            m = beta * a + (1 - beta) * b
            term = (
                a * np.log(a / b)
                if beta == 0
                else b * np.log(b / a)
                if beta == 1
                else (beta * a * np.log(a / m) + (1 - beta) * b * np.log(b / m))
            )
            total += min(term, entry_clip)
        out[at] = min(total, token_clip)
    return out


CASES = [
    {},
    {"beta": 1.0},
    {"beta": 0.3, "temperature": 1.2},
    {"beta": 0.3, "entry_clip": 0.02},
    {"token_clip": 0.5},
    {"top_k": 4, "entry_clip": 0.05},
    {"top_k": 4, "top_k_support": "student", "tail": "bucket", "beta": 1.0},
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
    np.testing.assert_allclose(
        stats.teacher_log_probs,
        losses.token_log_probs(ht @ wt, tokens, temperature=options.get("temperature", 1.0)),
        atol=1e-5,
    )
    want = jax.grad(lambda *a: (plain(*a) * weight).sum(), (0, 1))(hs, ws)
    got = jax.jit(jax.grad(lambda *a: (chunked(*a).divergence * weight).sum(), (0, 1, 2)))(hs, ws, wt)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert not np.any(got[2])


@pytest.mark.parametrize("options", CASES + [{"divergence": "sampled_token"}, {"importance_clip": 1.5}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_weighted_sum_is_plain(options, dtype):
    hs, ht = draw(2, 7, 6).astype(dtype), draw(2, 7, 4, seed=4).astype(dtype)
    ws, wt = (draw(6, 13, seed=3) / 4).astype(dtype), (draw(4, 13, seed=5) / 4).astype(dtype)
    tokens, weights = np.arange(14).reshape(2, 7) % 13, np.abs(draw(2, 7, seed=6))
    sampler = losses.token_log_probs(hs @ ws, tokens) + draw(2, 7, seed=7) / 4
    options, clip = dict(options), options.get("importance_clip")
    options.pop("importance_clip", None)
    logits = lambda h, w: jnp.matmul(h, w, preferred_element_type=jnp.float32)

    def plain(h, w):
        if "divergence" in options:
            values = losses.sampled_token_loss(logits(h, w), logits(ht, wt), tokens)
        else:
            values = losses.per_token_divergence(logits(h, w), logits(ht, wt), **options)
        if clip:
            values *= losses.importance_weight(losses.token_log_probs(logits(h, w), tokens), sampler, clip=clip)
        return 3.0 * (values * weights).sum()

    def weighted(h, w):
        total, stats = losses.weighted_divergence_from_hidden(
            h, w, ht, wt, tokens, weights, chunk_size=3, sampler_log_probs=sampler, importance_clip=clip, **options
        )
        return 3.0 * total, stats

    want, slopes = jax.value_and_grad(plain, (0, 1))(hs, ws)
    (got, stats), ours = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(hs, ws)
    assert got.dtype == jnp.float32 and ours[1].dtype == dtype
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(ours, slopes, strict=True):
        tolerance = dict(atol=1e-4, rtol=1e-5) if dtype == np.float32 else dict(atol=0.05, rtol=0.02)
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), **tolerance)
    temperature = options.get("temperature", 1.0)
    student, teacher = logits(hs, ws), logits(ht, wt)
    for value, expected in (
        (stats.student_log_probs, losses.token_log_probs(student, tokens, temperature=temperature)),
        (stats.teacher_log_probs, losses.token_log_probs(teacher, tokens, temperature=temperature)),
        (stats.student_entropy, losses.entropy(student, temperature=temperature)),
        (stats.teacher_entropy, losses.entropy(teacher, temperature=temperature)),
    ):
        np.testing.assert_allclose(value, expected, atol=1e-5)


MASK = np.array([[1, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("mask", [MASK, MASK & False], ids=["some", "empty"])
@pytest.mark.parametrize("weights", ["mean", "each its own"])
def test_masked_chunks_are_the_masked_plain_path(mask, weights):
    hs, ws, ht, wt = draw(2, 7, 6), draw(6, 13, seed=3) / 4, draw(2, 7, 4, seed=4), draw(4, 13, seed=5) / 4
    each = 1.0 if weights == "mean" else draw(2, 7, seed=6)

    def plain(h, w):
        return losses.masked_mean(losses.per_token_divergence(h @ w, ht @ wt) * each, mask)

    def chunked(h, w):
        values = losses.divergence_from_hidden(h, w, ht, wt, chunk_size=3, mask=mask)
        return losses.masked_mean(values * each, mask), values

    want, slopes = jax.value_and_grad(plain, (0, 1))(hs, ws)
    (got, values), ours = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))(hs, ws)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not values[~mask].any()
    for a, b in zip(ours, slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_weight_zero_silences_what_is_not_finite():
    hidden, head = draw(1, 4, 3), draw(3, 5, seed=3)
    teacher = hidden.copy()
    teacher[0, 2] = np.nan

    def total(h, weights):
        return losses.weighted_divergence_from_hidden(
            h, head, teacher * 1.1, head, np.zeros((1, 4), int), weights, chunk_size=2
        )[0]

    weights = np.array([[1.0, 1.0, 0.0, 1.0]])
    assert np.isfinite(total(hidden, weights)) and not np.isfinite(total(hidden, np.ones((1, 4))))


def test_entropy_and_token_log_probs():
    p = np.exp(S.astype(np.float64) / 1.3)
    p /= p.sum(-1, keepdims=True)
    tokens = np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(losses.entropy(S, temperature=1.3), -(p * np.log(p)).sum(-1), atol=1e-5)
    expected = np.log(np.take_along_axis(p, tokens[..., None], -1))[..., 0]
    np.testing.assert_allclose(losses.token_log_probs(S, tokens, temperature=1.3), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"beta": 0.3}, {"beta": 1.0}, {"top_k": 4, "tail": "bucket"}], ids=str)
def test_finite_differences(options):
    gradient = jax.grad(lambda s: losses.per_token_divergence(s, T, **options).sum())(S)
    step = 1e-4 * draw(*S.shape, seed=9)
    up, down = (oracle(S + sign * step.astype(float), T, **options).sum() for sign in (1, -1))
    np.testing.assert_allclose((gradient * step).sum(), (up - down) / 2, rtol=1e-3)


def test_sampled_token_loss_is_a_policy_gradient():
    tokens = np.arange(10).reshape(2, 5)
    advantage = losses.token_log_probs(T, tokens) - losses.token_log_probs(S, tokens)
    expected = jax.grad(lambda s: -(advantage * losses.token_log_probs(s, tokens)).sum())(S)
    np.testing.assert_allclose(
        jax.grad(lambda s: losses.sampled_token_loss(s, T, tokens).sum())(S), expected, atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"beta": 0.3}, {"beta": 1.0}, {"top_k": 3}, {"entry_clip": 0.05}], ids=str)
def test_masked_vocabulary_entries_are_finite_and_nan_is_not_hidden(options):
    s, t = S.copy(), T.copy()
    s[..., 3], t[..., 3] = -np.inf, -np.inf
    value, gradient = jax.jit(jax.value_and_grad(lambda x: losses.per_token_divergence(x, t, **options).sum()))(s)
    rest = [i for i in range(11) if i != 3]
    expected = losses.per_token_divergence(S[..., rest], T[..., rest], **options).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[..., 3].any()
    s[0, 0, 0] = np.nan
    assert np.isnan(jax.jit(lambda x: losses.per_token_divergence(x, t, **options))(s)[0, 0])


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_properties(beta):
    value = losses.per_token_divergence(S, T, beta=beta)
    assert (value > 0).all()
    np.testing.assert_allclose(losses.per_token_divergence(S, S, beta=beta), 0, atol=1e-6)
    np.testing.assert_allclose(losses.per_token_divergence(S + 3, T - 2, beta=beta), value, atol=1e-5)
    np.testing.assert_allclose(losses.per_token_divergence(S, T, beta=beta, top_k=11, tail="bucket"), value, atol=1e-6)
    assert not np.any(jax.grad(lambda t: losses.per_token_divergence(S, t, beta=beta).sum())(T))


def test_stability_bound():
    """|E_p[-log q] - E_p'[-log q]| <= 2 B TV(p, p'), with E_p[-log q] from our forward KL and entropy."""
    teachers, student = (S, T), draw(2, 5, 11, seed=8)
    crosses = [losses.per_token_divergence(student, t) + losses.entropy(t) for t in teachers]
    p, p_hat, q = (np.asarray(jax.nn.softmax(x)) for x in (S, T, student))
    bound = 2 * (-np.log(q)).max(-1) * np.abs(p - p_hat).sum(-1) / 2
    gap = np.abs(crosses[0] - crosses[1])
    assert (gap <= bound + 1e-5).all() and (gap > 0.02 * bound).any()
    np.testing.assert_allclose(crosses[0], -(p * np.log(q)).sum(-1), atol=1e-5)


def test_masked_mean_ignores_what_is_masked_out():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    for mask, want, slope in (([1, 0, 0], 1.0, [1, 0, 0]), ([0, 0, 0], 0.0, [0, 0, 0])):
        value, gradient = jax.value_and_grad(losses.masked_mean)(values, jnp.array(mask))
        assert value == want and gradient.tolist() == slope


def test_importance_weight_and_bfloat16():
    weight = losses.importance_weight(jnp.array([0.0, 500.0]), jnp.array([0.1, 0.0]))
    np.testing.assert_allclose(weight, [np.exp(-0.1), 2.0], rtol=1e-6)
    assert jax.grad(lambda x: losses.importance_weight(x, jnp.float32(0.1)).sum())(0.05) == 0.0
    with pytest.raises(ValueError, match="-1"):
        losses.importance_weight(S, T, clip=-1)
    assert losses.per_token_divergence(S.astype(jnp.bfloat16), T.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("option, value", [("tail", "drop"), ("top_k", 0), ("beta", 1.5), ("temperature", 0.0)])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=str(value)):
        losses.per_token_divergence(S, T, **{option: value})


def test_imports_nothing_else_of_ours():
    code = "import sys, rcsd_jax.losses; print(*[m for m in sys.modules if m.startswith('rcsd_jax.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in result.stdout.split()} == {"losses"}


@pytest.mark.parametrize("path", ["chunked", "weighted"])
def test_memory_is_an_eighth_although_the_head_has_a_gradient(path):
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(2, 256, 128), (128, 16384)] * 2]
    tokens, weights = np.zeros((2, 256), int), np.ones((2, 256))

    def temporaries(f):
        step = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*arrays).compile()
        return step.memory_analysis().temp_size_in_bytes

    ours = {
        "chunked": lambda *a: losses.divergence_from_hidden(*a, chunk_size=16).sum(),
        "weighted": lambda *a: losses.weighted_divergence_from_hidden(*a, tokens, weights, chunk_size=16)[0],
    }
    plain = temporaries(lambda h, w, ht, wt: losses.per_token_divergence(h @ w, ht @ wt).sum())
    assert temporaries(ours[path]) <= plain / 8


@pytest.mark.parametrize("option, value", [("chunk_size", 0), ("divergence", "kl"), ("top_k_support", "both")])
def test_bad_options_from_hidden(option, value):
    hidden, head = draw(1, 4, 3), draw(3, 5, seed=3)
    options = {"chunk_size": 2, option: value}
    with pytest.raises(ValueError, match=str(value)):
        losses.score_from_hidden(hidden, head, hidden, head, np.zeros((1, 4), int), **options)
