"""What the losses refuse, ignore and take as traced values: nobody trains on wrong numbers in silence."""

import dataclasses
import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax import losses
from rcsd_jax.losses import policy_gradient

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
        (lambda: divergence(LOGITS, OTHER, beta=jnp.ones(3)), ("beta", "[3]")),
        (lambda: divergence(LOGITS, OTHER, beta="0.5"), ("beta", "'0.5'")),
        (lambda: divergence(LOGITS, OTHER, temperature=None), ("temperature", "None")),
        (lambda: divergence(LOGITS, OTHER, temperature=0.99e-4), ("temperature", "0.0001")),
        (lambda: divergence(LOGITS, OTHER, top_k=2.5), ("top_k", "2.5")),
        (lambda: divergence(LOGITS, OTHER, top_k=True), ("top_k", "True")),
        (lambda: jax.jit(lambda k: divergence(LOGITS, OTHER, top_k=k))(3), ("top_k", "static")),
        (lambda: from_hidden(*BOTH, chunk_size=2.0), ("chunk_size", "2.0")),
        (lambda: divergence(LOGITS, OTHER.tolist()), ("teacher_logits", "array")),
        (lambda: losses.token_log_probs(LOGITS, TOKENS.tolist()), ("tokens", "array")),
        (lambda: score(*BOTH, None), ("tokens", "None")),
        (lambda: losses.token_weights(ONES, "longest", max_length=0), ("max_length", "0")),
        (lambda: losses.importance_weight(TOKENS, ONES), ("trainer_log_probs", "int32")),
        (lambda: score(*BOTH, TOKENS, divergence="sampled_token", top_k=3), ("top_k", "sampled_token")),
        (lambda: score(*BOTH, TOKENS, divergence="sampled_token", entry_clip=0.1), ("entry_clip", "sampled_token")),
        (lambda: policy_gradient.group_advantages(ONES[0], group_size=2.0), ("group_size", "2.0")),
        (lambda: policy_gradient.clipped_policy_loss(ONES[0], ONES[0], ONES[0]), ("log_probs [5]", "[B, T]")),
        (lambda: policy_gradient.clipped_policy_loss(TOKENS, TOKENS, ONES), ("log_probs", "int32")),
        (lambda: policy_gradient.clipped_policy_loss(ONES, ONES, ONES, clip_low=1.5), ("clip_low", "1.5")),
        (lambda: policy_gradient.clipped_policy_loss(ONES, ONES, ONES, clip_high=-1), ("clip_high", "-1")),
        (lambda: weighted(*BOTH, TOKENS, ONES, sampler_log_probs=ONES, importance_clip=-1.0), ("importance_clip",)),
        (lambda: from_hidden(*BOTH, divergence="sampled_token"), ("divergence_from_hidden", "sampled_token")),
    ],
)
def test_what_does_not_belong_together_is_refused(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value), f"{word!r} not in {error.value}"


@pytest.mark.parametrize("option", ["betta", "importance_clip"])
@pytest.mark.parametrize("call", [from_hidden, lambda *x, **o: score(*x, TOKENS, **o)])
def test_an_unknown_option_is_named_with_those_there_are(call, option):
    with pytest.raises(TypeError, match=rf"_from_hidden has no option '{option}'; its options are .*beta"):
        call(*BOTH, **{option: 0.5})


def test_tokens_out_of_the_vocabulary_are_nan_and_ignored_ones_are_nothing():
    tokens = jnp.asarray([[0, -1, V, -100, 3]] * B)
    plain = losses.token_log_probs(LOGITS, tokens)
    assert np.isnan(plain[0]).tolist() == [False, True, True, True, False]
    for found in (
        losses.token_log_probs(LOGITS, tokens, ignore_index=-100),
        token_log_probs(HIDDEN, HEAD, tokens, ignore_index=-100)[0],
        losses.sampled_token_loss(LOGITS, OTHER, tokens, ignore_index=-100),
        score(*BOTH, tokens, ignore_index=-100).student_log_probs,
    ):
        assert np.isnan(found[0]).tolist() == [False, True, True, False, False] and found[0, 3] == 0.0
    _, entropies = token_log_probs(HIDDEN, HEAD, tokens, ignore_index=-100)
    assert (entropies[0] > 0).tolist() == [True, True, True, False, True]


def test_tokens_of_small_types():
    """int8 does not hold the vocabulary's size, nor uint8 -100."""
    logits = draw(4, 300)
    tokens = jnp.asarray([3, -1, 44, 127], jnp.int8)  # 44 is 300 in 8 bits
    found = losses.token_log_probs(logits, tokens)
    want = np.asarray(jax.nn.log_softmax(logits))[np.arange(4), np.asarray(tokens)]
    np.testing.assert_allclose(found, np.where(np.asarray(tokens) < 0, np.nan, want), rtol=1e-6)
    assert losses.token_log_probs(logits, jnp.full(4, 156, jnp.uint8), ignore_index=-100).all()  # 156 is -100


