"""The train step against sequences laid out by hand: right tokens, right offsets, right loss, for every variant."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1, stage2
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example
from rcsd_jax.data.rubrics_of_rows import with_rubrics
from rcsd_jax.methods import contract, score_both, self_distillation
from rcsd_jax.methods.networks import BASE, Network, Networks, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.state import init_state
from rcsd_jax.methods.step import Recipe, jit_step
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.rubrics.schema import from_records
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.recipe import loss_options, rollout_options
from rcsd_jax.run.rows import encode_all
from rcsd_jax.sampling import SamplingConfig
from tests.losses.test_losses import oracle
from tests.methods.rollouts import completions_of
from tests.settings_for_tests import settings_of

REWARDED = ("grpo", "dr_grpo", "grpo_rubric", "sdpo", "success", "feedback", "mixed")
DISTILLING = [v for v in stage2.VARIANTS if v not in (*REWARDED, *stage2.FAMILY, "sft", "reference_ema")]
CASES = [(stage1, v, {}) for v in stage1.VARIANTS] + [(stage2, v, {}) for v in DISTILLING]
CASES += [
    (stage2, "ground_truth", changes)
    for changes in ({"beta": 0.3}, {"skip_first": 2}, {"importance_clip": 0.5}, {"divergence": "sampled_token"})
]
TEMPERATURE = 1.2


def rubric(i):
    return from_records([f"Essential Criteria: States {i + j}." for j in range(3 + i)])


EXAMPLES = [
    Example(str(i), "Why? " * (i + 1), f"Because of {i}." * (i + 1), rubric(i), str(i), f"rows:{i}") for i in range(4)
]


@pytest.fixture(scope="module")
def tokenizer(user_dir):
    return load_tokenizer(user_dir / "model")


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer, layers=2)


@pytest.fixture(scope="module")
def deep_model(tokenizer):
    """With scanned layers, as real models have; few layers are unrolled."""
    return make_model(tokenizer, layers=6)


def make_model(tokenizer, layers):
    config = DecoderConfig(
        family="qwen3", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_layers=layers, num_heads=4,
        num_kv_heads=2, head_dim=8, rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-6, tie_embeddings=True,
        qkv_bias=False, qk_norm=True, max_position=2048, dtype=jnp.float32, param_dtype=jnp.float32, remat="none",
    )  # fmt: skip
    params = init_params(config, jax.random.key(0))
    # Wide enough that distributions are far from uniform and hang on the context: the roles then disagree.
    params = jax.tree.map(lambda x: 8.0 * x if x.ndim > 2 else x, params)
    params["embed"] *= 20.0
    return Decoder(config), params


@functools.partial(jax.jit, static_argnums=3)
def loss_and_sums(networks, completions, weights, options):
    scored = score_both.score_both(networks, completions, options)
    return self_distillation.loss_and_sums(scored, contract.tokens_of(completions), weights, options)


def data_for(config, tokenizer):
    config.data.pad_to = 512  # all variants have one shape, and compile once
    settings = settings_of(config)
    examples = with_rubrics(EXAMPLES, settings.rubric, generic=settings.generic_rubric, seed=config.seed)
    data = encode_all(examples, tokenizer, settings.encoding, settings.limits)
    assert data.skipped == 0
    return data


def options_for(tokenizer, config, **changes):
    """Options of the rollout and of the loss."""
    config.sampling.update(max_new_tokens=9, temperature=TEMPERATURE, top_k=0, top_p=1.0)
    config.loss.chunk_size = 4
    config.teacher.reason_tokens = min(config.teacher.reason_tokens, 5)
    model = Model(None, tokenizer, (tokenizer.eos_token_id,), 0, None)
    settings = settings_of(config)
    return dataclasses.replace(rollout_options(settings, model), **changes), loss_options(settings, model)


LONGEST = 1152  # of a context with its completion; one length, so that `by_hand` compiles once


@functools.partial(jax.jit, static_argnums=0)
def hidden_by_hand(decoder, params, tokens, length):
    at = jnp.arange(LONGEST)[None]
    return decoder.apply({"params": params}, tokens, segment_ids=(at < length).astype(jnp.int32), positions=at)[0]


def by_hand(decoder, params, context, completion):
    """Log-probabilities [N, V] that predict `completion` after `context`: one row from its first position on, nothing else."""
    tokens = np.concatenate([context, completion])
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(tokens)] = tokens
    hidden = hidden_by_hand(decoder, params, padded, len(tokens))
    logits = hidden[0, len(context) - 1 : len(tokens) - 1] @ head_matrix(decoder.config, params)
    return np.asarray(jax.nn.log_softmax(logits / TEMPERATURE), np.float64)


def tenths(completions):
    return contract.Weights(*[completions.completion_mask / 10] * 2)


def losses_by_hand(p, q, completion, settings):
    """Each token's loss [N] from both roles' log-probabilities [N, V], by the settings of a config's `loss`."""
    if settings.divergence == "sampled_token":
        at = range(len(completion)), completion
        values = -(q[at] - p[at]) * p[at]
    else:
        clip = settings.entry_clip or np.inf
        support = dict(top_k=settings.top_k, top_k_support=settings.top_k_support, tail=settings.tail)
        values = oracle(p, q, beta=settings.beta, entry_clip=clip, **support)
    weight = min(1.0, settings.importance_clip or 1.0)  # sampler and trainer agree: exp(0), cut at the clip
    return weight * values * (np.arange(len(completion)) >= settings.skip_first)


