"""Roles as values: where networks come from, teachers of their own, and the parts of the step that stand alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcsd_jax.methods import microbatches, rollout
from rcsd_jax.methods.contract import LossOptions, Without
from rcsd_jax.methods.networks import BASE, Network, Networks, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.score_both import score_both
from rcsd_jax.methods.state import abstract_state, init_state, shardings_of
from rcsd_jax.methods.step import Recipe, draw, learn
from rcsd_jax.models import sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import SamplingConfig

ROWS, PROMPT, LONGER, COMPLETION = 4, 3, 6, 5


def decoder_of(**changes):
    shape = dict(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8) | changes
    return Decoder(DecoderConfig(family="qwen3", vocab_size=40, tie_embeddings=True, **shape))


def params_of(decoder, seed=0):
    return jax.tree.map(lambda x: 8.0 * x, init_params(decoder.config, jax.random.key(seed)))


def batch_of(teacher_prompt=LONGER):
    tokens = np.random.default_rng(0).integers(1, 40, (ROWS, LONGER)).astype(np.int32)
    prompts = [x for length in (PROMPT, teacher_prompt) for x in (tokens[:, :length], np.ones((ROWS, length), bool))]
    nothing = np.zeros((ROWS, 0), np.int32)
    without = Without(np.zeros((ROWS, 0, 0), np.int32), np.zeros((ROWS, 0, 0), bool), np.zeros((ROWS, 0), np.float32))
    return Batch(np.arange(ROWS), *prompts, nothing, nothing, nothing.astype(bool), without)


def recipe_of(roles, **changes):
    options = RolloutOptions(SamplingConfig(max_new_tokens=COMPLETION, eos_ids=(0,)))
    return Recipe(roles, options, LossOptions(chunk_size=2), make_optimizer(learning_rate=1e-2, steps=4)[0], **changes)


def state_of(trained, recipe, *, ema=False):
    return init_state(jax.tree.map(jnp.copy, trained), recipe.optimizer, ema=ema)


def test_roles_on_the_same_frozen_weights_share_them():
    decoder = decoder_of()
    base, adapters = {"params": {"embed": jnp.ones(3)}}, {"q": jnp.zeros(2)}
    roles = Roles(RoleNetwork(decoder, frozen=BASE, moving="trained"), RoleNetwork(decoder, frozen=BASE))
    state = init_state(adapters, optax.identity(), ema=False)
    student, teacher = roles.at(state, {BASE: base})
    assert student.variables["params"] is teacher.variables["params"] is base["params"]
    assert student.variables["lora"] is adapters and "lora" not in teacher.variables
    assert set(base) == {"params"}  # nothing was put into what the caller holds


def test_the_average_has_the_dtype_of_what_is_trained():
    decoder = decoder_of()
    state = init_state({"embed": jnp.ones(3, jnp.bfloat16)}, optax.identity(), ema=True)
    state = state.replace(ema={"embed": jnp.full(3, 1.001, jnp.float32)})
    embed = RoleNetwork(decoder, moving="average").at(state, {}).variables["params"]["embed"]
    assert embed.dtype == jnp.bfloat16 and state.ema["embed"].dtype == jnp.float32


def test_what_an_int8_copy_samples_is_learned_from_by_the_weights_themselves():
    decoder = decoder_of()
    params, other = params_of(decoder), params_of(decoder, 1)
    recipe = recipe_of(Roles(RoleNetwork(decoder, moving="trained"), RoleNetwork(decoder, frozen=BASE)))
    plain = recipe.rollout.sampling
    copied = dataclasses.replace(plain, int8_weights=True)
    recipe = dataclasses.replace(recipe, rollout=dataclasses.replace(recipe.rollout, sampling=copied, reason_tokens=3))
    state, frozen, batch = state_of(params, recipe), {BASE: {"params": other}}, batch_of()
    completions = jax.jit(draw, static_argnums=0)(recipe, state, frozen, batch, 0)
    samples = completions.samples

    # The trainer's log-probabilities are those of the weights that it is given, not of the copy.
    hidden = completion_hidden(
        decoder, {"params": params}, batch.student_tokens, batch.student_mask, samples.tokens, samples.mask
    )
    log_probs = jax.nn.log_softmax(hidden @ head_matrix(decoder.config, params))
    of_tokens = jnp.take_along_axis(log_probs, samples.tokens[..., None], axis=-1)[..., 0]
    difference = jnp.abs(of_tokens - samples.log_probs)[samples.mask].mean()
    results = {}
    for clip in (None, 1.0):
        options = dataclasses.replace(recipe.loss, importance_clip=clip)
        step = jax.jit(functools.partial(learn, dataclasses.replace(recipe, loss=options)))
        _, results[clip] = step(state, frozen, completions)
        logged = results[clip]["sampler_trainer_log_prob_difference"]
        np.testing.assert_allclose(logged, difference, rtol=0, atol=1e-5)
    assert difference > 1e-3 and results[1.0]["loss"] < results[None]["loss"]
    # The teacher's analysis, which nothing corrects, is from its plain weights.
    keys = rollout.row_keys(batch, jax.random.fold_in(jax.random.key(0), 0))
    teacher = Network(decoder, {"params": other})
    written = [
        rollout.draw_analysis(teacher, batch, keys, dataclasses.replace(recipe.rollout, sampling=sampling))
        for sampling in (copied, plain)
    ]
    np.testing.assert_array_equal(*[samples.log_probs for samples in written])


def test_a_method_without_a_teacher_has_none():
    decoder = decoder_of()
    roles = Roles(RoleNetwork(decoder, moving="trained"), None)
    recipe = recipe_of(roles, method="sft")
    state = state_of(params_of(decoder), recipe)
    assert roles.at(state, {}).teacher is None
    new, metrics = jax.jit(lambda state, batch: learn(recipe, state, {}, draw(recipe, state, {}, batch, 0)))(
        state, batch_of()
    )
    assert int(new.step) == 1 and float(metrics["cross_entropy"]) > 0


def test_a_teacher_of_its_own_has_another_decoder_and_other_weights():
    """Wider, deeper and untied: the step's divergence is that of the two networks apart, and the student alone moves."""
    small, large = decoder_of(), decoder_of(hidden_size=24, num_layers=3, num_heads=3, num_kv_heads=1)
    roles = Roles(RoleNetwork(small, moving="trained"), RoleNetwork(large, frozen="large"))
    recipe = recipe_of(roles, microbatches=2)
    frozen = {"large": {"params": params_of(large, seed=1)}}
    state = state_of(params_of(small), recipe)

    @jax.jit
    def step(state, frozen, batch):
        completions = draw(recipe, state, frozen, batch, 3)
        return *learn(recipe, state, frozen, completions), completions

    new, metrics, completions = step(state, frozen, batch_of())
    score = jax.jit(lambda state, frozen, completions: score_both(roles.at(state, frozen), completions))
    scored = score(state, frozen, completions)
    assert scored.student_hidden.shape[-1] == 16 and scored.teacher_hidden.shape[-1] == 24
    student, teacher = (jax.nn.log_softmax(hidden @ head) for hidden, head in (scored[:2], scored[2:]))
    each = (jnp.exp(teacher) * (teacher - student)).sum(-1)
    mask = completions.completion_mask
    np.testing.assert_allclose(metrics["loss"], each[mask].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["row_loss"], (each * mask).sum(1), rtol=1e-4)
    assert float(jnp.abs(new.trained["embed"] - state.trained["embed"]).max()) > 0


