"""Thoughts and answers by token ids: masks against plain loops, gradients of neither part in the other's loss, metrics apart."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.methods import METHODS, contract, rollout, step
from rcsd_jax.methods.rollout import Batch, RolloutOptions
from rcsd_jax.methods.thoughts import PARTS, thoughts_of
from rcsd_jax.sampling import Samples, SamplingConfig

ROWS, N, D, V = 64, 12, 5, 7
ENDS = {"one token": (3,), "three tokens": (3, 1, 3), "one token twice": (3, 3)}


def samples_of(end=(3,), seed=0):
    """Completions of every length, the first of them empty; padding may look like an end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (ROWS, N)).astype(np.int32)
    lengths = np.concatenate([[0, N, N, N], rng.integers(0, N + 1, ROWS - 4)])
    tokens[1:4] = 0  # no end
    tokens[2, -len(end) :] = end  # with its last token
    if len(end) > 1:
        tokens[3, : len(end) - 1], tokens[3, -1] = end[1:], end[0]  # one only if the row went round
    mask = np.arange(N) < lengths[:, None]
    return Samples(tokens, mask, np.zeros((ROWS, N), np.float32), lengths == N)


def by_hand(tokens, mask, end):
    """The place after the first end in a completion's real tokens, for each row; None without one."""
    found = []
    for row, there in zip(tokens, mask, strict=True):
        real = [int(x) for x in row[there]]
        places = [i + len(end) for i in range(len(real)) if tuple(real[i : i + len(end)]) == end]
        found.append(places[0] if places else None)
    return found


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_thought_goes_to_the_first_end_and_includes_it(end):
    samples = samples_of(end)
    thoughts = jax.jit(thoughts_of, static_argnums=2)(samples.tokens, samples.mask, end)
    found = by_hand(samples.tokens, samples.mask, end)
    assert None in found and N in found and any(place not in (None, N) for place in found)
    for i, place in enumerate(found):
        length = samples.mask[i].sum()
        wanted = np.arange(N) < (length if place is None else place)
        np.testing.assert_array_equal(thoughts.mask[i], wanted)
        assert bool(thoughts.ended[i]) == (place is not None)


def assembled(samples, **options):
    nothing = np.zeros((ROWS, 1), np.int32)
    without = contract.Without(np.zeros((ROWS, 0, 0), np.int32), np.zeros((ROWS, 0, 0), bool), np.zeros((ROWS, 0)))
    prompts = [nothing, nothing == 0] * 2
    empty = np.zeros((ROWS, 0), np.int32)
    batch = Batch(np.arange(ROWS), *prompts, empty, empty, empty == 1, without)
    return rollout.assemble(batch, samples, None, RolloutOptions(SamplingConfig(N), **options))


@pytest.mark.parametrize("part", PARTS)
def test_the_mask_counts_one_part_less_its_first_tokens_and_cut_completions(part):
    samples, end = samples_of(), (3,)
    found = by_hand(samples.tokens, samples.mask, end)
    for skip_first, mask_cut in itertools.product((0, 2), (False, True)):
        options = dict(thinking=part, thought_end=end, skip_first=skip_first, mask_cut=mask_cut)
        mask = np.asarray(assembled(samples, **options).completion_mask)
        for i, place in enumerate(found):
            length = int(samples.mask[i].sum())
            counted = {"all": (0, length), "thought": (0, place or length), "answer": (place or length, length)}[part]
            wanted = list(range(*counted))[skip_first:]
            assert np.flatnonzero(mask[i]).tolist() == ([] if mask_cut and samples.cut[i] else wanted), (part, i)


def test_completions_without_thoughts_are_as_before():
    completions = assembled(samples_of(), skip_first=2)
    assert completions.thoughts is None and contract.tokens_of(completions).thought is None
    np.testing.assert_array_equal(completions.completion_mask, samples_of().mask & (np.arange(N) >= 2))
    with pytest.raises(AssertionError, match="told apart"):
        assembled(samples_of(), thinking="answer")


