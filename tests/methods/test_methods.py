"""Methods beside self-distillation: their losses by hand, grading between sampling and learning, and whole runs."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from configs import stage2
from configs import world as world_config
from rcsd_jax import losses, world
from rcsd_jax.checkpoints import loading
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.evaluate.judged_sets import Judges
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.judge.judging import Judgement
from rcsd_jax.methods import METHODS, contract
from rcsd_jax.methods.networks import Network, Networks
from rcsd_jax.methods.score_both import score_teacher
from rcsd_jax.models import sharding
from rcsd_jax.models.head import head_matrix
from rcsd_jax.roles.encode import teacher_prompt
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.run import grading
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.dropout import with_dropout
from rcsd_jax.run.environment import Run
from rcsd_jax.run.recipe import loss_options, recipe_of, rollout_options
from rcsd_jax.run.rows import Rows, encode_all
from rcsd_jax.run.stage import run_stage
from rcsd_jax.sampling import Samples
from rcsd_jax.sampling.sampler import Completion
from rcsd_jax.settings.unpack import check, choices
from tests.methods.rollouts import completions_of
from tests.plain_logits import logits_after
from tests.settings_for_tests import settings_of

B, N, D, V = 4, 6, 8, 13
RNG = np.random.default_rng(0)


def options(**changes):
    policy = dict(clip_low=0.1, clip_high=0.3, kl=0.0, weight=0.5) | changes.pop("policy", {})
    policy = contract.PolicyOptions(**policy)
    return contract.LossOptions(policy=policy, temperature=1.3, chunk_size=4, **changes)


def scored_completions():
    arrays = [jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((B, N, D), (D, V), (B, N, D), (D, V))]
    tokens = jnp.asarray(RNG.integers(0, V, (B, N)), jnp.int32)
    mask = jnp.arange(N) < jnp.asarray([6, 3, 1, 5])[:, None]
    log_probs = log_softmax(arrays[0] @ arrays[1], 1.3)
    old = np.take_along_axis(log_probs, np.asarray(tokens)[..., None], -1)[..., 0] + 0.3 * RNG.normal(size=(B, N))
    samples = Samples(tokens, mask, jnp.where(mask, old, 0.0).astype(jnp.float32), jnp.zeros(B, bool))
    prompts = [jnp.zeros((B, 1), jnp.int32), jnp.ones((B, 1), bool)] * 2
    advantages = jnp.asarray([1.0, -0.7, 0.0, -1.5])
    return contract.Scored(*arrays), contract.Completions(
        *prompts, samples, mask, advantages, nothing_without(B), jnp.ones(B, bool)
    )


def loss_and_sums(method, scored, completions, weights, options):
    return METHODS[method].loss_and_sums(scored, contract.tokens_of(completions), weights, options)


def nothing_without(rows):
    return contract.Without(
        jnp.zeros((rows, 0, 0), jnp.int32), jnp.zeros((rows, 0, 0), bool), jnp.zeros((rows, 0), jnp.float32)
    )


def log_softmax(logits, temperature):
    x = np.asarray(logits, np.float64) / temperature
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def of_tokens(hidden, head, tokens, temperature):
    return np.take_along_axis(log_softmax(hidden @ head, temperature), np.asarray(tokens)[..., None], -1)[..., 0]


# --- losses by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_token_log_probs_from_hidden_are_the_plain_ones(chunk_size, dtype, atol):
    scored, completions = scored_completions()
    hidden, head, tokens = scored.student_hidden.astype(dtype), scored.student_head.astype(dtype), completions[4].tokens
    coefficients = jnp.asarray(RNG.normal(size=(B, N)), jnp.float32)

    def chunked(hidden, head):
        log_probs, entropy = losses.token_log_probs_from_hidden(
            hidden, head, tokens, chunk_size=chunk_size, temperature=0.7
        )
        return (coefficients * log_probs).sum(), (log_probs, entropy)

    def plain(hidden, head):
        logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32)
        log_probs = losses.token_log_probs(logits, tokens, temperature=0.7)
        return (coefficients * log_probs).sum(), (log_probs, losses.entropy(logits, temperature=0.7))

    got, want = (jax.value_and_grad(f, (0, 1), has_aux=True)(hidden, head) for f in (chunked, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol, rtol=atol)
    np.testing.assert_allclose(got[0][1][0], of_tokens(hidden, head, tokens, 0.7), atol=max(atol, 1e-4))


def test_token_log_probs_from_hidden_refuse_bad_options():
    scored, completions = scored_completions()
    for bad in (dict(chunk_size=0), dict(chunk_size=1, temperature=0.0)):
        with pytest.raises(ValueError, match="chunk_size|temperature"):
            losses.token_log_probs_from_hidden(*scored[:2], completions.samples.tokens, **bad)


def test_sft_is_cross_entropy_whatever_the_sampling_temperature():
    scored, completions = scored_completions()
    weights = contract.weigh(completions, "tokens")
    loss, sums = loss_and_sums("sft", contract.Scored(*scored[:2], None, None), completions, weights, options())
    mask = np.asarray(completions.completion_mask)
    want = -of_tokens(*scored[:2], completions.samples.tokens, 1.0)
    np.testing.assert_allclose(loss, want[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(sums["token_loss"].sum(1), (want * mask).sum(1), rtol=1e-5)


@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["tokens", "completions", "longest"])
def test_grpo_by_hand(reduction, kl):
    scored, completions = scored_completions()
    mask, tokens = np.asarray(completions.completion_mask), completions.samples.tokens
    weights = contract.weigh(completions, reduction)
    loss, sums = loss_and_sums("grpo", scored, completions, weights, options(policy=dict(kl=kl)))
    new = of_tokens(*scored[:2], tokens, 1.3)
    ratio, advantage = np.exp(new - np.asarray(completions.samples.log_probs)), np.asarray(completions.advantages)
    each = -np.minimum(ratio * advantage[:, None], np.clip(ratio, 0.9, 1.3) * advantage[:, None])
    difference = of_tokens(*scored[2:], tokens, 1.3) - new
    each += kl * (np.exp(difference) - difference - 1)
    want = {
        "tokens": each[mask].mean(),
        "completions": np.mean([row[keep].mean() for row, keep in zip(each, mask, strict=True)]),
        "longest": each[mask].sum() / (B * N),
    }
    np.testing.assert_allclose(loss, want[reduction], rtol=1e-4)
    np.testing.assert_allclose(sums["ratio_clipped"], (((ratio < 0.9) | (ratio > 1.3))[mask].sum(), mask.sum()))
    assert ("reference_kl" in sums) == bool(kl)


def test_grpo_lets_gradient_to_the_student_alone():
    scored, completions = scored_completions()
    weights = contract.weigh(completions, "completions")
    loss = lambda scored: loss_and_sums("grpo", scored, completions, weights, options(policy=dict(kl=0.1)))[0]
    gradient = jax.grad(loss)(scored)
    assert all(bool(jnp.abs(x).max() > 0) for x in gradient[:2])
    assert all(bool((x == 0).all()) for x in gradient[2:])


def test_mixed_is_the_sum_of_both_and_untaught_rows_are_rewarded_only():
    scored, completions = scored_completions()
    both = lambda name, c: loss_and_sums(name, scored, c, contract.weigh(c, "tokens"), options())[0]
    want = both("self_distillation", completions) + 0.5 * both("grpo", completions)
    np.testing.assert_allclose(both("self_distillation_and_grpo", completions), want, rtol=1e-6)

    untaught = completions._replace(taught=jnp.zeros(B, bool))
    assert float(both("self_distillation", untaught)) == 0.0
    np.testing.assert_allclose(both("self_distillation_and_grpo", untaught), 0.5 * both("grpo", completions), rtol=1e-6)


@pytest.mark.parametrize("method", ["self_distillation", "self_distillation_and_grpo"])
@pytest.mark.parametrize("reduction", ["tokens", "completions", "longest"])
def test_rows_that_nobody_teaches_leave_numerator_and_denominator(method, reduction):
    """The two taught rows beside two that are not are learnt as if they were alone: loss, gradient and what is logged."""
    scored, completions = scored_completions()
    settings = options(policy=dict(weight=0.0), reduction=reduction)
    taught = jnp.asarray([True, False, True, False])
    rows = lambda tree: jax.tree.map(lambda x: x[::2], tree)
    cut = lambda s: contract.Scored(s.student_hidden[::2], s.student_head, s.teacher_hidden[::2], s.teacher_head)

    def value(hidden, scored, completions):
        weights = contract.weigh(completions, settings.reduction)
        return loss_and_sums(method, scored._replace(student_hidden=hidden), completions, weights, settings)

    whole = completions._replace(taught=taught)
    (loss, sums), gradient = jax.value_and_grad(value, has_aux=True)(scored.student_hidden, scored, whole)
    alone = cut(scored)
    (want, wanted), theirs = jax.value_and_grad(value, has_aux=True)(alone.student_hidden, alone, rows(completions))
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(gradient[::2], theirs, rtol=1e-5, atol=1e-8)
    assert not gradient[1::2].any()
    for name in ("divergence", "teacher_entropy"):
        np.testing.assert_allclose(sums[name], wanted[name], rtol=1e-6)
    none = completions._replace(taught=jnp.zeros(B, bool))
    (loss, sums), gradient = jax.value_and_grad(value, has_aux=True)(scored.student_hidden, scored, none)
    assert float(loss) == 0.0 and not gradient.any() and sums["divergence"].tolist() == [0.0, 0.0]


def test_what_is_logged_has_the_mask_of_the_loss():
    scored, completions = scored_completions()
    masked = completions._replace(
        completion_mask=completions.completion_mask & (jnp.arange(N) >= 2) & (jnp.arange(B) != 3)[:, None]
    )
    loss, sums = loss_and_sums("self_distillation", scored, masked, contract.weigh(masked, "tokens"), options())
    value, count = sums["divergence"]
    assert count == masked.completion_mask.sum() < completions.samples.mask.sum()
    np.testing.assert_allclose(value / count, loss, rtol=1e-6)


def test_every_method_can_be_chosen():
    assert set(METHODS) == set(choices()["method"])


def test_token_weights_of_nothing_are_nothing():
    for reduction in ("tokens", "completions", "longest"):
        assert not losses.token_weights(jnp.zeros((2, 3), bool), reduction).any()
    mask = jnp.asarray([[1, 1, 0], [0, 0, 0]], bool)
    assert losses.token_weights(mask, "completions").tolist() == [[0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]


# --- on the embedded world -------------------------------------------------------------------------------------------


def config_of(variant, tmp_path, **train):
    config = world_config.get_config(variant)
    config.data.count, config.eval.grader = 16, ""
    config.train.update(dict(steps=2, batch_size=8) | train)
    config.checkpoint.every = 1
    config.rubric.source = "data"
    config.sampling.max_new_tokens = 64
    return config


def context(config, tmp_path):
    mesh = sharding.make_mesh(**config.mesh)
    run = Run(settings_of(config), tmp_path, mesh, rich.console.Console(quiet=True), StopRequest(), "run")
    return run, open_model(config.model.path, config.model)


def rows_of_texts(texts, model, length):
    """Samples [B, N] that spell these texts, each ended."""
    encoded = [[*model.tokenizer(t, add_special_tokens=False)["input_ids"], model.eos_ids[0]] for t in texts]
    tokens, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    for i, row in enumerate(encoded):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return Samples(jnp.asarray(tokens), jnp.asarray(mask), jnp.zeros(tokens.shape), jnp.zeros(len(texts), bool))


def grade_texts(config, tmp_path, texts, examples, judge=None, batches=1):
    run, model = context(config, tmp_path)
    run, asked = run._replace(judges=None if judge is None else Judges(judge)), run.config
    with jax.set_mesh(run.mesh):
        data = encode_all(examples, model.tokenizer, asked.encoding, asked.limits)
        rows = list(range(len(examples)))
        batch = make_batch(rows, data, asked, model.pad_id)
        recipe = recipe_of(asked, model, optax.set_to_zero())
        written = contract.Completions(
            *batch[1:5], rows_of_texts(texts, model, 64), jnp.ones((len(rows), 64), bool), jnp.zeros(len(rows)),
            batch.without, jnp.ones(len(rows), bool),
        )  # fmt: skip
        completions, metrics = grading.graded(written, examples, data.examples, recipe, model, run)
        assert len(metrics) == batches
        return completions, metrics[0] if batches == 1 else metrics, model


def group_of(example, right):
    """A group's texts: the reference that is all right, or a wrong answer."""
    good = world.documents.careful_solution(example.extra["problem"])
    return [good if is_right else "answer \\boxed{ 1 }" for is_right in right]


