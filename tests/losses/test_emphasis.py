"""Emphases of tokens against NumPy in float64, token by token, and in the loss against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax import losses
from rcsd_jax.losses import emphasis

RNG = np.random.default_rng(0)
B, K, T = 3, 4, 7
MASK = np.array([[0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0] * 7], bool)


def test_position_is_the_weight_of_pw_opsd():
    """w_min + (1 - w_min) sigmoid((t / T - tau) / s) with 0.25, 0.3 and 0.1, as its authors' trainer has it."""
    got = emphasis.softened(emphasis.by_position(MASK), 0.75)
    for row, length in enumerate(MASK.sum(axis=1)):
        place = 0
        for t in range(T):
            if MASK[row, t]:
                want = 0.25 + 0.75 / (1 + np.exp(-((place + 0.5) / length - 0.3) / 0.1))
                np.testing.assert_allclose(got[row, t], want, rtol=1e-5)
                place += 1
            else:
                assert got[row, t] == 0.25


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_low_probability_takes_the_least_likely_of_the_batch(share):
    """As the authors' `compute_opsa` chooses: floor(share * n) of the n tokens, at least one, by a stable sort."""
    log_probs = RNG.normal(-2, 1, (B, T)).astype(np.float32)
    log_probs[0, 2] = log_probs[1, 0] = -9.0  # equally likely
    got = np.asarray(emphasis.low_probability(jnp.asarray(log_probs), jnp.asarray(MASK), share=share))
    places = np.flatnonzero(MASK)
    least = places[np.argsort(log_probs.ravel()[places], kind="stable")][: max(1, int(share * len(places)))]
    want = np.zeros(B * T)
    want[least] = 1.0
    np.testing.assert_array_equal(got.ravel(), want)
    nothing = emphasis.low_probability(jnp.asarray(log_probs), jnp.zeros((B, T)), share=share)
    assert not nothing.any()


def in_pass_by_hand(kind, p, q, p_entropy, q_entropy):
    return {
        "teacher_sure": np.exp(-q_entropy),
        "student_unsure": 1 - np.exp(-p_entropy),
        "gap": 1 - np.exp(-np.abs(q - p)),
    }[kind]


def test_agreement_and_credit_by_hand():
    log_probs = RNG.normal(-2, 1, (B, 1 + K, T))
    failed = np.array([[2.0, 0.0, 0.5, 0.0], [0.0] * K, [1.0, 0, 0, 0]])
    there = np.array([[True] * K, [True, True, False, False], [False] * K])
    changes = emphasis.attribution(jnp.asarray(log_probs))
    got_agreement = np.asarray(emphasis.by_agreement(changes, jnp.asarray(there)))
    got_credit = np.asarray(emphasis.by_credit(changes, jnp.asarray(failed), jnp.asarray(MASK)))
    for row in range(B):
        credit = np.zeros(T)
        for t in range(T):
            values = log_probs[row, 0, t] - log_probs[row, 1:, t]
            credit[t] = sum(f * abs(a) for f, a in zip(failed[row], values, strict=True))
            some = values[there[row]]
            want = np.exp(-some.std()) if len(some) else 1.0
            np.testing.assert_allclose(got_agreement[row, t], want, rtol=1e-4)
        mean = credit[MASK[row]].mean() if MASK[row].any() else 0.0
        want = np.where(MASK[row], credit / mean if mean else 1.0, 0.0)
        np.testing.assert_allclose(got_credit[row], want, rtol=1e-4)


CUT = dict(beta=0.5, top_k=4, entry_clip=0.3)  # its gradient has no closed form


@pytest.mark.parametrize("kind, options", [("teacher_sure", {}), ("student_unsure", CUT), ("gap", {})])
def test_emphasis_in_the_pass_multiplies_weights_and_has_no_gradient(kind, options):
    hidden, other = (jnp.asarray(RNG.normal(size=(B, T, 5)), jnp.float32) for _ in range(2))
    head = jnp.asarray(RNG.normal(size=(5, 11)), jnp.float32)
    tokens = jnp.asarray(RNG.integers(0, 11, (B, T)), jnp.int32)
    weights = losses.token_weights(jnp.asarray(MASK), "tokens")
    how = dict(chunk_size=3, temperature=1.3, **options)

    def emphasised(hidden, head):
        total, _ = losses.weighted_divergence_from_hidden(
            hidden, head, other, head, tokens, weights, emphasis=kind, emphasis_strength=0.6, **how
        )
        return total

    stats = losses.score_from_hidden(hidden, head, other, head, tokens, **how)
    scores = (np.asarray(x, np.float64) for x in stats[1:])
    factor = 0.4 + 0.6 * in_pass_by_hand(kind, *scores)
    assert factor[MASK].std() > 0.01

    def by_hand(hidden, head):
        each = losses.divergence_from_hidden(hidden, head, other, jax.lax.stop_gradient(head), **how)
        return losses.weighted_sum(each, weights * jnp.asarray(factor, jnp.float32))

    got, want = (jax.value_and_grad(f, (0, 1))(hidden, head) for f in (emphasised, by_hand))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(emphasised(hidden, head), want[0], rtol=1e-5)  # without a gradient


def test_what_is_not_finite_at_a_token_of_weight_0_stays_there():
    hidden = jnp.ones((1, 2, 3)).at[0, 1].set(jnp.nan)
    head, tokens, weights = jnp.eye(3, 4), jnp.zeros((1, 2), jnp.int32), jnp.array([[1.0, 0.0]])
    total, _ = losses.weighted_divergence_from_hidden(
        hidden, head, -hidden, head, tokens, weights, chunk_size=2, emphasis="gap"
    )
    assert np.isfinite(total)


def test_an_unknown_emphasis_is_refused():
    hidden, head, tokens = jnp.ones((1, 2, 3)), jnp.eye(3, 4), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="emphasis must be 'teacher_sure'"):
        losses.weighted_divergence_from_hidden(
            hidden, head, hidden, head, tokens, jnp.ones((1, 2)), chunk_size=2, emphasis="position"
        )
