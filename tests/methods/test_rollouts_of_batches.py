"""A rollout of several batches against separate steps: the same completions, updates and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.methods import dealing, rollout
from rcsd_jax.methods.contract import LossOptions, Without
from rcsd_jax.methods.networks import BASE, Network, Networks, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.state import init_state
from rcsd_jax.methods.step import Recipe, jit_step
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import SamplingConfig, generate
from rcsd_jax.sampling.slots import Occupancy, generate_queue

BATCHES, QUESTIONS, GROUP, PROMPT, COMPLETION, SEED = 2, 3, 2, 4, 6, 11
SIZE = QUESTIONS * GROUP
SAMPLING = SamplingConfig(max_new_tokens=COMPLETION, eos_ids=tuple(range(8)))
TOKENS = np.random.default_rng(0).integers(8, 40, (BATCHES * QUESTIONS, PROMPT)).astype(np.int32)


@functools.cache
def decoder_of():
    shape = dict(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
    return Decoder(DecoderConfig(family="qwen3", vocab_size=40, tie_embeddings=True, **shape))


@functools.cache
def params_of(seed):
    return jax.tree.map(lambda x: 4.0 * x, init_params(decoder_of().config, jax.random.key(seed)))


def batch_of(questions):
    """The batch whose rows ask these questions; the teacher sees them reversed."""
    rows, whole = len(questions), np.ones((len(questions), PROMPT), bool)
    nothing = np.zeros((rows, 0), np.int32)
    without = Without(np.zeros((rows, 0, 0), np.int32), np.zeros((rows, 0, 0), bool), np.zeros((rows, 0), np.float32))
    prompts = TOKENS[questions], whole, TOKENS[questions][:, ::-1], whole
    return Batch(np.arange(rows), *prompts, nothing, nothing, nothing.astype(bool), without)


@functools.cache
def step_of(batches, clip=None):
    """The recipe of rollouts of so many batches, and its programs; at rate 0 only the optimizer's moments move."""
    roles = Roles(RoleNetwork(decoder_of(), moving="trained"), RoleNetwork(decoder_of(), frozen=BASE))
    options = RolloutOptions(SAMPLING, group=GROUP, batches=batches, slots=4)
    optimizer, _ = make_optimizer(learning_rate=0.0, steps=10)
    recipe = Recipe(roles, options, LossOptions(chunk_size=4, importance_clip=clip), optimizer)
    return recipe, jit_step(recipe)


def first_state(recipe):
    return init_state(jax.tree.map(jnp.copy, params_of(0)), recipe.optimizer, ema=False)


def frozen():
    return {BASE: {"params": params_of(1)}}


@functools.cache
def learned():
    """The completions of one rollout, and (state, metrics) after each update that learns from it."""
    recipe, step = step_of(BATCHES)
    state = first_state(recipe).replace(step=jnp.int32(3))
    rows = dealing.questions(QUESTIONS, batches=BATCHES, group=GROUP)
    rollout, drawn = step.draw(state, frozen(), batch_of(rows), SEED)
    results = []
    for number in range(BATCHES):
        batch = dealing.batch_of(rollout, number, batches=BATCHES, group=GROUP)
        state, metrics = step.learn(state, frozen(), batch)
        results.append((jax.tree.map(jnp.copy, state), metrics, batch))
    return rollout, drawn, results


def rows_of_batch(number):
    return list(np.repeat(np.arange(number * QUESTIONS, (number + 1) * QUESTIONS), GROUP))


def test_without_a_rate_a_rollout_of_two_batches_is_two_steps():
    _, _, results = learned()
    recipe, step = step_of(1)
    state = first_state(recipe).replace(step=jnp.int32(3))
    for number, (ours, metrics, batch) in enumerate(results):
        state, wanted, completions = step.train_step(state, frozen(), batch_of(rows_of_batch(number)), SEED)
        np.testing.assert_array_equal(batch.student_tokens, completions.student_tokens)
        np.testing.assert_array_equal(batch.samples.tokens, completions.samples.tokens)
        np.testing.assert_allclose(batch.samples.log_probs, completions.samples.log_probs, atol=1e-5)
        for name in set(wanted) - {"occupancy"}:
            np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), ours, state)
    assert float(results[0][1]["loss"]) != float(results[1][1]["loss"])


