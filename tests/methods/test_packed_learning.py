"""Learning on packed rows: the loss and gradient of padded rows, for every method and option, and work in proportion to real tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcsd_jax.losses import DivergenceOptions
from rcsd_jax.methods import METHODS, packed_learning, packing
from rcsd_jax.methods.contract import Completions, Emphasis, LossOptions, PolicyOptions, Without, tokens_of, weigh
from rcsd_jax.methods.networks import BASE, Mixture, Network, RoleBetter, RoleMixture, RoleNetwork, Roles, hidden_of
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import RolloutOptions
from rcsd_jax.methods.score_both import score_student, score_teacher
from rcsd_jax.methods.state import init_state
from rcsd_jax.methods.step import padded_loss_and_gradient
from rcsd_jax.methods.thoughts import thoughts_of
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import Samples, SamplingConfig
from tests import eight_devices

ROWS, STUDENT, TEACHER, COMPLETION, VOCABULARY = 8, 7, 12, 10, 40


def decoder_of(**changes):
    shape = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8) | changes
    return Decoder(DecoderConfig(family="qwen3", vocab_size=VOCABULARY, tie_embeddings=True, **shape))


def params_of(decoder, seed=0):
    """Weights larger than usual, for logits that differ; much larger ones would make much of float32's last digit."""
    scale = 4.0 if decoder.config.num_layers == 1 else 1.0
    return jax.tree.map(lambda x: scale * x, init_params(decoder.config, jax.random.key(seed)))


def completions_of(seed=0, criteria=0):
    """Prompts and completions of all lengths: left-padded, with a hole in a context, an empty completion, one cut."""
    rng = np.random.default_rng(seed)

    def prompts(count, longest, lengths):
        tokens = rng.integers(0, VOCABULARY, (count, longest)).astype(np.int32)
        return tokens, np.arange(longest) >= longest - np.asarray(lengths)[:, None]

    student = prompts(ROWS, STUDENT, [7, 1, 3, 5, 2, 7, 4, 6])
    teacher = prompts(ROWS, TEACHER, [12, 9, 3, 12, 5, 8, 10, 1])
    teacher[1][0, 4:6] = False  # between an analysis and what follows it
    tokens = rng.integers(0, VOCABULARY, (ROWS, COMPLETION)).astype(np.int32)
    lengths = np.asarray([10, 1, 4, 0, 7, 10, 2, 3])
    mask = np.arange(COMPLETION) < lengths[:, None]
    log_probs = np.where(mask, rng.normal(-3.0, 1.0, mask.shape), 0.0).astype(np.float32)
    cut = lengths == COMPLETION
    without = [prompts(ROWS, TEACHER, rng.integers(1, TEACHER, ROWS)) for _ in range(criteria)]
    stacked = [np.stack(x, axis=1) for x in zip(*without, strict=True)] if criteria else []
    nothing = [np.zeros((ROWS, 0, 0), np.int32), np.zeros((ROWS, 0, 0), bool)]
    weights = rng.uniform(-1, 2, (ROWS, criteria)).astype(np.float32)
    if criteria:
        weights[2, 1:] = 0.0  # a rubric with fewer criteria
    taught = np.arange(ROWS) != 4
    advantages = rng.normal(size=ROWS).astype(np.float32)
    samples = Samples(tokens, mask, log_probs, cut)
    return jax.tree.map(
        jnp.asarray,
        Completions(*student, *teacher, samples, mask, advantages, Without(*(stacked or nothing), weights), taught),
    )


def options_of(**changes):
    divergence = DivergenceOptions(**changes.pop("divergence", {}))
    return LossOptions(divergence=divergence, temperature=1.2, chunk_size=4, **changes)


@functools.cache
def weights_of(decoder):
    return params_of(decoder), params_of(decoder, seed=1)


def recipe_of(method, loss, decoder, microbatches, row_lengths, share=None, split_rows=False, better=False):
    """`share`: of the student's logits in a teacher that is a trust region; None: a fixed teacher. `better`: or the student itself."""
    student, fixed = RoleNetwork(decoder, moving="trained"), RoleNetwork(decoder, frozen=BASE)
    teacher = fixed if share is None else RoleMixture(fixed, student, share)
    teacher = RoleBetter(teacher, student) if better else teacher
    roles = Roles(student, teacher if METHODS[method].teacher or loss.policy.kl > 0 else None)
    options = dict(method=method, microbatches=microbatches, row_lengths=row_lengths, split_rows=split_rows)
    return Recipe(roles, RolloutOptions(SamplingConfig(max_new_tokens=COMPLETION)), loss, optax.identity(), **options)


