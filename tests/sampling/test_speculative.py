"""sampling/speculative.py: drafts change how many steps the tokens take, and never which tokens they are."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rcsd_jax.sampling import SamplingConfig, decoding, generate, speculative
from rcsd_jax.sampling.slots import generate_queue
from rcsd_jax.sampling.speculative import LONGEST_MATCH, NO_DRAFT, Text, look_up, speculative_step
from tests.sampling.test_continuous_batching import CONFIG, PAD, Decoder, heavy_tailed, same, small

# -- drafts ------------------------------------------------------------------------------------------------------------


def looked_up(text, count):
    """By a loop over lengths and places, on a list."""
    for length in range(min(LONGEST_MATCH, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, length - 1, -1):  # the place after an earlier occurrence
            if text[end - length : end] == text[-length:]:
                extended = list(text)
                for _ in range(count):
                    extended.append(extended[end + len(extended) - len(text)])
                return extended[len(text) :]
    return [NO_DRAFT] * count


@pytest.mark.parametrize("alphabet", [2, 6, 60])
def test_drafts_are_what_followed_the_longest_and_latest_match(alphabet):
    rng = np.random.default_rng(alphabet)
    tokens = rng.integers(0, alphabet, (300, 24)).astype(np.int32)
    newest = rng.integers(0, 24, 300).astype(np.int32)
    drafts = np.asarray(jax.jit(look_up, static_argnums=2)(tokens, newest, 5))
    wanted = [looked_up(row[: n + 1].tolist(), 5) for row, n in zip(tokens, newest, strict=True)]
    assert drafts.tolist() == wanted
    found = (drafts[:, 0] != NO_DRAFT).mean()
    assert 0.85 < found if alphabet == 2 else 0.1 < found < 0.9


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_an_accepted_or_replaced_draft_has_the_target_distribution():
    """Every one of 20 equally likely random numbers, every draft: exact counts."""
    counts = np.array([7, 1, 0, 9, 3])
    uniform = jnp.asarray((np.arange(20) + 0.5) / 20)
    tokens = np.asarray(decoding._invert(jnp.tile(jnp.asarray(counts, jnp.float32), (20, 1)), uniform))
    for draft in range(5):
        accepted = tokens == draft
        assert accepted.sum() == counts[draft]
        replaced = np.where(np.arange(5) == draft, 0, counts)
        np.testing.assert_array_equal(np.bincount(tokens[~accepted], minlength=5), replaced)
        np.testing.assert_array_equal(np.bincount(tokens, minlength=5), counts)


class Chain:
    """A decoder without a cache: the next token depends on the last only, by a table [V, V] of logits."""

    config = CONFIG

    def __init__(self, table):
        self.table = table

    def apply(self, variables, tokens, *, positions, cache, cache_index):
        return self.table[tokens], cache


def chain_step(table, text, keys, sampling):
    weights = decoding.Weights({}, jnp.eye(table.shape[0]))
    return speculative_step(Chain(table), weights, text, keys, sampling)


def test_the_first_wrong_draft_ends_what_is_accepted(monkeypatch):
    table = 50.0 * jnp.eye(8)[(jnp.arange(8) + 1) % 8]  # counts up
    right = np.array([2, 3, 4])
    patterns = np.array(list(itertools.product([True, False], repeat=3)))
    drafts = jnp.asarray(np.where(patterns, right, [0, NO_DRAFT, 1]), jnp.int32)  # after the text's last token, 1
    monkeypatch.setattr(speculative, "look_up", lambda tokens, newest, count: drafts)
    text = Text(jnp.ones((8, 10), jnp.int32), (), jnp.full(8, 4))
    keys = jax.random.split(jax.random.key(0), (8, 4))
    tokens, log_probs, accepted, after = chain_step(table, text, keys, SamplingConfig(9, temperature=0.0))
    for row, pattern in enumerate(patterns):
        count = 1 + len(list(itertools.takewhile(bool, pattern)))
        assert accepted[row] == count and after.lengths[row] == 4 + count
        assert tokens[row, :count].tolist() == [2, 3, 4, 5][:count] == after.tokens[row, 5 : 5 + count].tolist()
        assert after.tokens[row, :5].tolist() == [1] * 5 and np.abs(log_probs[row, :count]).max() < 1e-3


V, N = 4, 30_000


def exact_triples(table, sampling, first):
    """Probabilities [V, V, V] of three tokens after `first`, in float64."""
    p = np.exp(np.asarray(table, np.float64) / sampling.temperature)
    if sampling.top_k:
        p *= p >= np.sort(p, axis=1)[:, -sampling.top_k, None]
    p /= p.sum(axis=1, keepdims=True)
    return p[first][:, None, None] * p[:, :, None] * p[None]


@pytest.mark.parametrize("settings", [dict(), dict(temperature=1.3, top_k=3)])
def test_three_tokens_are_distributed_as_by_plain_sampling(settings):
    rng = np.random.default_rng(0)
    table, sampling = jnp.asarray(rng.normal(size=(V, V)), jnp.float32), SamplingConfig(3, **settings)
    prompt, first = 8, 1
    tokens = rng.integers(0, V, (N, prompt + 8)).astype(np.int32)
    tokens[:, prompt - 1] = first
    step = jax.jit(functools.partial(chain_step, table, sampling=sampling))
    row_keys = jax.random.split(jax.random.key(1), N)
    fold = jax.jit(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0))))
    text = Text(jnp.asarray(tokens), (), jnp.full(N, prompt - 1))
    always, steps = np.zeros((N, 3), int), 0.0
    for number in range(3):  # after three steps every row has three tokens
        written = text.lengths - (prompt - 1)
        steps += float((written < 3).mean())
        drafts = np.asarray(look_up(text.tokens, text.lengths, 3))
        keys = fold(row_keys, written[:, None] + jnp.arange(4))
        drawn, _, _, text = step(text, keys)
        if number == 0:  # what would be written if every draft were accepted
            always = np.where(drafts == NO_DRAFT, np.asarray(drawn)[:, :3], drafts)
    written = np.asarray(text.tokens)[:, prompt : prompt + 3]
    assert 3 / steps > 1.1  # drafts were accepted

    def p_value(triples):
        counts = np.bincount(triples @ [V * V, V, 1], minlength=V**3)
        wanted = N * exact_triples(table, sampling, first).ravel()
        assert counts[wanted == 0].sum() == 0 or triples is not written
        kept = wanted > 0
        return scipy.stats.chisquare(counts[kept] * (N / counts[kept].sum()), wanted[kept]).pvalue

    assert p_value(written) > 1e-3
    assert p_value(always) < 1e-9
    # A rejected draft that is drawn again from the whole distribution is drawn too often.
    p = exact_triples(table, sampling, first).sum(axis=(1, 2))
    again = np.where((written[:, 0] == 2) | (rng.random(N) > p[2]), written[:, 0], 2)
    assert p_value(np.stack([again, *written[:, 1:].T], axis=1)) < 1e-9


# -- whole completions -------------------------------------------------------------------------------------------------


@functools.cache
def plain(sampling, layers):
    variables, tokens, mask, keys = small(of_layers(layers))
    run = jax.jit(lambda *a: generate(Decoder(of_layers(layers)), *a, sampling, pad_id=PAD))
    return jax.tree.map(np.asarray, run(variables, np.repeat(tokens, 3, 0), np.repeat(mask, 3, 0), keys))


def of_layers(layers):
    return dataclasses.replace(CONFIG, num_layers=layers)


def drafted(sampling, layers, limits, **settings):
    variables, tokens, mask, keys = small(of_layers(layers))
    run = jax.jit(
        lambda *a: generate_queue(
            Decoder(of_layers(layers)), *a[:4], sampling, limits=a[4], samples_per_prompt=3, pad_id=PAD, **settings
        )
    )
    return jax.tree.map(np.asarray, run(variables, tokens, mask, keys, limits))


GREEDY = SamplingConfig(40, temperature=0.0, eos_ids=(3,))
SAMPLED = SamplingConfig(40, temperature=0.7, top_k=9, top_p=0.95, eos_ids=(3, 5))


@pytest.mark.parametrize("sampling, layers, slots, drafts", [(GREEDY, 2, 6, 3), (SAMPLED, 6, 72, 1)])
def test_completions_are_those_without_drafts(sampling, layers, slots, drafts):
    limits = heavy_tailed(72, 40)
    samples, occupancy = drafted(sampling, layers, limits, slots=slots, draft_tokens=drafts)
    same(samples, plain(sampling, layers), limits)
    assert occupancy.tokens == samples.mask.sum() > occupancy.live and len(set(map(tuple, samples.tokens))) > 10


def test_ends_and_limits_within_what_is_accepted(monkeypatch):
    """Drafts from the completions themselves, with some errors: most are accepted, beyond ends and limits too."""
    _, prompts, mask, _ = small()
    whole, limits = plain(SAMPLED, 2), heavy_tailed(72, 40)
    texts = [[*prompts[i // 3][mask[i // 3]].tolist(), *row.tolist()] for i, row in enumerate(whole.tokens)]

    def known(tokens, newest, count):
        found = np.full((len(tokens), count), NO_DRAFT, np.int32)
        for row, (seen, n) in enumerate(zip(np.asarray(tokens), np.asarray(newest), strict=True)):
            for text in texts:
                if text[: n + 1] == seen[: n + 1].tolist():
                    following = text[n + 1 : n + 1 + count]
                    found[row, : len(following)] = following
        return np.where((newest[:, None] + np.arange(count)) % 7 == 3, 23, found).astype(np.int32)

    def look_up(tokens, newest, count):
        shape = jax.ShapeDtypeStruct((len(tokens), count), jnp.int32)
        return jax.pure_callback(functools.partial(known, count=count), shape, tokens, newest)

    monkeypatch.setattr(speculative, "look_up", look_up)
    samples, occupancy = drafted(SAMPLED, 2, limits, slots=10, draft_tokens=3)
    same(samples, whole, limits)
    assert occupancy.tokens == samples.mask.sum() and occupancy.tokens / occupancy.live > 1.8
    assert 10 < samples.cut.sum() < 62
