"""A teacher of its own: the loss is that of log-probabilities that its decoder gives by itself, on the tokens that both have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcsd_jax.losses import DivergenceOptions, KnownLogProbs
from rcsd_jax.methods import packed_learning
from rcsd_jax.methods.contract import LossOptions, PolicyOptions, weigh
from rcsd_jax.methods.networks import BASE, TEACHER, RoleNetwork, Roles, RoleSeveral
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import RolloutOptions
from rcsd_jax.methods.state import init_state
from rcsd_jax.methods.step import padded_loss_and_gradient
from rcsd_jax.models import lora
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder, positions_from_mask
from rcsd_jax.models.head import head_matrix
from rcsd_jax.sampling import SamplingConfig
from tests import eight_devices
from tests.methods.test_packed_learning import COMPLETION, VOCABULARY, completions_of

TEMPERATURE = 1.2


def decoder_of(vocabulary=VOCABULARY, **changes):
    shape = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8) | changes
    return Decoder(DecoderConfig(family="qwen3", vocab_size=vocabulary, **shape))


def teacher_of(vocabulary):
    return decoder_of(vocabulary, hidden_size=24, num_layers=2, num_heads=2, num_kv_heads=1)


def params_of(decoder, seed):
    return jax.tree.map(lambda x: 8.0 * x, init_params(decoder.config, jax.random.key(seed)))


def recipe_of(student, teacher, loss, *, rank=0, method="self_distillation", **options):
    roles = Roles(
        RoleNetwork(student, frozen=BASE if rank else None, moving="trained"), RoleNetwork(teacher, frozen=TEACHER)
    )
    return Recipe(
        roles, RolloutOptions(SamplingConfig(max_new_tokens=COMPLETION)), loss, optax.identity(), method, **options
    )


def inputs_of(student, teacher, *, rank=0):
    """State, frozen weights, completions and weights of a step."""
    params, other = params_of(student, 0), params_of(teacher, 1)
    trained, frozen = params, {TEACHER: {"params": other}}
    if rank:
        trained = lora.init_lora(student.config, jax.random.key(2), rank=rank, alpha=2.0 * rank, targets=("q", "down"))
        trained, frozen = jax.tree.map(lambda x: x + 0.1, trained), frozen | {BASE: {"params": params}}
    completions = completions_of()
    return init_state(trained, optax.identity(), ema=False), frozen, completions, weigh(completions, "tokens")


def log_probs_of(decoder, variables, prompt, completions, shared):
    """[B, N, shared] float64: a plain call of the decoder over whole rows, and NumPy's softmax."""
    (tokens, mask), samples = prompt, completions.samples
    # What a model does not have as a token it reads as some other.
    tokens = jnp.minimum(jnp.concatenate([tokens, samples.tokens], axis=1), decoder.config.vocab_size - 1)
    mask = jnp.concatenate([mask, samples.mask], axis=1)
    hidden, _ = jax.jit(decoder.apply)(
        variables, tokens, segment_ids=mask.astype(jnp.int32), positions=positions_from_mask(mask)
    )
    logits = np.asarray(hidden @ head_matrix(decoder.config, variables["params"]), np.float64)
    logits = logits[:, prompt[0].shape[1] - 1 : -1, :shared] / TEMPERATURE
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def wanted_loss(divergence, student, teacher, tokens, weights):
    """NumPy's weighted divergence of log-probabilities [B, N, V]."""
    weights = np.where(tokens < student.shape[-1], np.asarray(weights, np.float64), 0.0)
    if divergence.divergence == "sampled_token":
        of = lambda x: np.take_along_axis(x, np.minimum(tokens, x.shape[-1] - 1)[..., None], -1)[..., 0]
        return (weights * -(of(teacher) - of(student)) * of(student)).sum()
    if divergence.top_k:
        keep = np.argsort(-teacher, axis=-1)[..., : divergence.top_k]
        student, teacher = (np.take_along_axis(x, keep, -1) for x in (student, teacher))
        rest = lambda x: np.log(-np.expm1(np.minimum(np.log(np.exp(x).sum(-1, keepdims=True)), -1e-7)))
        student, teacher = (np.concatenate([x, rest(x)], -1) for x in (student, teacher))
    return (weights * (np.exp(teacher) * (teacher - student)).sum(-1)).sum()


CASES = {
    "more tokens, LoRA": (VOCABULARY + 8, {}, 2),
    "fewer tokens": (VOCABULARY - 8, {}, 0),
    "fewer tokens, sampled token": (VOCABULARY - 8, dict(divergence="sampled_token"), 2),
    "fewer tokens, top-k": (VOCABULARY - 8, dict(top_k=5, tail="bucket"), 0),
}
FAST = ("more tokens, LoRA", "fewer tokens, sampled token")