def test_advantages_and_teachers_that_see_the_groups_own_success(tmp_path):
    config = config_of("success", tmp_path)
    first, second = world.examples("stage2", 2, seed=5)
    texts = group_of(first, [0, 1, 0, 1]) + group_of(second, [0, 0, 1, 0])
    completions, metrics, model = grade_texts(config, tmp_path, texts, [first] * 4 + [second] * 4)

    assert completions.taught.tolist() == [True, True, True, True, True, True, False, True]
    assert metrics["graded_accuracy"] == 3 / 8 and metrics["share_taught"] == 7 / 8 and metrics["groups_alike"] == 0
    rewards = np.array([[0, 1, 0, 1], [0, 0, 1, 0]], float)
    want = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(completions.advantages, want.ravel(), rtol=1e-5)
    for row, success in ((0, texts[1]), (1, texts[3]), (3, texts[1]), (4, texts[6])):
        shown = np.asarray(completions.teacher_tokens[row])[np.asarray(completions.teacher_mask[row])]
        text = model.decode(shown)
        assert f"reference : {success}" in " ".join(text.split()), text


def words_of(model, tokens, mask):
    return " ".join(model.decode(np.asarray(tokens)[np.asarray(mask)]).split())


def test_without_answers_the_majority_s_shortest_teaches_its_longest_dissenter(tmp_path):
    config = config_of("u_opsd", tmp_path)
    assert config.reward.grader == "world_majority"
    config.sampling.group = 4
    first, second = world.examples("stage2", 2, seed=5)
    boxed = world.documents.careful_solution(first.extra["problem"]).rpartition("answer")[2]
    good, short = group_of(first, [1])[0], f"answer{boxed}"
    texts = [good, short, "answer \\boxed{ 1 }", "answer answer answer \\boxed{ 2 }"]
    texts += [
        "answer \\boxed{ 1 0 g }",
        "answer \\boxed{ 2 0 g }",
        "answer",
        "answer \\boxed{ 3 0 g }",
    ]  # nobody agrees
    completions, metrics, model = grade_texts(config, tmp_path, texts, [first] * 4 + [second] * 4)
    assert completions.completion_mask.any(axis=1).tolist() == [False] * 3 + [True] + [False] * 4
    assert completions.taught.tolist() == [True] * 4 + [False] * 4
    shown = [words_of(model, completions.teacher_tokens[i], completions.teacher_mask[i]) for i in (1, 3)]
    assert f"reference : {good}" in shown[0] and f"reference : {short}" in shown[1] and good not in shown[1]
    assert metrics["graded_accuracy"] == 0.5 and metrics["share_graded"] == 0.5


