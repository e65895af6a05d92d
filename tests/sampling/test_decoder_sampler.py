"""The sampler of our own decoder: every prompt once, in groups, each as it would be alone, and what it thinks of others'."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import make_mesh
from rcsd_jax.sampling import Samples, SamplingConfig, decoder_sampler, generate, slots
from rcsd_jax.sampling.decoder_sampler import GROUP, DecoderSampler
from rcsd_jax.sampling.sampler import completions_of
from rcsd_jax.sampling.slots import generate_queue
from tests.sampling.test_continuous_batching import CONFIG, small

SAMPLING = SamplingConfig(max_new_tokens=10, temperature=0.8, eos_ids=(3, 5))


def sampler_of(variables, batch_size=2, **settings):
    mesh = make_mesh(devices=jax.devices()[:1])
    return DecoderSampler(Decoder(CONFIG), variables, mesh, batch_size=batch_size, pad_to=4, pad_id=2, **settings)


@pytest.mark.parametrize("count", [0, 3, 11, 18])
def test_every_prompt_is_completed_as_if_alone(count):
    variables, tokens, mask, _ = small()
    prompts = [row[keep] for row, keep in zip(tokens, mask, strict=True)][:count]
    together, one = sampler_of(variables), sampler_of(variables, batch_size=1)
    with jax.set_mesh(together.mesh):
        groups = list(together.generate(prompts, range(count), SAMPLING))
        found = {i: c for chosen, group in groups for i, c in zip(chosen, group, strict=True)}
        assert sorted(found) == list(range(count)) and sum(len(chosen) for chosen, _ in groups) == count
        assert len(groups) == -(-count // (2 * GROUP))
        lengths = [len(prompts[i]) for chosen, _ in groups for i in chosen]
        assert lengths == sorted(lengths)
        for i in range(0, count, 4):
            ((_, (alone,)),) = one.generate([prompts[i]], [i], SAMPLING)
            np.testing.assert_array_equal(found[i].tokens, alone.tokens)
            assert found[i].cut == alone.cut and not np.isin(found[i].tokens, SAMPLING.eos_ids).any()
    if count == 18:
        assert {c.cut for c in found.values()} == {True, False} and min(map(len, prompts)) < 5


def test_a_prompt_of_several_completions_is_prefilled_once(monkeypatch):
    variables, tokens, mask, _ = small()
    several = [row[keep] for row, keep in zip(tokens, mask, strict=True) for _ in range(4)][:36]
    sampler = dataclasses.replace(sampler_of(variables, batch_size=4), pad_to=12)
    shapes = []

    def watched(decoder, variables, tokens, mask, keys, *rest, **more):
        shapes.append((len(tokens), len(keys)))
        return generate_queue(decoder, variables, tokens, mask, keys, *rest, **more)

    monkeypatch.setattr(decoder_sampler, "generate_queue", watched)

    def written(chosen):
        prompts = [several[i] for i in chosen]
        with jax.set_mesh(sampler.mesh):
            groups = list(sampler.generate(prompts, chosen, SAMPLING))
        return {chosen[i]: c.tokens.tolist() for some, of_some in groups for i, c in zip(some, of_some, strict=True)}

    together = written(range(36))
    apart = written([*range(0, 36, 4), *range(1, 36, 4)])  # neighbours of equal length are different prompts
    assert shapes == [(3, 12), (12, 12)] and {i: together[i] for i in apart} == apart
    assert len({tuple(together[i]) for i in range(4)}) > 1


def test_drafts_change_no_completion():
    variables, tokens, mask, _ = small()
    prompts = [row[keep] for row, keep in zip(tokens, mask, strict=True)][:5]
    plain = sampler_of(variables, batch_size=4)

    def written(sampler):
        found = {}
        for chosen, completions in sampler.generate(prompts, range(5), SAMPLING):
            found |= {i: (one.tokens.tolist(), one.cut) for i, one in zip(chosen, completions, strict=True)}
        return found

    calls = []
    with jax.set_mesh(plain.mesh), pytest.MonkeyPatch.context() as patch:
        step = slots.speculative_step
        patch.setattr(slots, "speculative_step", lambda *a: calls.append(a) or step(*a))
        assert written(dataclasses.replace(plain, draft_tokens=2)) == written(plain)
    assert len(calls) == 1 and calls[0][3].shape == (4, 3)  # keys of a token and two drafts in every row


def test_log_probs_of_its_own_completions_are_those_that_they_were_drawn_with():
    variables, tokens, mask, keys = small()
    draw = jax.jit(functools.partial(generate, Decoder(CONFIG), sampling=SAMPLING, pad_id=2))
    samples = jax.tree.map(np.asarray, draw(variables, tokens, mask, keys[:24]))
    prompts, completions, wanted = (
        [row[keep] for row, keep in zip(rows, kept, strict=True)]
        for rows, kept in ((tokens, mask), (samples.tokens, samples.mask), (samples.log_probs, samples.mask))
    )
    sampler = sampler_of(variables, batch_size=5)
    with jax.set_mesh(sampler.mesh):
        found = sampler.log_probs(prompts, completions, temperature=SAMPLING.temperature)
        colder = sampler.log_probs(prompts[:1], completions[:1], temperature=0.4)
    assert len({len(row) for row in found}) > 3
    for row, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-4, rtol=0)
    assert np.abs(colder[0] - found[0]).max() > 0.1


def test_other_weights_are_another_value():
    variables, tokens, mask, _ = small()
    prompts = [row[keep] for row, keep in zip(tokens, mask, strict=True)][:4]
    greedy = SamplingConfig(max_new_tokens=10, temperature=0.0, eos_ids=(3, 5))
    before = sampler_of(variables, batch_size=4)
    after = before.with_weights(jax.tree.map(lambda x: jnp.asarray(x) * 0.7, variables))

    def written(sampler):
        ((_, completions),) = sampler.generate(prompts, range(4), greedy)
        return [one.tokens.tolist() for one in completions]

    with jax.set_mesh(before.mesh):
        first = written(before)
        assert written(after) != first == written(before)


def test_a_stop_comes_between_two_groups_and_after_what_was_drawn():
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    variables, tokens, mask, _ = small()
    prompts, got = [row[keep] for row, keep in zip(tokens, mask, strict=True)], []
    sampler = sampler_of(variables, stop=stop)
    with jax.set_mesh(sampler.mesh), pytest.raises(Stopped):
        for chosen, _ in sampler.generate(prompts, range(24), SAMPLING):
            got += chosen
    assert len(got) == 2 * GROUP


def test_a_completion_is_what_stands_before_the_end():
    mask = np.array([[True, True, True, False], [True, True, True, False]])
    tokens = np.array([[7, 8, 3, 3], [9, 9, 4, 0]])
    samples = Samples(tokens, mask, np.zeros((2, 4)), np.array([False, True]))
    assert [(one.tokens.tolist(), one.cut) for one in completions_of(samples, (3,))] == [
        ([7, 8], False),
        ([9, 9, 4], True),
    ]