def scored_of(seed=1):
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((ROWS, N, D), (D, V), (ROWS, N, D), (D, V))]
    return contract.Scored(*arrays)


@pytest.mark.parametrize("method", ["self_distillation", "grpo", "sft"])
@pytest.mark.parametrize("part", ["answer", "thought"])
def test_tokens_of_the_other_part_have_no_gradient(part, method):
    """In hidden states; every token that the loss counts has some."""
    scored, samples = scored_of(), samples_of()
    completions = assembled(samples, thinking=part, thought_end=(3,))
    completions = completions._replace(advantages=jnp.linspace(0.5, 1.5, ROWS))
    options = contract.LossOptions(chunk_size=5, by_part=False)

    def loss(hidden):
        weights = contract.weigh(completions, "completions")
        of = scored._replace(student_hidden=hidden), contract.tokens_of(completions), weights, options
        return METHODS[method].loss_and_sums(*of)[0]

    found = by_hand(samples.tokens, samples.mask, (3,))
    answers = np.zeros((ROWS, N), bool)
    for i, place in enumerate(found):
        answers[i, place or N :] = True
    learnt = samples.mask & (answers if part == "answer" else ~answers)
    moved = np.asarray(jnp.abs(jax.grad(loss)(scored.student_hidden)).max(axis=-1)) > 0
    np.testing.assert_array_equal(moved, learnt)
    assert learnt.any() and not learnt[1 if part == "answer" else 0].any()


def test_means_of_thoughts_and_answers_are_those_of_their_tokens():
    scored, samples = scored_of(), samples_of()
    completions = assembled(samples, thought_end=(3,), skip_first=1)
    weights, options = contract.weigh(completions, "completions"), contract.LossOptions(chunk_size=5)
    tokens = contract.tokens_of(completions)
    sums = METHODS["self_distillation"].loss_and_sums(scored, tokens, weights, options)[1]
    logits = [np.asarray(h, np.float64) @ np.asarray(head, np.float64) for h, head in (scored[:2], scored[2:])]
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    wanted = {
        "divergence": (np.exp(log_q) * (log_q - log_p)).sum(-1),
        "student_entropy": -(np.exp(log_p) * log_p).sum(-1),
        "teacher_entropy": -(np.exp(log_q) * log_q).sum(-1),
    }
    found = by_hand(samples.tokens, samples.mask, (3,))
    thought = np.array([np.arange(N) < (N if place is None else place) for place in found])
    learnt = samples.mask & (np.arange(N) >= 1)
    for name, values in wanted.items():
        for part, there in (("", learnt), ("_thought", learnt & thought), ("_answer", learnt & ~thought)):
            np.testing.assert_allclose(sums[name + part], [values[there].sum(), there.sum()], rtol=1e-4)
    alone = METHODS["self_distillation"].loss_and_sums(
        scored, tokens, weights, dataclasses.replace(options, by_part=False)
    )
    assert not any(name.endswith(("_thought", "_answer")) for name in alone[1])


def test_lengths_and_the_share_of_thoughts_that_do_not_end():
    samples = samples_of()
    completions = assembled(samples, thought_end=(3,))
    sums = {"row_loss": jnp.zeros(ROWS), "scored": jnp.zeros(2)}
    metrics = step._metrics(*[jnp.float32(1)] * 3, sums, completions)
    found, lengths = by_hand(samples.tokens, samples.mask, (3,)), samples.mask.sum(axis=1)
    thoughts = [n if place is None else place for place, n in zip(found, lengths, strict=True)]
    assert float(metrics["thought_length"]) == pytest.approx(np.mean(thoughts))
    assert float(metrics["answer_length"]) == pytest.approx(np.mean(lengths - thoughts))
    assert float(metrics["share_unended_thoughts"]) == pytest.approx(np.mean([place is None for place in found]))