def test_a_step_of_its_own_has_the_keys_of_its_seed_step_and_rows():
    """What the step draws, drawn without it: at rollouts of one batch nothing has changed."""
    recipe, step = step_of(1)
    state, rows = first_state(recipe).replace(step=jnp.int32(5)), rows_of_batch(0)
    key = jax.random.fold_in(jax.random.key(SEED), 5)
    keys = jnp.stack([jax.random.fold_in(key, row) for row in range(SIZE)])
    prompts = jnp.asarray(TOKENS[rows]), jnp.ones((SIZE, PROMPT), bool)
    variables = {"params": params_of(0)}
    samples = jax.jit(lambda keys: generate(decoder_of(), variables, *prompts, keys, SAMPLING))(keys)
    _, _, completions = step.train_step(state, frozen(), batch_of(rows), SEED)
    np.testing.assert_array_equal(completions.samples.tokens, samples.tokens)
    assert len({tuple(row) for row in samples.tokens.tolist()}) > 2


def test_one_program_and_two_learn_the_same():
    """Up to the order of sums, which XLA chooses for each program."""
    recipe, step = step_of(1)
    batch = batch_of(rows_of_batch(1))
    completions, drawn = step.draw(first_state(recipe), frozen(), batch, SEED)
    apart, metrics = step.learn(first_state(recipe), frozen(), completions)
    together, wanted, _ = step.train_step(first_state(recipe), frozen(), batch, SEED)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), apart, together)
    found = metrics | drawn
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_ratios_are_to_the_policy_that_sampled():
    """By hand, of a policy that has moved since; and the share above the clip."""
    clip = 1.1
    recipe, step = step_of(BATCHES, clip)
    _, _, results = learned()
    batch = results[1][2]
    assert "importance_clipped" not in results[1][1]
    np.testing.assert_allclose(results[1][1]["ratio"], 1.0, rtol=1e-4)
    moved = jax.tree.map(lambda x: 1.1 * x, params_of(0))
    score = jax.jit(functools.partial(completion_hidden, decoder_of()))
    hidden = score({"params": moved}, batch.student_tokens, batch.student_mask, *batch.samples[:2])
    log_probs = np.asarray(jax.nn.log_softmax(hidden @ moved["embed"].T), np.float64)
    new = np.take_along_axis(log_probs, np.asarray(batch.samples.tokens)[..., None], -1)[..., 0]
    ratio = np.exp(new - batch.samples.log_probs)[np.asarray(batch.samples.mask)]
    _, metrics = step.learn(first_state(recipe).replace(trained=moved), frozen(), batch)
    np.testing.assert_allclose(metrics["ratio"], ratio.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["importance_clipped"], (ratio > clip).mean(), rtol=1e-5)
    assert abs(ratio.mean() - 1) > 1e-3 and 0 < (ratio > clip).mean() < 1


def test_occupancy_is_the_queue_s_and_tokens_are_counted():
    rollout, drawn, results = learned()
    rows = dealing.questions(QUESTIONS, batches=BATCHES, group=GROUP)
    keys = dealing.row_keys(jnp.arange(len(rows)), jax.random.key(SEED), jnp.int32(3), batches=BATCHES, group=GROUP)
    prompts = jnp.asarray(TOKENS[rows[::GROUP]]), jnp.ones((len(rows) // GROUP, PROMPT), bool)
    variables = {"params": params_of(0)}
    queue = jax.jit(
        lambda keys: generate_queue(
            decoder_of(), variables, *prompts, keys, SAMPLING, slots=4, samples_per_prompt=GROUP
        )[1]
    )
    used = queue(keys)
    written = int(rollout.samples.mask.sum())
    assert int(used.live) == written
    np.testing.assert_allclose(drawn["occupancy"], written / (4 * int(used.steps)), rtol=1e-6)
    assert 0.3 < float(drawn["occupancy"]) < 1
    for _, metrics, batch in results:
        assert int(metrics["real_tokens"]) == 2 * (SIZE * PROMPT + int(batch.samples.mask.sum()))
        assert int(metrics["padded_tokens"]) == 2 * SIZE * (PROMPT + COMPLETION)


def test_what_drafts_gain_is_logged(monkeypatch):
    used = Occupancy(live=jnp.int32(20), steps=jnp.int32(10), prefills=jnp.int32(1), tokens=jnp.int32(30))
    asked = []
    monkeypatch.setattr(rollout, "generate_queue", lambda *a, **settings: (asked.append(settings), used))
    writer = Networks(Network(decoder_of(), None), None)
    for drafts, gained in ((0, {}), (2, {"tokens_per_draw": 1.5})):
        options = RolloutOptions(SAMPLING, slots=4, draft_tokens=drafts)
        _, metrics = rollout.draw_and_metrics(writer, batch_of([0, 1]), None, options)
        assert metrics == {"occupancy": 0.5, **gained}
    assert [settings["draft_tokens"] for settings in asked] == [0, 2]