def case(module, variant, changes):
    """Those that take long and whose parts others have too run among the slow tests."""
    slow = variant in ("release", "opsd", "sdft", "random", "reduced", "noisy")
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(module, variant, changes, id=f"{module.__name__}:{variant} {changes or ''}", marks=marks)


@pytest.mark.parametrize("module, variant, changes", [case(*c) for c in CASES])
def test_both_roles_score_the_same_completion_at_the_right_offsets(module, variant, changes, tokenizer, model):
    check_scores(module, variant, changes, tokenizer, model)


@pytest.mark.slow
def test_a_scanned_decoder_scores_the_same_completion_at_the_right_offsets(tokenizer, deep_model):
    check_scores(stage2, "ground_truth", {}, tokenizer, deep_model)


def check_scores(module, variant, changes, tokenizer, model):
    decoder, params = model
    config = module.get_config(variant)
    config.loss.update(changes)
    data = data_for(config, tokenizer)
    batch = make_batch([2, 0], data, settings_of(config), pad_id=0)
    options, loss_settings = options_for(tokenizer, config)
    other = jax.tree.map(lambda x: x * 1.05, params)  # a teacher that differs from the student
    networks = Networks(Network(decoder, {"params": params}), Network(decoder, {"params": other}))

    completions = completions_of(networks, batch, jax.random.key(1), options)
    loss, sums = loss_and_sums(networks, completions, tenths(completions), loss_settings)

    samples = jax.tree.map(np.asarray, completions.samples)
    expected = []
    for row, i in enumerate([2, 0]):
        completion = samples.tokens[row][samples.mask[row]]
        context = np.asarray(completions.teacher_tokens[row])[np.asarray(completions.teacher_mask[row])]
        assert list(context[: len(data.teacher[i])]) == list(data.teacher[i])
        assert list(context[len(context) - len(data.transition) :]) == list(data.transition)
        if not options.reason_tokens:
            assert len(context) == len(data.teacher[i])
        p = by_hand(decoder, params, data.student[i], completion)
        q = by_hand(decoder, other, context, completion)
        np.testing.assert_allclose(
            samples.log_probs[row][samples.mask[row]], p[range(len(completion)), completion], atol=1e-4
        )
        expected.append(losses_by_hand(p, q, completion, config.loss).sum())
    np.testing.assert_allclose(np.asarray(sums["token_loss"]).sum(1), expected, rtol=2e-4)
    np.testing.assert_allclose(float(loss), sum(expected) / 10, rtol=2e-4)