def test_a_failure_of_the_group_stands_where_the_success_stood(tmp_path):
    config = config_of("contrastive", tmp_path)
    first, second = world.examples("stage2", 2, seed=5)
    texts = group_of(first, [0, 1, 1, 1]) + group_of(second, [0, 0, 0, 0])
    completions, _, model = grade_texts(config, tmp_path, texts, [first] * 4 + [second] * 4)
    # The only failure has no other one; without a success nothing is contrasted.
    assert completions.without.weights[:, 0].tolist() == [0.0, 1.0, 1.0, 1.0] + [0.0] * 4
    right = words_of(model, completions.teacher_tokens[2], completions.teacher_mask[2])
    wrong = words_of(model, completions.without.tokens[2, 0], completions.without.mask[2, 0])
    assert texts[1] in right and wrong == right.replace(texts[1], texts[0]) and texts[0] in wrong


def test_criteria_that_a_completion_fails_weigh_what_the_rubric_says(tmp_path):
    config = config_of("credit", tmp_path)
    assert config.reward.grader == "world"
    one = next(e for e in world.examples("stage2", 40, seed=5) if "distractor" in e.extra["complications"])
    texts = [group_of(one, [1])[0], one.reference, "answer \\boxed{ 1 }"]
    completions, _, _ = grade_texts(config, tmp_path, texts, [one] * 3)
    criteria = one.rubric.criteria
    assert completions.failed.shape == completions.without.weights.shape == (3, len(criteria))
    for row, text in enumerate(texts):
        met = world.grade_solution(one, text).criteria_met
        want = [
            abs(c.weight) * (is_met if c.kind == "Pitfall" else not is_met)
            for c, is_met in zip(criteria, met, strict=True)
        ]
        assert completions.failed[row].tolist() == want
    assert not completions.failed[0].any() and completions.failed[2].any()


