"""Targets of several contexts, and what follows from a teacher's scores after each, against plain passes over single sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.losses import better_of_two
from rcsd_jax.methods import contract, rlcsd, score_both
from rcsd_jax.methods.networks import Better, Network
from rcsd_jax.methods.teacher_scores import after_teacher
from tests.methods.test_packed_learning import decoder_of, one_each, options_of, weights_of
from tests.plain_logits import logits_after

TEMPERATURE = 1.2  # of `options_of`


def real(tokens, mask):
    return np.asarray(tokens)[np.asarray(mask)]


@pytest.fixture(scope="module")
def by_hand():
    """(completions, row, which context, which network) -> logits [N, V], by one pass over the sequence."""
    decoder = decoder_of()
    variables = [{"params": params} for params in weights_of(decoder)]

    def logits(c, row, context, network=1):
        prompt = {
            "own": lambda: real(c.teacher_tokens[row], c.teacher_mask[row]),
            "student": lambda: real(c.student_tokens[row], c.student_mask[row]),
            "further": lambda: real(c.without.tokens[row, 0], c.without.mask[row, 0]),
        }[context]()
        return logits_after(decoder, variables[network], prompt, real(c.samples.tokens[row], c.samples.mask[row]))

    return decoder, [Network(decoder, one) for one in variables], logits


def of_tokens(logits, tokens):
    scaled = np.asarray(logits, np.float64) / TEMPERATURE
    log_probs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return log_probs[range(len(tokens)), tokens]


def test_purified_targets_and_log_probabilities_by_context(by_hand):
    _, (_, teacher), plain = by_hand
    completions, loss = one_each(), options_of(guidance=0.7, target="purified", contrasts=True)
    scores = jax.jit(lambda c: score_both.teacher_scores(teacher, c, loss))(completions)
    logits = np.asarray(scores.hidden @ teacher.head)
    weights = contract.weigh(completions, "tokens")
    contrast = np.asarray(after_teacher(completions, weights, scores, loss)[0].contrast)
    for row in (0, 4, 6):
        own, student, further = (plain(completions, row, name) for name in ("own", "student", "further"))
        tokens = real(completions.samples.tokens[row], completions.samples.mask[row])
        np.testing.assert_allclose(logits[row, : len(tokens)], student + 0.7 * (own - further), atol=2e-3)
        for number, one in enumerate((own, further)):
            got = scores.log_probs[row, number, : len(tokens)]
            np.testing.assert_allclose(got, of_tokens(one, tokens), atol=1e-3)
        want = of_tokens(own, tokens) - of_tokens(further, tokens)
        np.testing.assert_allclose(contrast[row, : len(tokens)], want, atol=2e-3)
        assert np.abs(want).max() > 0.1
    lacking = completions._replace(without=completions.without._replace(weights=jnp.zeros((len(logits), 1))))
    as_it_is = jax.jit(lambda c: score_both.teacher_scores(teacher, c, loss))(lacking)
    np.testing.assert_allclose((as_it_is.hidden @ teacher.head)[0], plain(completions, 0, "own"), atol=1e-3)
    assert not np.asarray(after_teacher(lacking, weights, as_it_is, loss)[0].contrast).any()


def test_the_better_of_two_is_chosen_token_by_token(by_hand):
    _, (student, teacher), plain = by_hand
    completions = one_each()
    scores = jax.jit(lambda c: score_both.teacher_scores(Better(teacher, student), c, options_of()))(completions)
    weights = contract.weigh(completions, "tokens")
    weighed = after_teacher(completions, weights, scores, options_of())[1]
    seen = set()
    for row in (0, 4, 6):
        tokens = real(completions.samples.tokens[row], completions.samples.mask[row])
        two = [plain(completions, row, "own", network) for network in (1, 0)]
        q, p = (of_tokens(one, tokens) for one in two)
        for t in range(len(tokens)):
            differ, confident = abs(q[t] - p[t]) > np.log(2), np.exp(q[t]) + np.exp(p[t]) >= 1
            mine, strength = (
                ((True, 1.0) if q[t] >= p[t] else (False, 0.6))
                if differ
                else ((True, 0.6) if confident else (False, 0.3))
            )
            logits = sum(
                hidden[row, t] @ network.head for hidden, network in zip(scores.hidden, (teacher, student), strict=True)
            )
            np.testing.assert_allclose(logits, two[0 if mine else 1][t], atol=2e-3)
            seen.add((differ, mine))
            np.testing.assert_allclose(weighed.taught_rows[row, t], strength * weights.taught_rows[row, t], rtol=1e-5)
    assert len(seen) >= 3
    np.testing.assert_array_equal(weighed.all_rows, weights.all_rows)


def test_all_four_routes():
    q, p = np.log([[0.9, 0.1, 0.6, 0.1, 0.5]]), np.log([[0.2, 0.5, 0.6, 0.06, 0.5]])
    of_teacher, strength = better_of_two.route(jnp.asarray(q), jnp.asarray(p))
    assert of_teacher.tolist() == [[True, False, True, False, True]]
    np.testing.assert_allclose(strength, [[1.0, 0.6, 0.6, 0.3, 0.6]])


def test_rlcsd_moves_advantages_as_its_authors_do():
    """Their `compute_policy_loss_rlcsd`, line by line, with the settings of their runs with Qwen3."""
    rng = np.random.default_rng(0)
    advantages, contrast = rng.normal(0, 0.5, (4, 50)), rng.normal(0, 0.02, (4, 50))
    advantages[:, :9] = 0.0
    residual = np.clip(1.0 * 0.5 * np.tanh(contrast / 0.02), -2.0, 2.0)
    raw = advantages + (np.abs(residual) > 0.02) * residual
    want = np.where(advantages > 0, np.maximum(raw, 0), np.where(advantages < 0, np.minimum(raw, 0), 0))
    got = rlcsd.modulated(jnp.asarray(advantages), jnp.asarray(contrast))
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (want == 0).mean() > 0.2 and (want != advantages).mean() > 0.5