def both(
    method="self_distillation", *, loss=None, decoder=None, completions=None, microbatches=2, row_lengths=2,
    packed=True, padded=True, share=None, split_rows=False, better=False,
):  # fmt: skip
    """((loss, sums), gradient) of packed and of padded rows; None for the one that is not asked for."""
    decoder = decoder or decoder_of()
    recipe = recipe_of(method, loss or options_of(), decoder, microbatches, row_lengths, share, split_rows, better)
    params, other = weights_of(decoder)
    state, frozen = init_state(params, recipe.optimizer, ema=False), {BASE: {"params": other}}
    completions = completions_of() if completions is None else completions
    inputs = state, frozen, completions, weigh(completions, recipe.loss.reduction, recipe.loss.emphasis)
    run = lambda function: jax.jit(functools.partial(function, recipe))(*inputs)
    return run(packed_learning.loss_and_gradient) if packed else None, run(padded_loss_and_gradient) if padded else None


def assert_alike(packed, padded, *, within=1e-5):
    """`within`: of gradients, over the largest; on several devices the order of sums is another."""
    (loss, sums), gradient = packed
    (want, wanted), theirs = padded
    assert abs(float(want)) > 1e-3
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for name in wanted.keys() - {"scored"}:
        np.testing.assert_allclose(sums[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=within * largest)
    assert float(sums["scored"][0]) <= float(sums["scored"][1]) < float(wanted["scored"][1])


def masked(completions, *, skip_first=0, mask_cut=False):
    mask = completions.samples.mask & (jnp.arange(COMPLETION) >= skip_first)
    return completions._replace(completion_mask=mask & ~(completions.samples.cut & mask_cut)[:, None])


def with_thoughts():
    """Some completions have no end of a thought, some no answer, some both parts."""
    completions = completions_of()
    thoughts = thoughts_of(completions.samples.tokens % 5, completions.samples.mask, (3,))
    assert 0 < thoughts.ended.sum() < ROWS
    return completions._replace(thoughts=thoughts)


def answers_of(completions):
    return completions._replace(completion_mask=completions.samples.mask & ~completions.thoughts.mask)


def one_each():
    """One further context for each completion; one has none."""
    completions = completions_of(criteria=1)
    return completions._replace(without=completions.without._replace(weights=jnp.ones((ROWS, 1)).at[3].set(0.0)))


def with_failed():
    completions = completions_of(criteria=3)
    failed = np.random.default_rng(1).uniform(0, 1, (ROWS, 3)) * [1, 0, 1]
    return completions._replace(failed=jnp.asarray(failed, jnp.float32).at[1].set(0.0))


CASES = {
    "divergence": {},
    "by completion, importance weights, emphasis": dict(
        loss=options_of(reduction="completions", importance_clip=1.5, emphasis=Emphasis("gap", 0.7)),
        completions=with_thoughts(),
    ),
    "answers only": dict(loss=options_of(by_part=False), completions=answers_of(with_thoughts())),
    "sampled token, the longest": dict(
        loss=options_of(reduction="longest", divergence=dict(divergence="sampled_token"))
    ),
    "top-k, clips": dict(loss=options_of(divergence=dict(top_k=5, entry_clip=0.05, beta=0.5, tail="bucket"))),
    "guidance": dict(loss=options_of(guidance=1.5)),
    "guidance by criteria": dict(loss=options_of(guidance=1.5), completions=completions_of(criteria=3)),
    "purified": dict(loss=options_of(guidance=0.7, target="purified"), completions=one_each()),
    "better of two": dict(better=True),
    "credit by criterion": dict(loss=options_of(emphasis=Emphasis("credit")), completions=with_failed()),
    "agreement, guidance by criteria": dict(
        loss=options_of(guidance=0.5, emphasis=Emphasis("agreement", 0.8)), completions=completions_of(criteria=3)
    ),
    "first tokens skipped, cut ones masked": dict(completions=masked(completions_of(), skip_first=2, mask_cut=True)),
    "GRPO by completion": dict(method="grpo", loss=options_of(reduction="completions", policy=PolicyOptions(kl=0.1))),
    "GRPO, the longest": dict(method="grpo", loss=options_of(reduction="longest")),
    "SFT": dict(method="sft"),
    "scanned layers": dict(decoder=decoder_of(num_layers=6), microbatches=1),
    "mixed": dict(method="self_distillation_and_grpo"),
}
FAST = (
    "by completion, importance weights, emphasis", "agreement, guidance by criteria", "better of two", "GRPO by completion", "SFT",
)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x in FAST else [pytest.mark.slow]) for x in CASES])
def test_packed_rows_give_the_loss_and_gradient_of_padded_ones(case):
    assert_alike(*both(**CASES[case]))