def test_only_answers_are_graded_and_shown(tmp_path):
    config = config_of("success", tmp_path)
    config.sampling.group = 4
    config.model.update(thought_begin="<user>", thought_end="<unk>")
    one = world.examples("stage2", 1, seed=5)[0]
    good, bad = group_of(one, [1, 0])
    texts = [f"<user> {bad} <unk> {good}", f"<user> {good} <unk> {bad}", f"<user> {good}", bad]
    completions, metrics, model = grade_texts(config, tmp_path, texts, [one] * 4)
    assert metrics["graded_accuracy"] == 1 / 4 and completions.taught.tolist() == [False, True, True, True]
    shown = np.asarray(completions.teacher_tokens[1])[np.asarray(completions.teacher_mask[1])]
    assert f"reference : {good}" in " ".join(model.decode(shown).split())


def test_a_rollout_is_graded_at_once_and_each_batch_has_its_own_metrics(tmp_path):
    config = config_of("success", tmp_path)
    config.sampling.group = 2
    config.train.update(steps=4, batch_size=4, batches_per_rollout=2)
    examples = world.examples("stage2", 4, seed=5)
    right = [[1, 1], [0, 0], [1, 0], [0, 0]]  # the first question of each batch, then the second of each
    texts = [text for example, group in zip(examples, right, strict=True) for text in group_of(example, group)]
    rows = [example for example in examples for _ in range(2)]
    completions, metrics, _ = grade_texts(config, tmp_path, texts, rows, batches=2)
    wanted = [{"graded_accuracy": 3 / 4, "groups_alike": 1 / 2, "share_taught": 3 / 4}]
    wanted += [{"graded_accuracy": 0.0, "groups_alike": 1.0, "share_taught": 0.0}]
    assert [{name: one[name] for name in wanted[0]} for one in metrics] == wanted
    assert completions.taught.tolist() == [True, True, False, False, False, True, False, False]
    np.testing.assert_allclose(np.sign(completions.advantages), [0, 0, 0, 0, 1, -1, 0, 0])