@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x in FAST else [pytest.mark.slow]) for x in CASES])
def test_the_loss_is_that_of_the_teacher_s_own_log_probabilities(case):
    vocabulary, divergence, rank = CASES[case]
    student, teacher = decoder_of(lora_scale=2.0), teacher_of(vocabulary)
    shared = None if vocabulary == VOCABULARY else min(vocabulary, VOCABULARY)
    loss = LossOptions(DivergenceOptions(**divergence), temperature=TEMPERATURE, chunk_size=4, shared_tokens=shared)
    inputs = inputs_of(student, teacher, rank=rank)
    state, frozen, completions, weights = inputs
    recipe = recipe_of(student, teacher, loss, rank=rank, row_lengths=2)
    (found, sums), gradient = jax.jit(functools.partial(packed_learning.loss_and_gradient, recipe))(*inputs)

    of_student = {**frozen[BASE], "lora": state.trained} if rank else {"params": state.trained}
    prompts = [(completions.student_tokens, completions.student_mask), (completions.teacher_tokens, completions.teacher_mask)]  # fmt: skip
    ours = log_probs_of(student, of_student, prompts[0], completions, shared)
    theirs = log_probs_of(teacher, frozen[TEACHER], prompts[1], completions, shared)
    tokens = np.asarray(completions.samples.tokens)
    assert shared is None or vocabulary > VOCABULARY or (tokens >= shared).any()  # some are no token of the teacher
    want = wanted_loss(loss.divergence, ours, theirs, tokens, weights.taught_rows)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert np.isfinite(sums["divergence"]).all()
    assert jax.tree.structure(gradient) == jax.tree.structure(state.trained)
    if case == "fewer tokens":
        padded = functools.partial(padded_loss_and_gradient, recipe)
        np.testing.assert_allclose(jax.jit(padded)(*inputs)[0][0], want, rtol=1e-4)


def test_a_reference_model_without_a_token_says_nothing_of_it():
    student, teacher = decoder_of(), teacher_of(VOCABULARY - 8)
    loss = LossOptions(policy=PolicyOptions(kl=0.1), chunk_size=4, shared_tokens=VOCABULARY - 8)
    recipe = recipe_of(student, teacher, loss, method="grpo")
    function = jax.jit(functools.partial(padded_loss_and_gradient, recipe))
    (found, sums), _ = function(*inputs_of(student, teacher))
    assert np.isfinite(found) and np.isfinite(sums["reference_kl"]).all() and sums["reference_kl"][0] > 0


def several_of(number, *, row_lengths):
    """Loss and gradient with two teachers, of which completion i has `number[i]`; the oracle's loss; and where packing went."""
    student = decoder_of()
    teachers = teacher_of(VOCABULARY + 8), decoder_of(VOCABULARY - 8, hidden_size=32)
    loss = LossOptions(temperature=TEMPERATURE, chunk_size=4, shared_tokens=VOCABULARY - 8)
    names = [f"{TEACHER} {i}" for i in range(2)]
    roles = Roles(
        RoleNetwork(student, moving="trained"),
        RoleSeveral(tuple(RoleNetwork(one, frozen=name) for one, name in zip(teachers, names, strict=True))),
    )
    options = RolloutOptions(SamplingConfig(max_new_tokens=COMPLETION))
    recipe = Recipe(roles, options, loss, optax.identity(), row_lengths=row_lengths)
    of_teachers = [{"params": params_of(one, i + 1)} for i, one in enumerate(teachers)]
    unused = [i for i in range(2) if i not in number]
    for i in unused:  # whoever computes with these gets NaN
        of_teachers[i] = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), of_teachers[i])
    state, _, completions, weights = inputs_of(student, teachers[0])
    completions = completions._replace(teacher=jnp.asarray(number, jnp.int32))
    function = packed_learning.loss_and_gradient if row_lengths else padded_loss_and_gradient
    frozen = dict(zip(names, of_teachers, strict=True))
    (found, sums), gradient = jax.jit(functools.partial(function, recipe))(state, frozen, completions, weights)

    prompt = completions.teacher_tokens, completions.teacher_mask
    ours = log_probs_of(
        student, {"params": state.trained}, (completions.student_tokens, completions.student_mask), completions, 32
    )
    theirs = [log_probs_of(one, v, prompt, completions, 32) for one, v in zip(teachers, of_teachers, strict=True)]
    theirs = np.where(np.asarray(number)[:, None, None] == 0, *theirs)
    want = wanted_loss(loss.divergence, ours, theirs, np.asarray(completions.samples.tokens), weights.taught_rows)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    return found, want, sums


