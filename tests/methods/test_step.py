"""Roles as values: where networks come from, teachers of their own, and the parts of the step that stand alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcsd_jax.methods import microbatches
from rcsd_jax.methods.contract import LossOptions, Without
from rcsd_jax.methods.networks import BASE, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.score_both import score_both
from rcsd_jax.methods.state import abstract_state, init_state, shardings_of
from rcsd_jax.methods.step import Recipe, draw, learn
from rcsd_jax.models import sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import param_shardings
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