def test_a_success_that_a_judge_found_is_shown(tmp_path):
    config = config_of("success", tmp_path)
    config.reward.update(dict(grader="judge", score="rubric_score"))
    config.judge.model = "some"
    check(config)
    one = world.examples("stage2", 1, seed=5)[0]
    right = [0, 1, 0, 0]
    met = lambda is_right: tuple(float(is_right and c.weight > 0) for c in one.rubric.criteria)
    judge = lambda *_: [Judgement(met(is_right), ("",) * len(one.rubric.criteria)) for is_right in right]
    completions, _, _ = grade_texts(config, tmp_path, group_of(one, right), [one] * 4, judge)
    assert completions.taught.tolist() == [True, False, True, True]
    config.teacher.fields = ("question", "feedback")
    with pytest.raises(UserError, match="no feedback") as error:
        check(config)
    assert error.value.field == "reward.grader"


def test_teachers_that_see_what_the_grader_says(tmp_path):
    config = config_of("feedback", tmp_path)
    one = world.examples("stage2", 1, seed=5)[0]
    texts = group_of(one, [0, 1])
    completions, metrics, model = grade_texts(config, tmp_path, texts, [one] * 2)
    assert completions.taught.tolist() == [True, False] and metrics["share_taught"] == 0.5
    said = model.decode(np.asarray(completions.teacher_tokens[0])[np.asarray(completions.teacher_mask[0])])
    failed = world.failed_criteria(one, texts[0])
    assert 0 < len(failed.criteria) < len(one.rubric.criteria)
    assert all(" ".join(c.description.split()) in " ".join(said.split()) for c in failed.criteria)


def test_a_success_comes_before_feedback(tmp_path):
    config = config_of("sdpo", tmp_path)
    config.sampling.group = 4
    one = world.examples("stage2", 1, seed=5)[0]
    texts = group_of(one, [0, 1, 0, 0])
    completions, metrics, model = grade_texts(config, tmp_path, texts, [one] * 4)
    prompts = [model.decode(np.asarray(t)[np.asarray(m)]) for t, m in zip(*completions[2:4], strict=True)]
    text = lambda x: " ".join(x.split())
    # The only one that succeeded has no other's to see, and no fault.
    assert completions.taught.tolist() == [True, False, True, True] and metrics["share_taught"] == 0.75
    assert all(text(texts[1]) in text(prompts[i]) for i in (0, 2, 3))
    completions, _, model = grade_texts(config, tmp_path, group_of(one, [0] * 4), [one] * 4)
    prompt = text(model.decode(np.asarray(completions.teacher_tokens[0])[np.asarray(completions.teacher_mask[0])]))
    failed = world.failed_criteria(one, group_of(one, [0])[0]).criteria
    assert completions.taught.all() and all(text(c.description) in prompt for c in failed)


@pytest.mark.parametrize(
    "how, both, success, feedback, none",
    [
        ("all", ("success", "feedback"), (), (), ()),
        ("any", ("success", "feedback"), ("success",), ("feedback",), ()),
        ("first", ("success",), ("success",), ("feedback",), ()),
    ],
)
def test_the_attempts_that_a_teacher_sees(how, both, success, feedback, none):
    config = stage2.get_config("sdpo")
    config.teacher.attempts_shown = how
    teacher = settings_of(config).teacher
    found = [
        grading.attempts_seen({"success": s, "feedback": f}, teacher)
        for s, f in (("yes", "no"), ("yes", None), (None, "no"), ("", None))
    ]
    assert found == [both, success, feedback, none]


def test_a_success_is_shown_without_its_thought():
    assert grading.without_thoughts("<think>Perhaps 6.</think>\n\nIt is 7.") == "It is 7."
    assert grading.without_thoughts("Perhaps 6.</think>It is 7.") == "It is 7."
    assert grading.without_thoughts(" It is 7.\n") == " It is 7.\n" and grading.without_thoughts("<think>Perhaps") == ""


def test_feedback_of_every_grader():
    one = world.examples("stage2", 1)[0]
    boxed = dataclasses.replace(one, reference="so \\boxed{7}")
    assert GRADERS["boxed"].feedback(boxed, "\\boxed{7}") is None
    assert "8" in GRADERS["boxed"].feedback(boxed, "\\boxed{8}") and "no final" in GRADERS["boxed"].feedback(boxed, "8")
    assert (
        GRADERS["rubric"].feedback(one, "no") and GRADERS["rubric"].feedback(one, '["Essential Criteria: a"]') is None
    )


def test_a_score_that_the_grader_lacks_is_named(tmp_path):
    config = config_of("grpo", tmp_path)
    config.reward.score = "beauty"
    one = world.examples("stage2", 1)[0]
    with pytest.raises(UserError, match="beauty") as error:
        grade_texts(config, tmp_path, group_of(one, [0, 0, 0, 1]), [one] * 4)
    assert error.value.field == "reward.score" and "accuracy" in error.value.remedy