def test_gradients_of_tokens_out_of_the_vocabulary_are_nan_unless_they_weigh_nothing():
    tokens = TOKENS.at[0, 1].set(V).at[1, 2].set(-1)

    @jax.jit
    @jax.grad
    def gradient(hidden, weights):
        return losses.weighted_sum(token_log_probs(hidden, HEAD, tokens)[0], weights)

    assert np.argwhere(np.isnan(gradient(HIDDEN, ONES)).all(axis=-1)).tolist() == [[0, 1], [1, 2]]
    kept = ONES.at[0, 1].set(0.0).at[1, 2].set(0.0)
    assert np.isfinite(gradient(HIDDEN, kept)).all()


def test_masked_entries_stay_impossible_at_the_smallest_temperature():
    logits = jnp.array([[-1e4, -1e4, -jnp.inf]])
    log_probs = losses.token_log_probs(logits.repeat(3, axis=0), jnp.arange(3), temperature=losses.SMALLEST_TEMPERATURE)
    np.testing.assert_allclose(jnp.exp(log_probs), [0.5, 0.5, 0.0])


def test_ignored_tokens_have_no_gradient_and_no_weight():
    tokens = TOKENS.at[:, 1].set(-100)
    kept = jnp.ones((B, T)).at[:, 1].set(0.0)

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(hidden, ignore_index, weights, tokens):
        def total(hidden, logits):
            pairs = token_log_probs(hidden, HEAD, tokens, ignore_index=ignore_index)[0]
            plain = losses.token_log_probs(logits, tokens, ignore_index=ignore_index)
            alone = losses.weighted_sum(pairs, weights), losses.weighted_sum(plain, weights)
            loss, _ = weighted(hidden, *BOTH[1:], tokens, weights, ignore_index=ignore_index)
            return loss + sum(alone), (loss, *alone)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, LOGITS)

    ours, want = gradients(HIDDEN, -100, ONES, tokens), gradients(HIDDEN, None, kept, TOKENS)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(x[:, 0].any() and not x[:, 1].any() for x in ours[1])


