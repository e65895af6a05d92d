"""Learning on packed rows: the loss and gradient of padded rows, for every method and option, and work in proportion to real tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcsd_jax.losses import DivergenceOptions
from rcsd_jax.methods import METHODS, packed_learning
from rcsd_jax.methods.contract import Completions, LossOptions, PolicyOptions, Without, weigh
from rcsd_jax.methods.networks import BASE, RoleNetwork, Roles
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import RolloutOptions
from rcsd_jax.methods.state import init_state
from rcsd_jax.methods.step import padded_loss_and_gradient
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.sampling import Samples, SamplingConfig

ROWS, STUDENT, TEACHER, COMPLETION, VOCABULARY = 8, 7, 12, 10, 40


def decoder_of(**changes):
    shape = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8) | changes
    return Decoder(DecoderConfig(family="qwen3", vocab_size=VOCABULARY, tie_embeddings=True, **shape))


def params_of(decoder, seed=0):
    return jax.tree.map(lambda x: 8.0 * x, init_params(decoder.config, jax.random.key(seed)))


def completions_of(seed=0, criteria=0):
    """Prompts and completions of all lengths: left-padded, with a hole in a context, an empty completion, one cut."""
    rng = np.random.default_rng(seed)

    def prompts(count, longest, lengths):
        tokens = rng.integers(1, VOCABULARY, (count, longest)).astype(np.int32)
        return tokens, np.arange(longest) >= longest - np.asarray(lengths)[:, None]

    student = prompts(ROWS, STUDENT, [7, 1, 3, 5, 2, 7, 4, 6])
    teacher = prompts(ROWS, TEACHER, [12, 9, 3, 12, 5, 8, 10, 1])
    teacher[1][0, 4:6] = False  # between an analysis and what follows it
    tokens = rng.integers(1, VOCABULARY, (ROWS, COMPLETION)).astype(np.int32)
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


def compiled(function, *inputs):
    """Compiled in a sixth of the usual time, for programs that run once."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return jax.jit(function).lower(*inputs).compile(compiler_options=options)


def both(method="self_distillation", *, loss=None, decoder=None, completions=None, microbatches=2, row_lengths=2):
    """((loss, sums), gradient) of packed and of padded rows."""
    decoder = decoder or decoder_of()
    teacher = METHODS[method].teacher or (loss is not None and loss.policy.kl > 0)
    roles = Roles(RoleNetwork(decoder, moving="trained"), RoleNetwork(decoder, frozen=BASE) if teacher else None)
    rollout = RolloutOptions(SamplingConfig(max_new_tokens=COMPLETION))
    recipe = Recipe(
        roles, rollout, loss or options_of(), optax.identity(), method=method, microbatches=microbatches,
        row_lengths=row_lengths,
    )  # fmt: skip
    params, other = weights_of(decoder)
    state, frozen = init_state(params, recipe.optimizer, ema=False), {BASE: {"params": other}}
    completions = completions_of() if completions is None else completions
    inputs = state, frozen, completions, weigh(completions, recipe.loss.reduction)
    run = lambda function: compiled(functools.partial(function, recipe), *inputs)(*inputs)
    return run(packed_learning.loss_and_gradient), run(padded_loss_and_gradient)


def assert_alike(packed, padded):
    (loss, sums), gradient = packed
    (want, wanted), theirs = padded
    assert abs(float(want)) > 1e-3
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for name in wanted.keys() - {"scored"}:
        np.testing.assert_allclose(sums[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)
    assert float(sums["scored"][0]) <= float(sums["scored"][1]) < float(wanted["scored"][1])


def masked(completions, *, skip_first=0, mask_cut=False):
    mask = completions.samples.mask & (jnp.arange(COMPLETION) >= skip_first)
    return completions._replace(completion_mask=mask & ~(completions.samples.cut & mask_cut)[:, None])


CASES = {
    "divergence": {},
    "by completion, importance weights": dict(loss=options_of(reduction="completions", importance_clip=1.5)),
    "sampled token, the longest": dict(
        loss=options_of(reduction="longest", divergence=dict(divergence="sampled_token"))
    ),
    "top-k, clips": dict(loss=options_of(divergence=dict(top_k=5, entry_clip=0.05, beta=0.5, tail="bucket"))),
    "guidance": dict(loss=options_of(guidance=1.5)),
    "guidance by criteria": dict(loss=options_of(guidance=1.5), completions=completions_of(criteria=3)),
    "first tokens skipped, cut ones masked": dict(completions=masked(completions_of(), skip_first=2, mask_cut=True)),
    "GRPO by completion": dict(method="grpo", loss=options_of(reduction="completions", policy=PolicyOptions(kl=0.1))),
    "GRPO, the longest": dict(method="grpo", loss=options_of(reduction="longest")),
    "SFT": dict(method="sft"),
    "mixed": dict(method="self_distillation_and_grpo"),
}
FAST = ("by completion, importance weights", "guidance by criteria", "GRPO by completion", "SFT")


@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x in FAST else [pytest.mark.slow]) for x in CASES])
def test_packed_rows_give_the_loss_and_gradient_of_padded_ones(case):
    assert_alike(*both(**CASES[case]))