# --- what went wrong when others packed: each fault is made on purpose, and the comparison finds it ---------------------------
# Positions that go on over a sequence's beginning are not among them: RoPE sees differences. `test_packing` finds them.


def _labels_of_the_next_place(patch):
    """Labels are shifted in the row, over the ends of its sequences."""
    trip = packed_learning._trip
    shifted = lambda *args: (one := trip(*args))._replace(token=jnp.roll(one.token, -1, axis=-1))
    patch.setattr(packed_learning, "_trip", shifted)


def _one_segment_for_a_row(patch):
    patch.setattr(packing.Rows, "segment_ids", property(lambda rows: _flat(rows.real.astype(jnp.int32))))


def _padding_is_known_by_its_id(patch):
    """A second idea of what is padding beside the mask; prompts and completions here have the id as well."""
    pack = packed_learning.pack
    patch.setattr(packed_learning, "pack", lambda tokens, mask: pack(tokens, mask & (tokens != 0)))


def _each_trip_has_its_own_mean(patch):
    method = METHODS["grpo"]

    def mean_of_the_trip(scored, tokens, weights, options):
        own = (weights.all_rows > 0) / jnp.maximum((weights.all_rows > 0).sum(), 1)
        return method.loss_and_sums(scored, tokens, type(weights)(own, own), options)

    patch.setitem(METHODS, "grpo", method._replace(loss_and_sums=mean_of_the_trip))
    padded = padded_result()
    patch.setitem(globals(), "padded_result", lambda: padded)  # the comparison is with the right loss


def _advantages_of_the_next_completion(patch):
    rolled = lambda completions: tokens_of(completions._replace(advantages=jnp.roll(completions.advantages, 1)))
    patch.setattr(packed_learning, "tokens_of", rolled)


def _a_sequence_is_lost(patch):
    place = packing.place
    patch.setattr(packing, "place", lambda lengths, *rest, **more: place(lengths.at[:, 2].set(0), *rest, **more))


FAULTS = [
    _labels_of_the_next_place,
    _one_segment_for_a_row,
    _padding_is_known_by_its_id,
    _each_trip_has_its_own_mean,
    _advantages_of_the_next_completion,
    _a_sequence_is_lost,
]


def _flat(x):
    return x.reshape(-1, x.shape[-1])


GRPO = dict(method="grpo", loss=options_of(reduction="completions", policy=PolicyOptions(kl=0.1)))


