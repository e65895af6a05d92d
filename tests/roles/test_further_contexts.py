"""What a teacher is contrasted with, as prompts: without the question, and with another row's material."""

import dataclasses

import numpy as np
import pytest

from configs import world as world_config
from rcsd_jax import world
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.other_rows import MATERIAL, with_other_rows
from rcsd_jax.host.errors import UserError
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.rows import encode_all
from tests.settings_for_tests import settings_of

EXAMPLES = world.examples("stage2", 6)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(world.base_directory())


def encoded(kind, examples, tokenizer, **data):
    """The settings, the rows, and a function from token ids to text with single spaces."""
    config = world_config.get_config("reference")
    config.teacher.update(guidance=1.0, guidance_by=kind)
    config.data.update(data)
    settings = settings_of(config)
    rows = encode_all(examples, tokenizer, settings.encoding, settings.limits)
    return settings, rows, lambda ids: " ".join(tokenizer.decode(ids).split())


def test_a_purified_target_needs_the_teacher_s_prompt_without_the_question(tokenizer):
    settings, rows, text = encoded("purified", EXAMPLES, tokenizer)
    for example, whole, without in zip(EXAMPLES, rows.teacher, rows.without, strict=True):
        question = " ".join(example.question.split())
        (prompt,) = without.prompts
        assert without.weights.tolist() == [1.0] and question in text(whole)
        assert text(prompt) == " ".join(text(whole).replace(question, "").split())
    batch = make_batch([4, 1], rows, settings, 0)
    shown = np.asarray(batch.without.tokens[0, 0])[np.asarray(batch.without.mask[0, 0])]
    assert batch.without.weights.tolist() == [[1.0], [1.0]] and shown.tolist() == rows.without[4].prompts[0].tolist()


def test_another_row_s_material_follows_from_seed_and_row(tokenizer):
    given = with_other_rows(EXAMPLES, seed=3)
    by_id = {e.id: e for e in with_other_rows(EXAMPLES[::-1], seed=3)}
    assert [e.extra["other_row"].keys() for e in given] == [dict.fromkeys(MATERIAL).keys()] * 6 and len(by_id) == 6
    assert all(e.extra["other_row"]["reference"] != e.reference for e in given)
    _, rows, text = encoded("other_row", given, tokenizer)
    for example, whole, without in zip(given, rows.teacher, rows.without, strict=True):
        own, other = (" ".join(x.split()) for x in (example.reference, example.extra["other_row"]["reference"]))
        assert text(without.prompts[0]) == text(whole).replace(own, other) != text(whole)
    again = with_other_rows(EXAMPLES, seed=3)
    assert [e.extra["other_row"] for e in again] == [e.extra["other_row"] for e in given]
    with pytest.raises(UserError, match="no other row"):
        with_other_rows(EXAMPLES[:1], seed=3)


def test_a_further_prompt_beyond_the_limit_is_not_used(tokenizer):
    given = with_other_rows(EXAMPLES, seed=3)
    _, rows, _ = encoded("other_row", given, tokenizer)
    long = next(i for i in range(6) if len(rows.without[i].prompts[0]) > len(rows.teacher[i]))
    settings, few, _ = encoded("other_row", [given[long]], tokenizer, max_teacher_prompt=len(rows.teacher[long]))
    assert few.without[0].prompts == [] and few.skipped == 0
    batch = make_batch([0], few, settings, 0)
    assert batch.without.weights.tolist() == [[0.0]]  # its place holds the teacher's own prompt
    assert (
        np.asarray(batch.without.tokens)[0, 0][np.asarray(batch.without.mask)[0, 0]].tolist() == few.teacher[0].tolist()
    )


def test_rows_that_are_only_evaluated_have_no_other_row(tokenizer):
    _, rows, _ = encoded("other_row", [dataclasses.replace(e, extra={}) for e in EXAMPLES], tokenizer)
    assert all(one.prompts == [] for one in rows.without)