SCHEDULES = [
    dict(beta=0.0, temperature=1.2), dict(beta=1.0, token_clip=0.2), dict(beta=0.3, temperature=0.7),
    dict(beta=0.5, top_k=3, tail="bucket", entry_clip=0.02),
]  # fmt: skip


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_traced_options_give_the_same(options):
    """Values and gradients with the option as an argument of the program are those of the number."""
    traced = {k: v for k, v in options.items() if isinstance(v, float)}
    fixed = {k: v for k, v in options.items() if k not in traced}

    def total(arrays, traced):
        logits, *hidden = arrays
        values = (
            divergence(logits, OTHER, **fixed, **traced).sum(),
            weighted(hidden[0], *BOTH[1:], TOKENS, ONES, **fixed, **traced)[0],
            score(hidden[1], *BOTH[1:], TOKENS, **fixed, **traced).divergence.sum(),
        )
        return sum(values), values

    gradient = jax.value_and_grad(total, has_aux=True)
    arrays = (LOGITS, HIDDEN, HIDDEN)
    found, want = jax.jit(gradient)(arrays, traced), jax.jit(functools.partial(gradient, traced=traced))(arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_other_traced_options():
    old = ONES - 1.5
    advantages = jnp.asarray([-1.0, 1.0])

    def values(x, temperature, clip):
        weighing = dict(sampler_log_probs=old, importance_clip=clip, temperature=temperature)
        return (
            token_log_probs(x, HEAD, TOKENS, temperature=temperature)[0],
            weighted(x, *BOTH[1:], TOKENS, ONES, **weighing)[0],
            losses.token_log_probs(LOGITS, TOKENS, temperature=temperature),
            losses.sampled_token_loss(LOGITS, OTHER, TOKENS, temperature=temperature),
            losses.entropy(LOGITS, temperature=temperature),
            losses.importance_weight(ONES, old, clip=clip),
            policy_gradient.clipped_policy_loss(ONES, old, advantages, clip_low=clip - 0.9, clip_high=clip),
        )

    def gradient(x, temperature, clip):
        total = lambda x: (sum(v.sum() for v in values(x, temperature, clip)), values(x, temperature, clip))
        return jax.value_and_grad(total, has_aux=True)(x)

    found = jax.jit(gradient)(HIDDEN, 1.3, 1.1)
    want = jax.jit(functools.partial(gradient, temperature=1.3, clip=1.1))(HIDDEN)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_traced_options_out_of_their_range_make_the_result_nan():
    """They cannot be looked at: -log p / T of a negative T would be another loss, and a negative clip a constant."""

    @jax.jit
    def values(beta, temperature, clip):
        return [
            divergence(LOGITS, OTHER, beta=beta),
            divergence(LOGITS, OTHER, temperature=temperature),
            divergence(LOGITS, OTHER, entry_clip=clip),
            divergence(LOGITS, OTHER, token_clip=clip),
            losses.entropy(-jnp.abs(LOGITS), temperature=temperature),
            losses.importance_weight(ONES, ONES, clip=clip),
            policy_gradient.clipped_policy_loss(ONES, ONES, ONES, clip_low=clip),
            policy_gradient.clipped_policy_loss(ONES, ONES, ONES, clip_high=clip),
        ]

    for good in (0.5, 1.0, 0.1), (0.0, 1e-4, 1.0):
        assert all(np.isfinite(x).all() for x in values(*good))
    for bad in (-0.1, -1.0, -0.1), (1.1, 0.0, -1.0), (jnp.nan, 0.9e-4, jnp.nan):
        assert all(np.isnan(x).all() for x in values(*bad))


def test_the_options_of_a_divergence_are_the_keywords_of_its_functions():
    fields = {field.name: field.default for field in dataclasses.fields(losses.DivergenceOptions)}
    keywords = inspect.signature(divergence).parameters.values()
    keywords = {p.name: p.default for p in keywords if p.kind == p.KEYWORD_ONLY}
    assert keywords.pop("temperature") == 1.0 and fields.pop("divergence") == "vocabulary" and fields == keywords


@pytest.mark.parametrize("given", [dict(beta=0.3, entry_clip=0.02), dict(beta=1.0, top_k=3, token_clip=0.2)], ids=str)
def test_options_of_a_divergence_are_static_or_a_tree_of_numbers(given):
    options = losses.DivergenceOptions(**given)
    assert options == losses.DivergenceOptions(**given) and hash(options) == hash(losses.DivergenceOptions(**given))
    value = lambda options: score(*BOTH, TOKENS, **vars(options)).divergence
    want = score(*BOTH, TOKENS, **given).divergence
    np.testing.assert_array_equal(jax.jit(value, static_argnums=0)(options), want)
    np.testing.assert_allclose(jax.jit(value)(options), want, rtol=1e-5, atol=1e-7)
    assert jax.tree.leaves(options) == [
        x for x in (options.beta, options.entry_clip, options.token_clip) if x is not None
    ]


@pytest.mark.parametrize("option", [dict(beta=1.5), dict(tail="drop"), dict(top_k=0), dict(token_clip=-1.0)], ids=str)
def test_options_of_a_divergence_are_checked_when_they_are_made(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=rf"{name} must be .* got {value!r}"):
        losses.DivergenceOptions(**option)
    with pytest.raises(dataclasses.FrozenInstanceError):
        losses.DivergenceOptions().beta = 0.5


def test_the_losses_need_jax_alone(tmp_path):
    """Imported and used where nothing can be imported but Python's own, jax and what jax requires."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib import machinery\n"
        "known = {'rcsd_jax', 'jax', 'jaxlib', 'numpy', 'scipy', 'ml_dtypes', 'opt_einsum', *sys.stdlib_module_names}\n"
        "class Known(machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in known or name.startswith('_sysconfigdata'):\n"
        "            return super().find_spec(name, path, target)\n"
        "sys.meta_path = [machinery.BuiltinImporter, machinery.FrozenImporter, Known]\n"
    )
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys\nfrom rcsd_jax import losses\nimport jax.numpy as jnp\n"
        "ours = {'.'.join(x.split('.')[:2]) for x in sys.modules if x.startswith('rcsd_jax')}\n"
        "print(float(losses.masked_mean(jnp.ones(3), jnp.ones(3))), sorted(ours))\n"
        "try:\n    import flax\nexcept ModuleNotFoundError:\n    print('no flax')\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "1.0 ['rcsd_jax', 'rcsd_jax.losses']\nno flax\n", result.stderr


def test_the_logits_of_several_teachers_are_added():
    """As of their hidden states side by side on heads one below the other; and one that is 0 everywhere is not multiplied."""
    second, second_head = draw(B, T, 3, seed=8), draw(3, V, seed=9)
    second = second.at[0].set(0.0)
    several = (TEACHER, second), (TEACHER_HEAD, second_head)
    one = jnp.concatenate([TEACHER, second], axis=-1), jnp.concatenate([TEACHER_HEAD, second_head])
    loss = lambda hidden, teacher: weighted(hidden, HEAD, *teacher, TOKENS, ONES)[0]
    for found, wanted in zip(*(jax.value_and_grad(loss)(HIDDEN, x) for x in (several, one)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    unused = jnp.zeros_like(second), jnp.full_like(second_head, jnp.nan)
    found = score(HIDDEN, HEAD, (TEACHER, unused[0]), (TEACHER_HEAD, unused[1]), TOKENS)
    for one, other in zip(found, score(*BOTH, TOKENS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    with pytest.raises(ValueError, match=r"teacher_hidden\[1\]"):
        score(HIDDEN, HEAD, (TEACHER, TEACHER), (TEACHER_HEAD, second_head), TOKENS)