def run(config, workdir):
    with StopRequest() as stop:
        return run_stage(config, workdir, rich.console.Console(quiet=True), stop)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "variant, logged",
    [
        ("sft", "cross_entropy"),
        pytest.param("grpo", "policy_loss", marks=SLOW),
        pytest.param("grpo_rubric", "graded_rubric_score", marks=SLOW),
        pytest.param("feedback", "share_taught", marks=SLOW),
        pytest.param("reference_ema", "divergence", marks=SLOW),
        pytest.param("mixed", "policy_loss", marks=SLOW),
    ],
)
def test_every_method_trains_and_continues_exactly(variant, logged, tmp_path, monkeypatch):
    monkeypatch.setattr("rcsd_jax.run.rows.AT_START", 4)  # the others are prepared as they are drawn
    config = config_of(variant, tmp_path)
    if variant == "sft":  # rows that are left out have others in their place, from which the second run must not begin
        config.sampling.max_new_tokens, config.data.too_long = 36, "skip"
    if variant == "grpo":
        config.policy.kl, config.sampling.slots = 0.1, 4
        config.train.batch_size = 16  # of fewer groups all may be alike, and teach nothing
    summary = run(config, tmp_path / "whole")
    assert summary["skipped"] > 0 or variant != "sft"
    whole = metrics_of(tmp_path / "whole")
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in whole) and logged in whole[0]

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "2")
    (tmp_path / "again" / "summary.json").unlink()
    run(config, tmp_path / "again")
    again = metrics_of(tmp_path / "again")
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]


def test_sft_learns_the_references(tmp_path):
    config = config_of("sft", tmp_path)
    run_, model = context(config, tmp_path)
    asked = run_.config
    examples = world.examples("stage2", 4)
    data = encode_all(examples, model.tokenizer, asked.encoding, asked.limits)
    batch = make_batch([0, 1, 2, 3], data, asked, model.pad_id)
    for i, example in enumerate(examples):
        tokens = np.asarray(batch.reference_tokens[i])[np.asarray(batch.reference_mask[i])]
        assert tokens[-1] == model.tokenizer.eos_token_id
        spelled = model.tokenizer(example.reference, add_special_tokens=False)["input_ids"]
        assert tokens[:-1].tolist() == spelled and Completion(tokens, False)
    assert batch.reference_tokens.shape == (4, config.sampling.max_new_tokens)
    config.sampling.max_new_tokens = 40
    config.data.too_long = "skip"
    asked = settings_of(config)
    kept = encode_all(world.examples("stage2", 40), model.tokenizer, asked.encoding, asked.limits)
    assert 0 < kept.skipped < 40 and max(map(len, kept.references)) <= 40


# --- tokens that count more, and criteria left out -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["position", "low_probability"])
def test_emphases_that_follow_from_completions_multiply_the_weights_of_the_batch(kind):
    _, completions = scored_completions()
    completions = completions._replace(taught=jnp.asarray([True, True, False, True]))
    plain = contract.weigh(completions, "completions")
    weights = contract.weigh(completions, "completions", contract.Emphasis(kind, 0.75, 0.4))
    mask, log_probs = np.asarray(completions.completion_mask), np.asarray(completions.samples.log_probs)
    factor = {
        "position": losses.emphasis.by_position(mask),
        "low_probability": (log_probs <= np.sort(log_probs[mask])[int(0.4 * mask.sum()) - 1]) & mask,
    }[kind]
    for got, want in zip(weights, plain, strict=True):
        np.testing.assert_allclose(got, want * (0.25 + 0.75 * np.asarray(factor)), rtol=1e-5)
    assert not weights.taught_rows[2].any() and weights.all_rows[2].any()


def test_each_token_s_loss_has_the_emphasis_that_the_loss_has():
    scored, completions = scored_completions()
    weights = contract.weigh(completions, "tokens")
    loss, sums = loss_and_sums(
        "self_distillation", scored, completions, weights, options(emphasis=contract.Emphasis("gap", 0.5))
    )
    np.testing.assert_allclose(loss, (weights.taught_rows * sums["token_loss"]).sum(), rtol=1e-5)
    _, plain = loss_and_sums("self_distillation", scored, completions, weights, options())
    mean = sums["emphasis"][0] / sums["emphasis"][1]
    assert 0.5 < mean < 1.0 and (sums["token_loss"] <= plain["token_loss"]).all()


