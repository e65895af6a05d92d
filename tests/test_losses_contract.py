"""What the losses refuse, ignore and take as traced values: nobody trains on wrong numbers in silence."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax import losses, policy_gradient

B, T, D, V = 2, 5, 4, 7


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LOGITS, OTHER = draw(B, T, V), draw(B, T, V, seed=1)
HIDDEN, HEAD = draw(B, T, D, seed=2), draw(D, V, seed=3)
TEACHER, TEACHER_HEAD = draw(B, T, D + 1, seed=4), draw(D + 1, V, seed=5)
TOKENS, ONES = jnp.arange(B * T).reshape(B, T) % V, jnp.ones((B, T))
BOTH = (HIDDEN, HEAD, TEACHER, TEACHER_HEAD)

divergence = losses.per_token_divergence
from_hidden = functools.partial(losses.divergence_from_hidden, chunk_size=2)
score = functools.partial(losses.score_from_hidden, chunk_size=2)
weighted = functools.partial(losses.weighted_divergence_from_hidden, chunk_size=2)
token_log_probs = functools.partial(losses.token_log_probs_from_hidden, chunk_size=2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.masked_mean(ONES, jnp.ones((B, 1))), ("values [2, 5]", "mask [2, 1]")),
        (lambda: losses.masked_mean(ONES, jnp.ones(T)), ("mask [5]",)),
        (lambda: losses.weighted_sum(ONES, jnp.ones((B, 1))), ("weights [2, 1]",)),
        (lambda: losses.token_weights(jnp.ones(T), "tokens"), ("mask", "[5]")),
        (lambda: losses.token_weights(ONES, "tokens", counted=jnp.ones(T)), ("counted", "[2]", "[5]")),
        (lambda: losses.token_weights(ONES, "rows"), ("reduction", "'rows'", "'tokens'")),
        (lambda: divergence(LOGITS, OTHER[..., :1]), ("student_logits [2, 5, 7]", "teacher_logits [2, 5, 1]")),
        (lambda: divergence(LOGITS, OTHER[0]), ("teacher_logits [5, 7]",)),
        (lambda: divergence(LOGITS, TOKENS), ("teacher_logits", "int32")),
        (lambda: divergence(LOGITS[0, 0, 0], OTHER[0, 0, 0]), ("student_logits", "[..., V]")),
        (lambda: losses.sampled_token_loss(LOGITS, OTHER[:1], TOKENS), ("teacher_logits [1, 5, 7]",)),
        (lambda: losses.token_log_probs(LOGITS, TOKENS[:, :-1]), ("tokens", "[2, 4]", "[2, 5]")),
        (lambda: losses.token_log_probs(LOGITS, ONES), ("tokens", "float32")),
        (lambda: losses.entropy(TOKENS), ("logits", "int32")),
        (lambda: losses.importance_weight(ONES, ONES[:, :1]), ("sampler_log_probs [2, 1]",)),
        (lambda: from_hidden(HIDDEN, HEAD, TEACHER[:, :-1], TEACHER_HEAD), ("[2, 5, 4]", "[2, 4, 5]", "[B, T]")),
        (lambda: from_hidden(HIDDEN, HEAD, TEACHER, TEACHER_HEAD[:, :-1]), ("student_head", "[5, 6]")),
        (lambda: from_hidden(HIDDEN, HEAD, TEACHER, HEAD), ("teacher_hidden [2, 5, 5]", "teacher_head [4, 7]")),
        (lambda: from_hidden(HIDDEN[0], HEAD, TEACHER[0], TEACHER_HEAD), ("student_hidden [5, 4]", "[B, T, D]")),
        (lambda: from_hidden(*BOTH, mask=jnp.ones((B, 1))), ("mask", "[2, 1]")),
        (lambda: score(*BOTH, TOKENS[:1]), ("tokens", "[1, 5]")),
        (lambda: weighted(*BOTH, TOKENS, jnp.ones(T)), ("weights", "[5]")),
        (lambda: weighted(*BOTH, TOKENS, ONES, importance_clip=2.0), ("sampler_log_probs",)),
        (
            lambda: weighted(*BOTH, TOKENS, ONES, sampler_log_probs=ONES[:1], importance_clip=2.0),
            ("sampler_log_probs", "[1, 5]"),
        ),
        (lambda: token_log_probs(HIDDEN, HEAD.T, TOKENS), ("head [7, 4]", "[D, V]")),
        (lambda: policy_gradient.group_advantages(ONES, group_size=2), ("rewards", "[2, 5]")),
        (lambda: policy_gradient.clipped_policy_loss(ONES, ONES[:1], ONES), ("sampler_log_probs [1, 5]",)),
        (lambda: policy_gradient.clipped_policy_loss(ONES, ONES, jnp.ones(T)), ("advantages", "[5]")),
        (lambda: policy_gradient.reference_kl(ONES, ONES[:, :1]), ("reference_log_probs [2, 1]",)),
        (lambda: divergence(LOGITS, OTHER, entry_clip=-0.1), ("entry_clip", "-0.1")),
        (lambda: divergence(LOGITS, OTHER, token_clip=float("nan")), ("token_clip", "nan")),
        (lambda: divergence(LOGITS, OTHER, temperature=jnp.float32(0.0)), ("temperature", "0.0")),
        (lambda: divergence(LOGITS, OTHER, beta=jnp.ones(3)), ("scalar", "[3]")),
        (lambda: weighted(*BOTH, TOKENS, ONES, sampler_log_probs=ONES, importance_clip=-1.0), ("importance_clip",)),
        (lambda: from_hidden(*BOTH, divergence="sampled_token"), ("divergence_from_hidden", "sampled_token")),
    ],
)
def test_what_does_not_belong_together_is_refused(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value), f"{word!r} not in {error.value}"


@pytest.mark.parametrize("call", [from_hidden, lambda *x, **o: score(*x, TOKENS, **o)])
def test_an_unknown_option_is_named_with_those_there_are(call):
    with pytest.raises(TypeError, match=r"_from_hidden has no option 'betta'; its options are .*beta"):
        call(*BOTH, betta=0.5)


def test_tokens_out_of_the_vocabulary_are_nan_and_ignored_ones_are_nothing():
    tokens = jnp.asarray([[0, -1, V, -100, 3]] * B)
    plain, _ = losses.token_log_probs(LOGITS, tokens), None
    assert np.isnan(plain[0]).tolist() == [False, True, True, True, False]
    for found in (
        losses.token_log_probs(LOGITS, tokens, ignore_index=-100),
        token_log_probs(HIDDEN, HEAD, tokens, ignore_index=-100)[0],
        losses.sampled_token_loss(LOGITS, OTHER, tokens, ignore_index=-100),
        score(*BOTH, tokens, ignore_index=-100).student_log_probs,
    ):
        assert np.isnan(found[0]).tolist() == [False, True, True, False, False] and found[0, 3] == 0.0


def test_ignored_tokens_have_no_gradient_and_no_weight():
    tokens = TOKENS.at[:, 1].set(-100)
    kept = jnp.ones((B, T)).at[:, 1].set(0.0)

    def total(hidden, ignore_index, weights, tokens):
        return weighted(hidden, *BOTH[1:], tokens, weights, ignore_index=ignore_index)[0]

    ours, want = (jax.value_and_grad(total)(HIDDEN, *rest) for rest in ((-100, ONES, tokens), (None, kept, TOKENS)))
    np.testing.assert_allclose(ours[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], want[1], rtol=1e-6)
    gradient = jax.grad(lambda x: losses.token_log_probs(x, tokens, ignore_index=-100).sum())(LOGITS)
    assert np.isfinite(gradient).all() and not gradient[:, 1].any()
    gradient = jax.grad(lambda x: token_log_probs(x, HEAD, tokens, ignore_index=-100)[0].sum())(HIDDEN)
    assert np.isfinite(gradient).all() and not gradient[:, 1].any() and gradient[:, 0].any()


SCHEDULES = [
    dict(beta=0.0, temperature=1.2), dict(beta=1.0), dict(beta=0.3, temperature=0.7), dict(entry_clip=0.05),
    dict(token_clip=0.2), dict(beta=0.5, top_k=3, tail="bucket", entry_clip=0.02),
]  # fmt: skip


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_traced_options_give_the_same(options):
    """Values and gradients under jit, with the option as an argument, are those of the number."""
    traced = {k: v for k, v in options.items() if isinstance(v, float)}
    fixed = {k: v for k, v in options.items() if k not in traced}

    def from_logits(x, traced):
        return divergence(x, OTHER, **fixed, **traced).sum()

    def hidden(x, traced):
        return weighted(x, *BOTH[1:], TOKENS, ONES, **fixed, **traced)[0]

    def scores(x, traced):
        return score(x, *BOTH[1:], TOKENS, **fixed, **traced).divergence.sum()

    for function, x in ((from_logits, LOGITS), (hidden, HIDDEN), (scores, HIDDEN)):
        found = jax.jit(jax.value_and_grad(function))(x, traced)
        want = jax.value_and_grad(functools.partial(function, traced=traced))(x)
        np.testing.assert_allclose(found[0], want[0], rtol=1e-5)
        np.testing.assert_allclose(found[1], want[1], rtol=1e-4, atol=1e-6)


def test_other_traced_options():
    old = ONES - 1.5

    def total(x, temperature, clip):
        log_probs, _ = token_log_probs(x, HEAD, TOKENS, temperature=temperature)
        options = dict(sampler_log_probs=old, importance_clip=clip, temperature=temperature)
        plain = losses.token_log_probs(LOGITS, TOKENS, temperature=temperature).sum()
        plain += (
            losses.entropy(LOGITS, temperature=temperature).sum() + losses.importance_weight(ONES, old, clip=clip).sum()
        )
        return log_probs.sum() + weighted(x, *BOTH[1:], TOKENS, ONES, **options)[0] + plain

    found = jax.jit(jax.value_and_grad(total))(HIDDEN, 1.3, 1.1)
    want = jax.value_and_grad(total)(HIDDEN, 1.3, 1.1)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_losses_need_jax_alone(tmp_path):
    """Imported where nothing of this project's other requirements is installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('absl', 'etils', 'flax', 'grain', 'ml_collections', 'optax', 'orbax', 'rich', 'tensorboardX',\n"
        "             'tensorflow_datasets', 'transformers', 'torch', 'pyarrow', 'safetensors', 'qwix', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
    )
    root = Path(__file__).resolve().parents[1]
    code = "from rcsd_jax import losses, policy_gradient; print(losses.entropy.__name__)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "entropy\n", result.stderr