@functools.cache
def padded_result():
    return both(**GRPO, packed=False)[1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_fault_of_packing_is_found(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        assert_alike(both(**GRPO, padded=False)[0], padded_result())


# --- on several devices ------------------------------------------------------------------------------------------------------

ON_EIGHT = """
import collections, functools, json, re
import jax, optax
from rcsd_jax.models import sharding
from rcsd_jax.models.placement import param_shardings
from tests.methods import test_packed_learning as test

decoder = test.decoder_of(num_layers=6, hidden_size=64)
mesh = sharding.make_mesh(8)
recipe = test.recipe_of("self_distillation", test.options_of(guidance=1.0), decoder, 1, 2)
with jax.set_mesh(mesh):
    place = param_shardings(decoder.config, mesh)
    params, other = (jax.device_put(x, place) for x in test.weights_of(decoder))
    state = test.init_state(params, recipe.optimizer, ema=False)
    completions = sharding.to_mesh(test.completions_of(), mesh)
    weights = test.weigh(completions, "tokens")
    function = functools.partial(test.packed_learning.loss_and_gradient, recipe)
    program = jax.jit(function).lower(state, {"base": {"params": other}}, completions, weights).compile()
text = program.as_text()
found = re.findall(r"= (\\S+) (all-gather|all-to-all|collective-permute|reduce-scatter)\\(", text)
print(json.dumps([shape for shape, _ in found]))
"""


@pytest.mark.slow
def test_between_shards_only_tokens_and_weights_move():
    """Collectives but the gradient's sums are of integers, masks and numbers per token: no hidden states."""
    shapes = eight_devices.run(ON_EIGHT)
    assert shapes
    longest = max(STUDENT, TEACHER, COMPLETION)
    for shape in shapes:
        sizes = [int(x) for x in shape.split("[")[1].split("]")[0].split(",")]
        assert len(sizes) <= 2 and max(sizes) <= longest, shape


def test_a_trust_region_mixes_the_logits_of_the_initial_and_the_current_model():
    """The loss is that of logits that NumPy mixes; the heads are tied to embeddings that differ."""
    decoder, completions, share = decoder_of(), completions_of(), 0.3
    packed, _ = both(share=share, padded=False)
    params, initial = weights_of(decoder)

    @jax.jit
    def log_probs(completions):
        logits = []
        for weights, score in ((params, score_student), (initial, score_teacher), (params, score_teacher)):
            network = Network(decoder, {"params": weights})
            logits.append(score(network, completions) @ network.head)
        return logits

    student, first, current = (np.asarray(x, np.float64) / 1.2 for x in log_probs(completions))
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log_softmax(student), log_softmax((1 - share) * first + share * current)
    weights = np.asarray(weigh(completions, "tokens").taught_rows, np.float64)
    np.testing.assert_allclose(packed[0][0], (weights * (np.exp(q) * (q - p)).sum(-1)).sum(), rtol=1e-4)


@pytest.mark.parametrize("same_head", (True, False))
def test_a_mixture_s_hidden_states_on_its_head_are_mixed_logits(same_head):
    decoder, rng = decoder_of(), np.random.default_rng(0)
    hidden = [jnp.asarray(rng.normal(size=(2, 3, 16)), jnp.float32) for _ in range(2)]
    params = [params_of(decoder), params_of(decoder, seed=0 if same_head else 1)]
    networks = [Network(decoder, {"params": x, "hidden": h}) for x, h in zip(params, hidden, strict=True)]
    mixture = Mixture(*networks, 0.05, same_head)
    wanted = 0.95 * hidden[0] @ networks[0].head + 0.05 * hidden[1] @ networks[1].head
    found = hidden_of(mixture, lambda network: network.variables["hidden"]) @ mixture.head
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


SPLIT = """
import json, re
import jax
from rcsd_jax.models import sharding
from rcsd_jax.methods import packed_learning
from tests.methods import test_packed_learning as test

mesh = sharding.make_mesh(data=1, group=2, fsdp=4)
decoder = test.decoder_of(num_heads=8, num_kv_heads=4)
cases = {
    "guidance": dict(loss=test.options_of(guidance=1.5), microbatches=1),
    "GRPO": dict(method="grpo", loss=test.options_of(reduction="completions", policy=test.PolicyOptions(kl=0.1))),
    "credit": dict(loss=test.options_of(emphasis=test.Emphasis("credit")), completions=test.with_failed(), microbatches=1),
}
for name, case in cases.items():
    with jax.set_mesh(mesh):
        packed, _ = test.both(**case, decoder=decoder, split_rows=True, padded=False)
    _, padded = test.both(**case, decoder=decoder, packed=False)
    test.assert_alike(*jax.device_get((packed, padded)), within=1e-4)

with jax.set_mesh(mesh):
    rows = jax.ShapeDtypeStruct((8, 16), "int32", sharding=sharding.batch_sharding(mesh))
    trip = packed_learning.Trip(rows, rows, rows, rows, None, None, None, None)
    network = packed_learning.Network(decoder, {"params": test.weights_of(decoder)[0]})
    program = jax.jit(lambda trip: packed_learning.score_trip(network, trip, "split")).lower(trip).compile()
found = re.findall(r"= \\(?(\\S+?),? .*?(all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)\\(", program.as_text())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_rows_that_devices_share_give_the_loss_and_gradient_of_padded_ones():
    """And devices exchange places for heads; none gathers the activations of whole rows."""
    assert {kind for shape, kind in eight_devices.run(SPLIT) if shape.startswith("f32")} == {"all-to-all"}