def test_a_fixed_advantage_makes_what_was_sampled_less_likely():
    scored, completions = scored_completions()
    weights = contract.weigh(completions, "tokens", contract.Emphasis("low_probability", 1.0, 0.4))
    gradient = jax.grad(
        lambda hidden: loss_and_sums(
            "fixed_advantage", scored._replace(student_hidden=hidden), completions, weights, options()
        )[0]
    )(scored.student_hidden)
    learnt = np.asarray(weights.all_rows > 0)
    log_probs = of_tokens(scored.student_hidden, scored.student_head, completions.samples.tokens, 1.3)
    ratio = np.exp(log_probs - np.asarray(completions.samples.log_probs))
    loss, _ = loss_and_sums("fixed_advantage", scored, completions, weights, options())
    by_hand = (np.asarray(weights.all_rows) * np.maximum(ratio, np.clip(ratio, 0.9, 1.3)))[learnt].sum()
    np.testing.assert_allclose(loss, by_hand, rtol=1e-4)
    moved = of_tokens(scored.student_hidden - 0.01 * gradient, scored.student_head, completions.samples.tokens, 1.3)
    followed = learnt & (ratio > 0.9)  # below the clip a ratio is pushed no further
    assert followed.any() and (moved[followed] < log_probs[followed]).all() and not gradient[~learnt].any()


