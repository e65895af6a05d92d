"""Mixtures of experts in the step: load statistics, and the sampler's experts replayed, padded and packed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcsd_jax.losses import DivergenceOptions
from rcsd_jax.methods import packed_learning, step
from rcsd_jax.methods.contract import LossOptions, Without, weigh
from rcsd_jax.methods.networks import BASE, RoleNetwork, Roles
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import Batch, RolloutOptions, assemble, draw, row_keys
from rcsd_jax.methods.state import init_state
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import SamplingConfig
from tests.models.test_experts import CONFIG, params

B, P, N = 4, 5, 6


def decoder_of(**changes):
    return Decoder(dataclasses.replace(CONFIG, **changes))


@functools.cache
def drawn(slots=0, record=True):
    """Completions of prompts of all lengths, some shorter than the limit."""
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(1, 24, size=(B, P)).astype(np.int32), np.arange(P) >= np.array([[0], [3], [1], [4]])
    nothing = jnp.zeros((B, 0), jnp.int32)
    without = Without(*(jnp.zeros((B, 0, 0)[:axes]) for axes in (3, 3, 2)))
    batch = Batch(jnp.arange(B), tokens, mask, tokens, mask, nothing, nothing, nothing > 0, without)
    sampling = SamplingConfig(N, eos_ids=(1, 2, 3, 4), record_experts=record)
    options = RolloutOptions(sampling, slots=slots)

    @jax.jit
    def run(variables):
        network = RoleNetwork(decoder_of(), frozen=BASE).at(None, {BASE: variables})
        networks = Roles(None, None)._replace(student=network)
        return assemble(batch, draw(networks, batch, row_keys(batch, jax.random.key(0)), options), None, options)

    return run({"params": params()})


@functools.cache
def update_of(packed, decoder):
    """The jitted loss and gradient of an update."""
    roles = Roles(RoleNetwork(decoder, moving="trained"), RoleNetwork(decoder_of(), frozen=BASE))
    loss = LossOptions(DivergenceOptions(), chunk_size=4)
    recipe = Recipe(roles, RolloutOptions(SamplingConfig(N)), loss, optax.sgd(1.0), row_lengths=int(packed))
    of_batch = packed_learning.loss_and_gradient if packed else step.padded_loss_and_gradient

    @jax.jit
    def run(params, completions):
        state = init_state(params, recipe.optimizer, ema=False)
        frozen = {BASE: {"params": jax.tree.map(lambda x: 1.1 * x, params)}}
        return of_batch(recipe, state, frozen, completions, weigh(completions, "tokens"))

    return run


def learned(completions, packed, decoder):
    """((loss, sums), gradient) of one update."""
    (loss, sums), gradient = update_of(packed, decoder)(params(), completions)
    return (loss, dict(sums)), gradient


def recorded_by_the_trainer(completions):
    """The experts that whole sequences choose, [B, N, L, k], of tokens that have been an input."""
    c = completions
    tokens = jnp.concatenate([c.student_tokens, c.samples.tokens], axis=1)
    mask = jnp.concatenate([c.student_mask, c.samples.mask], axis=1)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    how = dict(segment_ids=mask.astype(jnp.int32), positions=positions, mutable=["statistics"])
    reported = decoder_of().apply({"params": params()}, tokens, **how)[1]["statistics"]
    return np.moveaxis(np.asarray(reported["experts"][0]), 0, 2)[:, P:]


@pytest.mark.parametrize("slots", [0, 2])
def test_the_sampler_records_the_experts_of_every_token(slots):
    completions = drawn(slots)
    mask = np.asarray(completions.samples.mask)
    assert 0 < np.asarray(completions.samples.cut).sum() < B  # some ended, some did not
    ours, theirs = np.asarray(completions.samples.experts)[mask], recorded_by_the_trainer(completions)[mask]
    np.testing.assert_array_equal(np.sort(ours, axis=-1), np.sort(theirs, axis=-1))
    assert completions.samples.experts.shape == (B, N, 2, 3) and completions.samples.experts.dtype == jnp.uint8
    assert len(np.unique(ours)) > 4
    assert drawn(record=False).samples.experts is None
    np.testing.assert_array_equal(drawn(record=False).samples.tokens, completions.samples.tokens)


def with_other_experts(completions):
    """As if the sampler had chosen other experts: a mutant that a replay must follow."""
    samples = completions.samples
    experts = jnp.where(samples.mask[..., None, None], (samples.experts + 1) % CONFIG.num_experts, samples.experts)
    return completions._replace(samples=samples._replace(experts=experts))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_recorded_experts_are_replayed(packed):
    """Those that the trainer would choose change nothing; others change loss and gradient, or are only counted."""
    completions = drawn()
    plain = learned(drawn(record=False), packed, decoder_of())
    tokens = 2 * int(completions.completion_mask.any(axis=1) @ (completions.samples.mask.sum(axis=1) - packed))
    for replays in (True, False):
        found = learned(completions, packed, decoder_of(replays_experts=replays))
        rerouted = found[0][1].pop("rerouted").sum(axis=0)
        assert rerouted.tolist() == [0, tokens], rerouted
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, plain)
    mutant = with_other_experts(completions)
    compared = learned(mutant, packed, decoder_of())
    assert compared[0][1].pop("rerouted").sum(axis=0).tolist() == [tokens, tokens]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), compared, plain)
    replayed = learned(mutant, packed, decoder_of(replays_experts=True))
    assert abs(float(replayed[0][0] - plain[0][0])) > 1e-3
    other = replayed[0][1]["expert_load"] - plain[0][1]["expert_load"]
    assert np.abs(other).max() >= 1 and abs(float(other.sum())) < 1e-3


def test_a_replay_packed_is_the_replay_padded():
    mutant, decoder = with_other_experts(drawn()), decoder_of(replays_experts=True)
    (loss, _), gradient = learned(mutant, True, decoder)
    (wanted, _), theirs = learned(mutant, False, decoder)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), gradient, theirs)


def test_load_of_an_update_is_of_its_real_tokens():
    completions = drawn(record=False)
    (_, padded), _ = learned(completions, False, decoder_of())
    (_, packed), _ = learned(completions, True, decoder_of())
    tokens = int(completions.student_mask.sum() + completions.samples.mask.sum())
    assert padded["expert_load"].shape == (2, 8) and (padded["expert_load"].sum(axis=1) == 3 * tokens).all()
    assert (packed["expert_load"].sum(axis=1) == 3 * (tokens - B)).all()  # the last token predicts nothing


def test_metrics_of_experts():
    load = jnp.array([[4.0, 0, 0, 0], [1.0, 1, 1, 1]])
    metrics = step._of_experts(load, jnp.array([[1.0, 8.0], [3.0, 8.0]]))
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(
        {"busiest_expert": 0.625, "expert_entropy": 0.5, "rerouted": 0.25}
    )
    assert step._of_experts(None, None) == {}


def test_a_frozen_router_stays_also_with_weight_decay():
    weights = {"layers": {"router": jnp.ones((2, 8, 16)), "q": jnp.ones((2, 16, 16))}, "embed": jnp.ones((3, 4))}
    optimizer, _ = make_optimizer(learning_rate=0.1, steps=4, weight_decay=0.1, frozen=("router",))
    nothing = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(nothing, optimizer.init(weights), weights)
    assert not updates["layers"]["router"].any() and updates["layers"]["q"].all() and updates["embed"].all()