def test_an_abstract_state_is_that_which_is_made():
    decoder, mesh = decoder_of(), sharding.make_mesh()
    optimizer = make_optimizer(learning_rate=1.0, steps=2)[0]
    placement = param_shardings(decoder.config, mesh)
    params = jax.device_put(params_of(decoder), placement)
    for ema in (False, True):
        abstract = abstract_state(jax.eval_shape(lambda: params), placement, optimizer, mesh, ema=ema)
        made = jax.jit(lambda p, ema=ema: init_state(p, optimizer, ema=ema), out_shardings=shardings_of(abstract))(
            params
        )
        described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)
        assert described(made) == described(abstract) and (made.ema is not None) == ema


def test_parts_of_a_batch_add_up_and_rows_keep_their_places():
    rows = jnp.arange(12.0).reshape(6, 2)

    def loss_and_gradient(rows):
        sums = {"count": jnp.float32(rows.shape[0]), "row_loss": rows.sum(axis=1)}
        return (rows.sum(), sums), {"w": (rows**2).sum(axis=0)}

    (want, wanted), gradient = microbatches.summed(loss_and_gradient, rows, 1)
    for count in (2, 3, 6):
        (loss, sums), found = microbatches.summed(loss_and_gradient, rows, count)
        assert float(loss) == float(want) and found["w"].tolist() == gradient["w"].tolist()
        assert sums["row_loss"].tolist() == wanted["row_loss"].tolist() and float(sums["count"]) == 6.0


def test_an_analysis_is_written_by_the_role_that_the_options_name():
    networks, options = Networks("student", "teacher"), rollout.RolloutOptions(SamplingConfig(1))
    assert rollout.analyst(networks, options) == "teacher"
    assert rollout.analyst(networks, dataclasses.replace(options, reason_by="student")) == "student"
