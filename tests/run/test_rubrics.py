"""Rubrics between the stages: resampling, fallback, dropping, the cache, and continuing after a kill."""

import numpy as np
import pytest

from configs import stage1
from rcsd_jax.data.examples import Example
from rcsd_jax.roles.thinking import ThinkingBlock
from rcsd_jax.rubrics.cache import RubricCache
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.variants import generic_rubric
from rcsd_jax.run.rubrics import _text, asked_otherwise, write_rubrics
from rcsd_jax.sampling.sampler import Completion
from rcsd_jax.settings import keys

GOOD = '["Essential Criteria: States {0}.", "Important Criteria: Shows {0}.", "Optional Criteria: Is short."]'
EXAMPLES = [Example(str(i), f"Question {i}?", None, None, None, f"rows:{i}") for i in range(6)]
PROMPTS = [np.array([i, i + 1], np.int32) for i in range(6)]


class Writer:
    """Writes a good rubric, except that question 1 needs three tries and question 4 never gets one."""

    def __init__(self, stop_after=None):
        self.batches, self.seeds, self.stop_after = 0, [], stop_after

    def __call__(self, prompts, seeds):
        self.seeds += list(seeds)
        for start in range(0, len(prompts), 2):
            if self.batches == self.stop_after:
                raise KeyboardInterrupt
            self.batches += 1
            chosen = list(range(start, min(start + 2, len(prompts))))
            yield chosen, [Completion(np.array([prompts[i][0], seeds[i] % 2**31]), False) for i in chosen]


def decode(tokens):
    question = int(tokens[0])
    if question == 4:
        return "I will not write one."
    if question == 1 and tokens[1] not in decode.third:
        return "[unfinished"
    return GOOD.format(question)


def write(path, writer, **changes):
    settings = dict(
        write=writer, decode=decode, cache=RubricCache(path), checkpoint="abc", settings={"temperature": 1.0}, resample=2,
        fallback=generic_rubric(), min_criteria=3, max_criteria=25, seed=0,
    )  # fmt: skip
    return write_rubrics(EXAMPLES, PROMPTS, **settings | changes)


@pytest.fixture(autouse=True)
def third_try(tmp_path):
    """Finds out which seed question 1 has on its third try."""
    decode.third = set()
    writer = Writer()
    write(tmp_path / "probe.jsonl", writer)
    decode.third = {writer.seeds[-2] % 2**31}


def test_resampling_then_fallback_and_counts(tmp_path):
    examples, counts = write(tmp_path / "rubrics.jsonl", Writer())
    assert [e.id for e in examples] == [e.id for e in EXAMPLES]
    assert examples[1].rubric.criteria[0].description == "States 1."
    assert examples[4].rubric == generic_rubric()
    assert (counts["strict"], counts["rejected"], counts["fallback"], counts["cached"]) == (5, 5, 1, 0)


def test_dropping(tmp_path):
    examples, counts = write(tmp_path / "rubrics.jsonl", Writer(), fallback=None)
    assert [e.id for e in examples] == ["0", "1", "2", "3", "5"] and counts["dropped"] == 1


def test_a_kill_loses_nothing_and_changes_nothing(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(path, Writer(stop_after=2))
    with path.open("ab") as file:
        file.write(b'{"key": "torn')  # what a kill in the middle of a line leaves
    rest = Writer()
    examples, counts = write(path, rest)
    assert counts["cached"] == 4 and rest.batches == 1 + 2  # the last two questions, then two tries for 1 and 4
    again, _ = write(tmp_path / "undisturbed.jsonl", Writer())
    assert examples == again


def test_another_checkpoint_or_setting_is_written_anew(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    write(path, Writer())
    for changes in (dict(checkpoint="other"), dict(settings={"temperature": 0.5}), dict(seed=1)):
        _, counts = write(path, Writer(), **changes)
        assert counts["cached"] == 0
    _, counts = write(path, Writer())
    assert counts["cached"] == 6 + 2 + 2  # every try, from the cache


def test_a_rubric_in_a_text_that_breaks_off_is_used_only_where_salvage_is_on(tmp_path):
    broken = '["Essential Criteria: A.", "Important Criteria: B.", "Optional Criteria: C.", "Optio'
    cut_off = lambda tokens: broken if tokens[0] == 2 else GOOD.format(int(tokens[0]))
    examples, counts = write(tmp_path / "on.jsonl", Writer(), decode=cut_off)
    assert counts["salvaged"] == 1 and examples[2].rubric.criteria[0].description == "A."
    examples, counts = write(tmp_path / "off.jsonl", Writer(), decode=cut_off, salvage=False, fallback=None)
    assert (
        [e.id for e in examples] == ["0", "1", "3", "4", "5"] and counts["rejected"] == 3 and "salvaged" not in counts
    )


def test_a_writer_that_is_asked_with_other_fields_than_it_learned_from_is_told(tmp_path):
    adapter = str(tmp_path / "adapter")
    assert asked_otherwise(adapter, ("question",)) is None
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert asked_otherwise(adapter, ("question",)) is None
    (tmp_path / "config.json").write_text(keys.to_json(stage1.get_config("release")))
    assert asked_otherwise(adapter, ("question", "reference")) is None
    assert "learned to write from question, reference, and is asked with question;" in asked_otherwise(
        adapter, ("question",)
    )


def test_a_rubric_in_a_thought_is_none():
    """Tokens 8 and 9 open and end a thinking block; the decoded text does not show them."""
    rubric = lambda tokens: " ".join(GOOD.format(x) for x in tokens if x < 8)
    states = lambda block, tokens: parse(_text(rubric, block, np.array(tokens)))
    block = ThinkingBlock(begin=(8,), end=(9,), opened=False)
    assert states(block, [8, 1, 9, 2]).rubric.criteria[0].description == "States 2."
    assert states(block, [8, 1]).code == "only_thinking"
    assert states(ThinkingBlock((8,), (9,), opened=True), [1]).code == "only_thinking"
    assert states(block, [1]).status == states(None, [8, 1]).status == "strict"