@pytest.mark.slow
def test_slots_and_drafts_change_nothing_that_is_written(model, tokenizer):
    decoder, params = model
    config = stage2.get_config("reason_first")
    data = data_for(config, tokenizer)
    batch = make_batch([0, 1, 2, 3], data, settings_of(config), pad_id=0)
    options, _ = options_for(tokenizer, config)
    network = Network(decoder, {"params": params})
    written = {}
    for slots, drafts in ((0, 0), (2, 0), (2, 2)):
        some = dataclasses.replace(options, slots=slots, draft_tokens=drafts)
        written[slots, drafts] = completions_of(Networks(network, network), batch, jax.random.key(1), some)
    whole = written.pop((0, 0))
    for other in written.values():
        for name in ("teacher_tokens", "teacher_mask", "completion_mask"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(other, name))
        np.testing.assert_array_equal(whole.samples.tokens, other.samples.tokens)
    assert len(set(map(tuple, np.asarray(whole.samples.tokens)))) > 1


TEACHERS = {
    "fixed": lambda decoder: RoleNetwork(decoder, frozen=BASE),
    "live": lambda decoder: RoleNetwork(decoder, moving="trained"),
    "ema": lambda decoder: RoleNetwork(decoder, moving="average"),
}


@functools.cache
def compiled_step(decoder, options, loss, teacher, learning_rate, microbatches):
    """The optimizer and the step, traced once for all tests that take the same."""
    optimizer, _ = make_optimizer(learning_rate=learning_rate, steps=10)
    roles = Roles(RoleNetwork(decoder, moving="trained"), TEACHERS[teacher](decoder))
    recipe = Recipe(roles, options, loss, optimizer, microbatches=microbatches, ema_decay=0.5)
    return optimizer, jit_step(recipe).train_step


def make_step(model, tokenizer, *, microbatches=1, teacher="fixed", learning_rate=1e-3, **changes):
    decoder, params = model
    config = stage2.get_config("ground_truth")
    data = data_for(config, tokenizer)
    config.data.pad_to = 64
    batch = make_batch([0, 1, 2, 3], data, settings_of(config), pad_id=0)
    options, loss = options_for(tokenizer, config, **changes)
    optimizer, step = compiled_step(decoder, options, loss, teacher, learning_rate, microbatches)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, ema=teacher == "ema")
    return step, state, batch, {BASE: {"params": params}}


