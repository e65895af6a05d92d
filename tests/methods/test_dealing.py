"""The rows of a rollout: their order, the keys that separate steps would give them, and the batches taken out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.methods import dealing

SHAPES = [
    (1, 3, 1),
    (1, 2, 4),
    (2, 3, 1),
    (3, 2, 2),
    (4, 1, 3),
]  # batches, questions of a batch, completions of a question


@pytest.mark.parametrize("batches, count, group", SHAPES)
def test_a_batch_has_its_own_questions_in_order_with_their_groups_together(batches, count, group):
    questions = np.array(dealing.questions(count, batches=batches, group=group))
    assert len(questions) == batches * count * group
    for number in range(batches):
        wanted = np.repeat(np.arange(number * count, (number + 1) * count), group)
        there = dealing.places(number, len(questions), batches=batches, group=group)
        np.testing.assert_array_equal(questions[there], wanted)
        rollout = {"question": jnp.asarray(questions), "more": jnp.stack([questions, -questions], axis=1)}
        taken = dealing.batch_of(rollout, number, batches=batches, group=group)
        np.testing.assert_array_equal(taken["question"], wanted)
        np.testing.assert_array_equal(taken["more"], np.stack([wanted, -wanted], axis=1))
    assert all(
        len(set(one)) == 1 for one in questions.reshape(-1, group)
    )  # a queue prefills a question once for its group


@pytest.mark.parametrize("batches, count, group", SHAPES)
def test_every_part_of_a_rollout_holds_the_same_share_of_every_batch(batches, count, group):
    rows = batches * count * group
    of_batch = np.empty(rows, int)
    for number in range(batches):
        of_batch[dealing.places(number, rows, batches=batches, group=group)] = number
    for part in np.split(of_batch, count):  # as over so many devices
        np.testing.assert_array_equal(np.bincount(part, minlength=batches), group)


@pytest.mark.parametrize("batches, count, group", SHAPES)
def test_keys_are_those_of_separate_steps(batches, count, group):
    seed, first, size = 7, 5, count * group
    place = jnp.arange(batches * size)
    keys = dealing.row_keys(place, jax.random.key(seed), jnp.int32(first), batches=batches, group=group)
    data = jax.random.key_data(keys)
    assert len({tuple(row) for row in data.tolist()}) == batches * size
    for number in range(batches):
        there = dealing.places(number, batches * size, batches=batches, group=group)
        step = jax.random.fold_in(jax.random.key(seed), first + number)
        wanted = [jax.random.key_data(jax.random.fold_in(step, row)).tolist() for row in range(size)]
        assert data[there].tolist() == wanted
