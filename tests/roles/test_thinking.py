"""The thinking block by token ids: of published templates, with and without the switch, and the answers that follow it."""

import dataclasses

import numpy as np
import pytest

from configs import stage2
from rcsd_jax import world
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts
from rcsd_jax.roles.encode import Encoding, encode_rows, transition_of
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.thinking import ThinkingBlock, block_of, ids_of
from rcsd_jax.run.recipe import rollout_options
from tests.chat_templates import TEMPLATES, tokenizer_with
from tests.settings_for_tests import settings_of

MARKS = settings_of(stage2.get_config("ground_truth")).model
EXAMPLE = Example("1", "2 * 3?", "It is 6.", None, None, "rows:1")


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening(tokenizer, template):
    """The tokenizer with a template that always opens a thinking block, as that of DeepSeek-R1 does."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = TEMPLATES[template] + "{%- if add_generation_prompt %}{{ '<think>\n' }}{%- endif %}"
    return other


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_block_is_there_unless_the_prompt_ends_it(template):
    tokenizer = tokenizer_with(template)
    thinking, not_thinking = (block_of(tokenizer, MARKS, thinking=switch) for switch in (True, False))
    assert thinking == ThinkingBlock(ids(tokenizer, "<think>"), ids(tokenizer, "</think>"), opened=False)
    assert not_thinking == (
        None if template in ("qwen3", "smollm3") else thinking
    )  # the others' templates have no switch
    always = block_of(opening(tokenizer, template), MARKS, thinking=True)
    assert always == dataclasses.replace(thinking, opened=True)


def test_marks_are_added_tokens_or_nothing():
    tokenizer = tokenizer_with("qwen3")
    assert len(ids_of(tokenizer, "</think>")) == 1
    whole = ids_of(tokenizer, "<|im_end|>final<|im_start|>")
    assert whole == ids(tokenizer, "<|im_end|>final<|im_start|>") and len(whole) == 2 + len("final")
    for text in ("", "</thought>", "<think>done", "done</think>"):  # what other text may be merged with
        assert ids_of(tokenizer, text) == ()
    other = dataclasses.replace(MARKS, thought_end="</thought>")
    assert block_of(tokenizer, other, thinking=True) is None
    words = load_tokenizer(
        world.base_directory()
    )  # which reads any word that it does not know as <unk>, an added token
    assert ids(words, "</think>") == ids(words, "<unk>") and ids_of(words, "</think>") == ()
    assert ids_of(words, "<unk>") == ids(words, "<unk>")  # unless that is the mark


def test_the_answer_follows_the_first_end():
    block = ThinkingBlock(begin=(8,), end=(9, 4), opened=False)
    told = {
        (8, 5, 9, 4, 7, 9, 4, 6): [7, 9, 4, 6],
        (5, 9, 4, 7): [7],  # the prompt may have opened it
        (8, 5, 9, 4): [],
        (5, 9, 7): [5, 9, 7],  # never opened
        (): [],
        (8, 5, 9): None,
        (5, 8): None,
    }
    for tokens, answer in told.items():
        found = block.answer(np.array(tokens, np.int32))
        assert (found if found is None else found.tolist()) == answer
    opened = dataclasses.replace(block, opened=True)
    assert opened.answer(np.array([5, 7])) is None and opened.text(np.array([5, 7]), str) == ""
    assert opened.text(np.array([5, 9, 4, 7]), str) == "[7]"


def encoding_of(**switches):
    student, teacher = (contexts.Role(("question",), switches[name]) for name in ("student", "teacher"))
    texts = contexts.ENGLISH
    return Encoding(student, teacher, texts, "solve", reasons=True, reason_thinking=switches["analysis"])


def test_each_prompt_has_its_own_switch():
    """Student, analysis and what the teacher scores: an empty block stands at the end of those that do not think."""
    tokenizer = tokenizer_with("qwen3")
    empty = ids(tokenizer, "<think>\n\n</think>\n\n")
    ends = lambda tokens: tuple(tokens[-len(empty) :]) == empty
    for which in ("student", "teacher", "analysis"):
        encoding = encoding_of(**{name: name != which for name in ("student", "teacher", "analysis")})
        row = encode_rows([EXAMPLE], tokenizer, encoding)[0]
        found = dict(student=row.student, analysis=row.teacher, teacher=transition_of(EXAMPLE, tokenizer, encoding))
        assert {name for name, tokens in found.items() if ends(tokens)} == {which}
    evaluated = encoding_of(student=False, teacher=True, analysis=False).with_thinking(True)
    assert evaluated.student.thinking and evaluated.teacher.thinking and not evaluated.reason_thinking
    assert evaluated.with_thinking(None) is evaluated


def options_of(template, **changes):
    config = stage2.get_config("ground_truth")
    config.update(changes)
    return rollout_options(settings_of(config), Model(None, template and tokenizer_with(template), (0, 1), 0, None))


def test_the_loss_is_given_the_end_of_the_writer_s_block():
    end = ids(tokenizer_with("qwen3"), "</think>")
    assert options_of("qwen3", loss=dict(thinking="answer")).thought_end == end
    assert options_of("qwen3", student=dict(thinking=False)).thought_end == ()
    teacher_writes = dict(student=dict(thinking=False), sampling=dict(source="teacher"))
    assert options_of("qwen3", **teacher_writes).thought_end == end
    with pytest.raises(UserError, match="already ends the thinking block.*student.thinking=True") as error:
        options_of("qwen3", student=dict(thinking=False), loss=dict(thinking="answer"))
    assert error.value.field == "loss.thinking"
    assert options_of("qwen3", sampling=dict(source="reference")).thought_end == ()
    assert options_of("qwen3", sampling=dict(source="reference"), loss=dict(thinking="answer")).thought_end == end
    assert (
        options_of(None).thought_end == () != options_of(None, loss=dict(thinking="answer")).thought_end
    )  # the planner
    unknown = dict(model=dict(thought_end="</thought>"))
    assert options_of("qwen2_5", **unknown).thought_end == ()
    with pytest.raises(UserError, match="no token '</thought>'.*model.thought_end"):
        options_of("qwen2_5", loss=dict(thinking="thought"), **unknown)