@pytest.mark.slow
def test_microbatches_give_the_same_update(model, tokenizer):
    results = []
    for microbatches in (1, 4):
        step, state, batch, frozen = make_step(model, tokenizer, microbatches=microbatches)
        results.append(step(state, frozen, batch, 0))
    for state, metrics, _ in results[1:]:
        assert abs(float(metrics["loss"]) - float(results[0][1]["loss"])) < 1e-5
        np.testing.assert_allclose(metrics["row_loss"], results[0][1]["row_loss"], rtol=1e-4)
        for a, b in zip(jax.tree.leaves(state.trained), jax.tree.leaves(results[0][0].trained), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_step_depends_on_seed_and_step_alone(model, tokenizer):
    step, state, batch, frozen = make_step(model, tokenizer)
    copy = lambda s: jax.tree.map(jnp.copy, s)
    a = step(copy(state), frozen, batch, 3)
    b = step(copy(state), frozen, batch, 3)
    c = step(copy(state), frozen, batch, 4)
    d = step(copy(state).replace(step=jnp.int32(7)), frozen, batch, 3)
    assert (a[2].samples.tokens == b[2].samples.tokens).all() and float(a[1]["loss"]) == float(b[1]["loss"])
    assert (a[2].samples.tokens != c[2].samples.tokens).any() and (a[2].samples.tokens != d[2].samples.tokens).any()


@pytest.mark.parametrize("teacher", ["fixed", "live", "ema"])
def test_teachers(model, tokenizer, teacher):
    step, state, batch, frozen = make_step(model, tokenizer, teacher=teacher)
    initial = model[1]
    first, *_ = step(state, frozen if teacher == "fixed" else {}, batch, 0)
    variables = TEACHERS[teacher](model[0]).at(first, frozen).variables["params"]["embed"]
    new = first.trained["embed"]
    expected = {"fixed": initial["embed"], "live": new, "ema": 0.5 * initial["embed"] + 0.5 * new}[teacher]
    assert (np.asarray(new) != np.asarray(initial["embed"])).any()
    np.testing.assert_allclose(variables, expected, atol=1e-6)


def test_loss_falls_on_a_fixed_batch(model, tokenizer):
    step, state, batch, frozen = make_step(model, tokenizer)
    values = []
    for _ in range(12):
        state, metrics, _ = step(state.replace(step=jnp.int32(0)), frozen, batch, 0)
        values.append(float(metrics["loss"]))
    assert np.mean(values[-3:]) < 0.7 * values[0]


def test_all_cut_rows_masked_gives_zero_loss_and_no_update(model, tokenizer):
    options = dict(mask_cut=True, sampling=SamplingConfig(max_new_tokens=2, temperature=1.0, eos_ids=()))
    step, state, batch, frozen = make_step(model, tokenizer, **options)
    new, metrics, _ = step(state, frozen, batch, 0)
    assert float(metrics["loss"]) == 0.0 and float(metrics["grad_norm"]) == 0.0 and float(metrics["share_cut"]) == 1.0
    np.testing.assert_array_equal(new.trained["embed"], model[1]["embed"])


def test_non_finite_step_keeps_the_state_and_says_so(model, tokenizer):
    step, state, batch, _ = make_step(model, tokenizer)
    params = model[1]
    broken = params | {"final_norm": params["final_norm"].at[0].set(jnp.nan)}
    new, metrics, _ = step(state, {BASE: {"params": broken}}, batch, 0)
    assert not bool(metrics["finite"]) and int(new.step) == 0
    assert not np.isfinite(np.asarray(metrics["row_loss"])).all()
    np.testing.assert_array_equal(new.trained["embed"], params["embed"])


@pytest.mark.parametrize("layers", ["model", pytest.param("deep_model", marks=pytest.mark.slow)])
def test_sampler_and_trainer_agree(layers, tokenizer, request):
    step, state, batch, frozen = make_step(request.getfixturevalue(layers), tokenizer)
    _, metrics, _ = step(state, frozen, batch, 0)
    assert float(metrics["sampler_trainer_log_prob_difference"]) < 1e-4


def test_weight_decay_is_for_matrices(model):
    _, params = model
    optimizer, _ = make_optimizer(learning_rate=0.1, steps=10, weight_decay=0.1)
    still = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda params: optimizer.update(still, optimizer.init(params), params)[0])(params)
    moved = {jax.tree_util.keystr(path): bool(x.any()) for path, x in jax.tree_util.tree_leaves_with_path(updates)}
    assert {name for name, m in moved.items() if not m} == {
        f"['{name}']" if name == "final_norm" else f"['layers']['{name}']"
        for name in ("final_norm", "input_norm", "post_norm", "q_norm", "k_norm")
    }


@pytest.mark.slow
def test_an_update_that_overflows_is_not_taken(model, tokenizer):
    step, state, batch, frozen = make_step(model, tokenizer, learning_rate=float("nan"))
    new, metrics, _ = step(state, frozen, batch, 0)
    assert np.isfinite(metrics["loss"]) and not bool(metrics["finite"])
    np.testing.assert_array_equal(new.trained["embed"], model[1]["embed"])