def test_a_rollout_s_dropped_criteria_follow_from_seed_place_and_row(tmp_path):
    config = config_of("ground_truth", tmp_path)
    config.rubric.update(dropout=0.5, min_criteria=2)
    asked = settings_of(config)
    model = open_model(config.model.path, config.model)
    examples = world.examples("stage2", 6)
    rows = Rows(examples, model.tokenizer, asked)
    assert rows.start(positions=1000)
    first, place = rows.take(0, 3)
    rows.take(3, 3)
    again, _ = rows.take(0, 3)
    assert place == 3
    for one, same in zip(first.examples, again.examples, strict=True):
        whole = next(e for e in examples if e.id == one.id).rubric.criteria
        assert one == same and len(one.rubric.criteria) == max(2, len(whole) - len(whole) // 2)
        assert [c for c in whole if c in one.rubric.criteria] == list(one.rubric.criteria)
    shown = " ".join(model.decode(first.teacher[0]).split())
    graded = with_dropout([next(e for e in examples if e.id == first.examples[0].id)], 0, asked)[0]
    assert graded.rubric == first.examples[0].rubric  # what grades is what the teacher sees
    assert all(c.description in shown for c in graded.rubric.criteria)
    left_out = set(next(e for e in examples if e.id == graded.id).rubric.criteria) - set(graded.rubric.criteria)
    assert left_out and not any(c.description in shown for c in left_out)
    later = [with_dropout(examples, place, asked) for place in range(0, 30, 6)]
    assert len({tuple(len(e.rubric.criteria) for e in one) for one in later}) == 1
    assert len({tuple(e.rubric for e in one) for one in later}) == 5
    text = world.documents.careful_solution(examples[0].extra["problem"])
    part = world.grade_solution(later[0][0], text)
    assert len(part.criteria_met) == len(later[0][0].rubric.criteria) and part.rubric_score == 1.0


# --- guided teachers -------------------------------------------------------------------------------------------------


def teacher_logits(config, tmp_path, examples):
    """Logits [B, N, V] of the guided teacher, and a function that gives the plain one's for a row and a prompt."""
    run_, model = context(config, tmp_path)
    asked = run_.config
    variables = {"params": loading.load_model(model.directory, dtype=jnp.float32)[1]}
    data = encode_all(examples, model.tokenizer, asked.encoding, asked.limits)
    batch = make_batch(list(range(len(examples))), data, asked, model.pad_id)
    options, loss = rollout_options(asked, model), loss_options(asked, model)

    @jax.jit
    def guided(variables, batch):
        network = Network(model.decoder, variables)
        completions = completions_of(Networks(network, network), batch, jax.random.key(0), options)
        hidden = score_teacher(network, completions, loss)
        return hidden @ head_matrix(model.decoder.config, variables["params"]), completions.samples

    logits, samples = guided(variables, batch)
    plain = lambda row, prompt: logits_after(model.decoder, variables, prompt, np.asarray(samples.tokens[row]))
    return np.asarray(logits), plain, data, samples.mask


def test_guidance_pushes_logits_along_what_the_rubric_changes(tmp_path):
    config = config_of("ground_truth", tmp_path)
    config.teacher.guidance, config.sampling.max_new_tokens = 0.5, 8
    logits, plain, data, mask = teacher_logits(config, tmp_path, world.examples("stage2", 2))
    for row in range(2):
        with_rubric, without = plain(row, data.teacher[row]), plain(row, data.student[row])
        want, keep = with_rubric + 0.5 * (with_rubric - without), np.asarray(mask[row])
        np.testing.assert_allclose(logits[row][keep], want[keep], atol=2e-3)
        assert np.abs(with_rubric - want)[keep].max() > 0.1


@pytest.mark.slow
def test_guidance_by_criteria_weighs_what_each_changes(tmp_path):
    config = config_of("ground_truth", tmp_path)
    config.teacher.update(guidance=0.5, guidance_by="criteria")
    config.sampling.max_new_tokens = 8
    examples = sorted(world.examples("stage2", 20), key=lambda e: len(e.rubric.criteria))
    examples = [examples[0], examples[-1]]  # of different numbers of criteria
    logits, plain, data, mask = teacher_logits(config, tmp_path, examples)
    for row, example in enumerate(examples):
        criteria = example.rubric.criteria
        whole, weights = plain(row, data.teacher[row]), np.abs([c.weight for c in criteria])
        want = whole.copy()
        for k, weight in enumerate(weights / weights.mean()):
            less = dataclasses.replace(example, rubric=Rubric(criteria[:k] + criteria[k + 1 :]))
            tokenizer = open_model(config.model.path, config.model).tokenizer
            prompt = teacher_prompt(tokenizer, less, settings_of(config).encoding)
            want += 0.5 * weight * (whole - plain(row, prompt))
        keep = np.asarray(mask[row])
        np.testing.assert_allclose(logits[row][keep], want[keep], atol=5e-3)
        assert np.abs(want - whole)[keep].max() > 0.1 and len(set(weights)) > 1


def test_where_all_rubrics_have_one_criterion_guidance_by_criteria_pushes_nowhere(tmp_path):
    """Without a place for a criterion the step would take the whole context's guidance instead."""
    config = config_of("ground_truth", tmp_path)
    config.teacher.update(guidance=0.5, guidance_by="criteria")
    model, asked = open_model(config.model.path, config.model), settings_of(config)
    examples = [dataclasses.replace(e, rubric=Rubric(e.rubric.criteria[:1])) for e in world.examples("stage2", 2)]
    data = encode_all(examples, model.tokenizer, asked.encoding, asked.limits)
    without = make_batch([0, 1], data, asked, model.pad_id).without
    assert without.weights.tolist() == [[0.0], [0.0]] and without.mask.any(axis=-1).all()


def test_completions_may_be_the_teacher_s(tmp_path):
    config = config_of("ground_truth", tmp_path)
    config.sampling.update(source="teacher", max_new_tokens=12)
    run_, model = context(config, tmp_path)
    asked = run_.config
    network = Network(model.decoder, {"params": loading.load_model(model.directory, dtype=jnp.float32)[1]})
    options = rollout_options(asked, model)
    data = encode_all(world.examples("stage2", 2), model.tokenizer, asked.encoding, asked.limits)
    batch = make_batch([0, 1], data, asked, model.pad_id)
    key = jax.random.key(0)
    written = completions_of(Networks(None, network), batch, key, options).samples
    as_student = batch._replace(student_tokens=batch.teacher_tokens, student_mask=batch.teacher_mask)
    options = dataclasses.replace(options, source="student")
    expected = completions_of(Networks(network, None), as_student, key, options).samples
    np.testing.assert_array_equal(written.tokens, expected.tokens)
    assert written.mask.sum() > 4


BAD = {
    "teacher.fields": dict(method="rlcsd", reward=dict(grader="world"), sampling=dict(group=4), teacher=dict(guidance_by="failure")),
    "loss.emphasis": dict(method="sft", sampling=dict(source="reference"), loss=dict(emphasis="gap")),
    "rubric.source": dict(rubric=dict(source="noisy"), reward=dict(grader="world"), loss=dict(emphasis="credit")),
    "teacher.better_of_two": dict(teacher=dict(weights="live", better_of_two=True)),
    "reward.grader": dict(method="grpo", reward=dict(grader=""), sampling=dict(group=4)),
    "sampling.group": dict(method="grpo", reward=dict(grader="world"), sampling=dict(group=1)),
    "teacher.guidance": dict(method="sft", sampling=dict(source="reference"), teacher=dict(guidance=1.0)),
    "teacher.guidance_by": dict(teacher=dict(fields=("question", "reference"), guidance=1.0, guidance_by="criteria")),
    "sampling.source": dict(method="sft", sampling=dict(source="teacher")),
    "policy.kl": dict(policy=dict(kl=0.1)),
    "student.fields": dict(student=dict(fields=("question", "success"))),
    "data.flawed": dict(data=dict(flawed=1.5)),
    "policy.clip_low": dict(policy=dict(clip_low=1.5)),
    "eval.roles": dict(
        teacher=dict(fields=("question", "feedback")), reward=dict(grader="world"), eval=dict(grader="world", roles=("teacher",))
    ),
    "teacher.reason_tokens": dict(
        teacher=dict(fields=("question", "feedback"), reason_tokens=4), reward=dict(grader="world")
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_settings_that_do_not_go_together_are_named(key, tmp_path):
    config = config_of("ground_truth", tmp_path)
    config.update(BAD[key])
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == key and error.value.remedy