@pytest.mark.parametrize("row_lengths", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_each_completion_has_the_teacher_that_it_names(row_lengths):
    found, want, _ = several_of([0, 1, 1, 0, 0, 1, 0, 1], row_lengths=row_lengths)
    np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.slow
def test_a_teacher_that_no_completion_names_is_not_run():
    found, want, sums = several_of([1] * 8, row_lengths=2)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    student, teacher = decoder_of(), decoder_of(VOCABULARY - 8, hidden_size=32)
    loss = LossOptions(temperature=TEMPERATURE, chunk_size=4, shared_tokens=VOCABULARY - 8)
    alone = functools.partial(packed_learning.loss_and_gradient, recipe_of(student, teacher, loss, row_lengths=2))
    (_, wanted), _ = jax.jit(alone)(*inputs_of(student, teacher))
    np.testing.assert_array_equal(sums["scored"], wanted["scored"])  # places of rows: as many trips


KNOWN = {"sampled token": dict(divergence="sampled_token"), "top-k": dict(top_k=5, tail="bucket", beta=0.5)}


@pytest.mark.parametrize("case", [pytest.param(x, marks=[pytest.mark.slow] if x == "top-k" else []) for x in KNOWN])
def test_a_teacher_whose_log_probabilities_come_from_elsewhere_gives_the_same_loss_and_gradient(case):
    """Of the sampled token, or of the k likeliest and of the sampled one if it is not among them."""
    student, teacher = decoder_of(), teacher_of(VOCABULARY)
    loss = LossOptions(DivergenceOptions(**KNOWN[case]), temperature=1.0, chunk_size=4)
    state, frozen, completions, weights = inputs_of(student, teacher)
    recipe = recipe_of(student, teacher, loss, row_lengths=2)
    function = functools.partial(packed_learning.loss_and_gradient, recipe)
    (wanted, sums), gradient = jax.jit(function)(state, frozen, completions, weights)

    prompt = completions.teacher_tokens, completions.teacher_mask
    log_probs = TEMPERATURE * log_probs_of(teacher, frozen[TEACHER], prompt, completions, VOCABULARY)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    sampled, k = np.asarray(completions.samples.tokens)[..., None], loss.divergence.top_k or 0
    likeliest = np.argsort(-log_probs, axis=-1)[..., :k]
    tokens = np.concatenate([likeliest, np.where((likeliest == sampled).any(-1, keepdims=True), -1, sampled)], axis=-1)
    values = np.where(tokens < 0, 0.0, np.take_along_axis(log_probs, np.maximum(tokens, 0), -1))
    known = KnownLogProbs(jnp.asarray(tokens, jnp.int32), jnp.asarray(values, jnp.float32))
    recipe = dataclasses.replace(recipe, roles=recipe.roles._replace(teacher=None))
    function = functools.partial(packed_learning.loss_and_gradient, recipe)
    (found, others), theirs = jax.jit(function)(state, {}, completions._replace(known=known), weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(others["teacher_advantage"], sums["teacher_advantage"], rtol=1e-4, atol=1e-3)
    assert "teacher_entropy" not in others  # it is not known
    for a, b in zip(*map(jax.tree.leaves, (gradient, theirs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(float(jnp.abs(a).max()), 1e-3))


ON_EIGHT = """
import functools, json
import jax
from rcsd_jax.models import quantization, sharding
from rcsd_jax.models.placement import lora_shardings, param_shardings
from tests.methods import test_own_teacher as test

student, teacher = test.decoder_of(lora_scale=2.0), test.teacher_of(48)
loss = test.LossOptions(temperature=1.2, chunk_size=4, shared_tokens=40)
state, frozen, completions, weights = test.inputs_of(student, teacher, rank=2)
int8 = lambda x: quantization.quantized(teacher.config, x)
frozen[test.TEACHER] = {"params": jax.jit(int8)(frozen[test.TEACHER]["params"])}
recipe = test.recipe_of(student, teacher, loss, rank=2, row_lengths=2)
function = functools.partial(test.packed_learning.loss_and_gradient, recipe)
(loss, _), gradient = jax.device_get(jax.jit(function)(state, frozen, completions, weights))
mesh = sharding.make_mesh(data=2, fsdp=4)
with jax.set_mesh(mesh):
    of_teacher = param_shardings(teacher.config, mesh, sharding.SPREAD_RULES, frozen[test.TEACHER]["params"])
    of_student = param_shardings(student.config, mesh)
    placed = {
        test.BASE: jax.device_put(frozen[test.BASE], {"params": of_student}),
        test.TEACHER: jax.device_put(frozen[test.TEACHER], {"params": of_teacher}),
    }
    held = placed[test.TEACHER]["params"]["layers"]["gate"].qvalue.addressable_shards[0].data.size
    adapters = jax.device_put(state.trained, lora_shardings(student.config, mesh, state.trained))
    found = jax.jit(function)(state.replace(trained=adapters), placed, sharding.to_mesh(completions, mesh), weights)
(other, _), theirs = jax.device_get(found)
size = teacher.config.num_layers * teacher.config.hidden_size * teacher.config.intermediate_size
worst = max(float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs)))
largest = max(float(abs(a).max()) for a in jax.tree.leaves(gradient))
print(json.dumps([float(loss), float(other), worst / largest, size / held]))
"""


@pytest.mark.slow
def test_on_eight_devices_an_int8_teacher_lies_over_all_of_them_and_says_the_same():
    alone, over_devices, worst, parts = eight_devices.run(ON_EIGHT)
    np.testing.assert_allclose(over_devices, alone, rtol=1e-5)
    assert worst < 1e-4 and parts == 8
