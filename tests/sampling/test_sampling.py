"""sampling.py: what is drawn, how it is scored, and that a row depends on nothing but itself."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import init_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.head import head_matrix
from rcsd_jax.models.scoring import completion_hidden
from rcsd_jax.sampling import SamplingConfig, generate, sample_token
from rcsd_jax.sampling.slots import generate_queue
from tests.plain_logits import logits_after

V, PAD, EOS = 24, 2, (3, 5, 7)
CONFIG = DecoderConfig(
    family="qwen3", vocab_size=V, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, rope_theta=1e4, tie_embeddings=False, max_position=128,
)  # fmt: skip
DECODER = Decoder(CONFIG)
DEEP = Decoder(dataclasses.replace(CONFIG, num_layers=6))  # scanned, where few layers are unrolled
PROMPTS = [np.random.default_rng(i).integers(1, V, size=n) for i, n in enumerate((1, 6, 3, 9, 4, 2))]
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=0.8, eos_ids=EOS)
RUN = jax.jit(
    lambda variables, tokens, mask, keys, sampling, decoder=DECODER: generate(
        decoder, variables, tokens, mask, keys, sampling, pad_id=PAD
    ),
    static_argnums=(4, 5),
)


@pytest.fixture(scope="module")
def variables():
    return variables_of(DECODER)


@functools.cache
def variables_of(decoder):
    params = jax.jit(init_params, static_argnums=0)(decoder.config, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 15, params)  # far from uniform, and tokens depend on context
    return {"params": params | {"final_norm": params["final_norm"] / 10}}


def prompts(rows, width=10):
    tokens, mask = np.full((len(rows), width), PAD + 11, np.int32), np.zeros((len(rows), width), bool)
    for row, i in enumerate(rows):
        tokens[row, width - len(PROMPTS[i]) :], mask[row, width - len(PROMPTS[i]) :] = PROMPTS[i], True
    return jnp.asarray(tokens), jnp.asarray(mask)


def keys(rows):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.asarray(rows))


def run(variables, rows, sampling, width=10, decoder=DECODER):
    return jax.tree.map(np.asarray, RUN(variables, *prompts(rows, width), keys(rows), sampling, decoder))


# -- one token ---------------------------------------------------------------------------------------------------------

FILTERS = {
    "none": {},
    "temperature": dict(temperature=0.5),
    "top-k": dict(top_k=4),
    "top-p": dict(top_p=0.8),
    "both, warm": dict(top_k=6, top_p=0.7, temperature=1.5),
    "p of one token": dict(top_p=1e-6),
    "k beyond the vocabulary": dict(top_k=100),
}


def exact(logits, temperature=1.0, top_k=None, top_p=None):
    """The filtered distribution, by a loop in float64 over tokens from the most likely down."""
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-p)
    kept = order[:top_k]
    if top_p is not None:
        share, mass, chosen = p[kept] / p[kept].sum(), 0.0, []
        for token, s in zip(kept, share, strict=True):
            if chosen and mass >= top_p:
                break
            chosen.append(token)
            mass += s
        kept = np.array(chosen)
    result = np.zeros_like(p)
    result[kept] = p[kept] / p[kept].sum()
    return result


@pytest.mark.parametrize("name", list(FILTERS))
def test_frequencies_are_the_exact_probabilities(name):
    settings, n = FILTERS[name], 20_000
    logits = np.random.default_rng(3).normal(size=10).astype(np.float32) * 1.3
    sampling = SamplingConfig(max_new_tokens=1, **settings)
    draw = jax.jit(sample_token, static_argnums=2)
    tokens, log_probs = draw(jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(1), n), sampling)
    counts, p = np.bincount(tokens, minlength=10), exact(logits, **settings)
    assert counts[p == 0].sum() == 0
    if (p > 0).sum() > 1:
        assert scipy.stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-4
    unfiltered = np.log(exact(logits, settings.get("temperature", 1.0)))
    np.testing.assert_allclose(log_probs, unfiltered[np.asarray(tokens)], atol=1e-5)


def test_a_vocabulary_of_several_blocks_is_drawn_from_exactly():
    n, logits = 100_000, np.random.default_rng(5).normal(size=300).astype(np.float32) * 2
    logits[[0, 130, 299]] = -np.inf  # the first, the first of those that are left, and the last
    logits[128:256] -= 200  # a block without any mass
    draw = jax.jit(sample_token, static_argnums=2)
    tokens, _ = draw(jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(2), n), SamplingConfig(1))
    counts, p = np.bincount(tokens, minlength=300), exact(logits)
    assert counts[p < 1e-30].sum() == 0
    often = n * p > 5
    observed, wanted = (np.append(x[often], x[~often].sum()) for x in (counts, n * p))
    assert scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_greedy_takes_the_likeliest_and_scores_it_at_temperature_one():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(5, 10)), jnp.float32)
    tokens, log_probs = sample_token(logits, keys(range(5)), SamplingConfig(1, temperature=0, top_k=3))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits).max(-1), atol=1e-6)


def penalised(logits, seen, penalty):
    """The logits of which tokens are drawn, as vLLM defines them: what the text already has is less likely, however often it has it."""
    return np.asarray(logits, np.float64) - penalty * np.asarray(seen)


@pytest.mark.parametrize("penalty, settings", [(1.5, dict(temperature=0.7)), (-1.0, dict(top_k=4, top_p=0.9))])
def test_a_presence_penalty_is_for_tokens_that_were_seen_and_scores_leave_it_out(penalty, settings):
    n, logits = 20_000, np.random.default_rng(3).normal(size=10).astype(np.float32) * 1.3
    seen = np.arange(10) % 3 == 0
    sampling = SamplingConfig(max_new_tokens=1, presence_penalty=penalty, **settings)
    draw = jax.jit(sample_token, static_argnums=2)
    rows = jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(1), n)
    tokens, log_probs = draw(*rows, sampling, jnp.tile(seen, (n, 1)))
    counts, p = np.bincount(tokens, minlength=10), exact(penalised(logits, seen, penalty), **settings)
    assert counts[p == 0].sum() == 0
    assert scipy.stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-4
    unfiltered = np.log(exact(logits, settings.get("temperature", 1.0)))
    np.testing.assert_allclose(log_probs, unfiltered[np.asarray(tokens)], atol=1e-5)


# -- completions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [DECODER, DEEP], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("changes", [dict(temperature=0), dict(top_k=8, top_p=0.9, temperature=1.2)])
def test_log_probs_are_those_of_the_scoring_pass(changes, decoder):
    sampling, variables = dataclasses.replace(SAMPLED, eos_ids=EOS[:1], **changes), variables_of(decoder)
    rows = list(range(len(PROMPTS)))
    samples = run(variables, rows, sampling, decoder=decoder)

    @jax.jit
    def score(tokens, mask, completion, completion_mask):
        hidden = completion_hidden(decoder, variables, tokens, mask, completion, completion_mask)
        return jax.nn.log_softmax(
            hidden @ head_matrix(decoder.config, variables["params"]) / (sampling.temperature or 1.0)
        )

    scored = score(*prompts(rows), samples.tokens, samples.mask)
    scored = np.take_along_axis(np.asarray(scored), samples.tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(samples.log_probs[samples.mask], scored[samples.mask], rtol=0, atol=1e-4)
    assert samples.mask.sum() > 20 and samples.log_probs[samples.mask].std() > 0.1


@pytest.mark.parametrize("temperature, decoder", [(0, DECODER), (0.8, DECODER), (0.8, DEEP)])
def test_a_row_depends_neither_on_its_batch_nor_on_padding(temperature, decoder):
    sampling = dataclasses.replace(SAMPLED, eos_ids=EOS[1:2], temperature=temperature)
    variables = variables_of(decoder)
    whole = run(variables, [0, 1, 2, 3, 4, 5], sampling, decoder=decoder)
    others = [([5, 3, 1, 1], 10), ([2], 17)]
    for rows, width in others:
        part = run(variables, rows, sampling, width, decoder)
        np.testing.assert_array_equal(part.tokens, whole.tokens[rows])
        np.testing.assert_array_equal(part.mask, whole.mask[rows])
        np.testing.assert_allclose(part.log_probs, whole.log_probs[rows], atol=1e-4)
    assert len({tuple(tokens) for tokens in whole.tokens}) == len(PROMPTS)


def test_another_key_draws_other_tokens(variables):
    tokens, mask = prompts([1] * 4)
    samples = RUN(variables, tokens, mask, keys([10, 11, 12, 10]), dataclasses.replace(SAMPLED, temperature=1.5))
    drawn = [tuple(row) for row in np.asarray(samples.tokens)]
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


def test_end_token_ends_the_row_and_belongs_to_the_mask(variables):
    rows = [i % len(PROMPTS) for i in range(12)]
    tokens, mask = prompts(rows)
    samples = jax.tree.map(np.asarray, RUN(variables, tokens, mask, keys(range(12)), SAMPLED))
    assert 0 < samples.cut.sum() < 12  # both kinds occur
    for row_tokens, row_mask, log_probs, cut in zip(*samples[:4], strict=True):
        ends = np.flatnonzero(np.isin(row_tokens, EOS) & row_mask)
        length = row_mask.sum()
        assert row_mask[:length].all()
        assert cut == (len(ends) == 0)
        assert list(ends) == ([] if cut else [length - 1])
        assert not cut or length == SAMPLED.max_new_tokens
        assert (row_tokens[length:] == PAD).all() and (log_probs[length:] == 0).all() and (log_probs[:length] < 0).all()


def test_end_token_as_the_very_last_is_not_cut(variables):
    full = run(variables, [1], dataclasses.replace(SAMPLED, temperature=0, eos_ids=()))
    last = int(full.tokens[0, np.unique(full.tokens[0], return_index=True)[1].max()])  # the latest first occurrence
    place = list(full.tokens[0]).index(last)
    sampling = dataclasses.replace(SAMPLED, temperature=0, eos_ids=(last,))
    exactly = run(variables, [1], dataclasses.replace(sampling, max_new_tokens=place + 1))
    assert not exactly.cut[0] and exactly.mask.all() and exactly.tokens[0, -1] == last
    if place:
        assert run(variables, [1], dataclasses.replace(sampling, max_new_tokens=place)).cut[0]


def test_decoding_stops_with_the_longest_row(variables):
    calls = []

    class Counting:
        """The decoder, counting how often it really runs."""

        config = CONFIG

        def apply(self, *arguments, **named):
            jax.debug.callback(lambda: calls.append(1))
            return DECODER.apply(*arguments, **named)

    def count(sampling):
        calls.clear()
        ids = jnp.arange(4) + 20
        samples = jax.jit(lambda v: generate(Counting(), v, *prompts([0, 1, 2, 3]), keys(ids), sampling))(variables)
        jax.block_until_ready(samples)
        jax.effects_barrier()
        return len(calls), int(samples.mask.sum(axis=1).max())

    everything = SamplingConfig(max_new_tokens=30, eos_ids=tuple(range(V)))
    assert count(everything) == (2, 1)  # prefill, and one step after the only token
    decoded, longest = count(dataclasses.replace(everything, eos_ids=EOS, temperature=1.5))
    assert 1 < longest < 30 and decoded == 1 + longest
    assert count(dataclasses.replace(everything, eos_ids=())) == (31, 30)


@pytest.mark.parametrize("temperature", [1e-40, 1e-10, 9e-5, 1e-4])
def test_near_zero_the_likeliest_is_drawn(temperature):
    logits = 3 * jax.random.normal(jax.random.key(0), (64, 500)) + 10
    drawn, log_probs = jax.jit(sample_token, static_argnums=2)(
        logits, jax.random.split(jax.random.key(1), 64), SamplingConfig(1, temperature=temperature)
    )
    assert drawn.tolist() == logits.argmax(axis=-1).tolist()
    assert np.isfinite(log_probs).all() and (log_probs <= 0).all()


def test_adapters_are_sampled_with(variables):
    b = jax.random.normal(jax.random.key(3), (2, 3, 24))
    adapters = {"up": {"a": jnp.ones((2, 16, 3)), "b": 3 * b}}
    with_adapters = run(variables | {"lora": adapters}, [0, 1, 2], SAMPLED)
    assert (with_adapters.tokens != run(variables, [0, 1, 2], SAMPLED).tokens).any()


def test_nothing_warns(variables):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampling = dataclasses.replace(SAMPLED, max_new_tokens=3, top_k=3, top_p=0.9)  # its own compilation
        assert np.isfinite(run(variables, [0, 1], sampling).log_probs).all()


def test_completions_with_a_presence_penalty_are_those_of_a_plain_loop_also_in_slots(variables):
    """Greedy, so that every token can be told; the slots' memory of a completion ends with it."""
    sampling = SamplingConfig(max_new_tokens=8, temperature=0, eos_ids=EOS, presence_penalty=3.0)
    rows = [1, 0, 3, 2, 5]
    whole = run(variables, rows, sampling)
    plain = dataclasses.replace(sampling, presence_penalty=0.0)
    assert (whole.tokens != run(variables, rows, plain).tokens).any()
    for row, i in enumerate(rows):
        written = []
        while len(written) < 8 and not (written and written[-1] in EOS):
            logits = logits_after(DECODER, variables, PROMPTS[i], np.asarray([*written, 0]))[-1]
            written.append(int(penalised(logits, np.isin(np.arange(V), written), 3.0).argmax()))
        assert whole.tokens[row][whole.mask[row]].tolist() == written
    queue = jax.jit(lambda *a: generate_queue(DECODER, *a, sampling, slots=2, pad_id=PAD))
    queued, _ = queue(variables, *prompts(rows), keys(rows))
    np.testing.assert_array_equal(queued.tokens, whole.tokens)
    np.testing.assert_allclose(queued.log_probs, whole.log_probs, atol=1e-5)
