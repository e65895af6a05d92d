"""What the roles see: fields, headings, thinking switch, reason-first, and errors."""

import dataclasses

import numpy as np
import pytest

from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import ENGLISH, Role
from rcsd_jax.rubrics.schema import from_records

RUBRIC = from_records(
    ["Essential Criteria: Divides mass by volume.", "Essential Criteria: States 3.", "Optional Criteria: Is short."]
)
EXAMPLE = Example("1", "What is the density?", "Mass over volume is 3.", RUBRIC, "3", "rows:1")


@pytest.fixture(scope="module")
def tokenizer(user_dir):
    return load_tokenizer(user_dir / "model")


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=False)


def test_student_sees_the_question_and_the_request_only(tokenizer):
    text = text_of(tokenizer, contexts.encode_role(tokenizer, EXAMPLE, Role(("question",)), ENGLISH, "solve"))
    assert "What is the density?" in text and "\\boxed{}" in text
    assert "Mass over volume" not in text and "Criteria" not in text


def test_teacher_sees_each_field_under_its_heading_in_order(tokenizer):
    role = Role(("question", "reference", "rubric"))
    text = text_of(tokenizer, contexts.encode_role(tokenizer, EXAMPLE, role, ENGLISH, "solve"))
    parts = [
        "What is the density?",
        "Reference answer:\nMass over volume is 3.",
        "meets (JSON):\n[{",
        "Essential Criteria: Divides mass by volume.",
        ENGLISH["solve"]["request"],
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_both_roles_go_through_the_same_template_and_end_alike(tokenizer):
    student = contexts.encode_role(tokenizer, EXAMPLE, Role(("question",)), ENGLISH, "solve")
    teacher = contexts.encode_role(tokenizer, EXAMPLE, Role(("question", "rubric")), ENGLISH, "solve")
    ending = len(tokenizer("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")["input_ids"])
    np.testing.assert_array_equal(student[-ending:], teacher[-ending:])
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": contexts.user_message(EXAMPLE, Role(("question",)), ENGLISH, "solve")}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert text_of(tokenizer, student) == rendered


def test_thinking_is_a_switch_of_each_role(tokenizer):
    off = contexts.encode_role(tokenizer, EXAMPLE, Role(("question",), thinking=False), ENGLISH, "solve")
    on = contexts.encode_role(tokenizer, EXAMPLE, Role(("question",), thinking=True), ENGLISH, "solve")
    assert text_of(tokenizer, off).endswith("</think>\n\n") and text_of(tokenizer, on).endswith("assistant\n")


def test_rubric_writing_states_the_task_first(tokenizer):
    text = contexts.user_message(EXAMPLE, Role(("question", "reference")), ENGLISH, "write_rubric")
    assert text.startswith("Write a grading rubric") and text.endswith("nothing else.")
    assert text.index("What is the density?") < text.index("Mass over volume")


def test_reason_first_is_a_conversation_cut_at_the_analysis(tokenizer):
    role = Role(("question", "rubric"))
    prompt, transition = contexts.encode_reason_first(tokenizer, EXAMPLE, role, ENGLISH, "solve")
    whole = tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": contexts.user_message(EXAMPLE, role, ENGLISH, "solve", request=ENGLISH["reason"]["request"]),
            },
            {"role": "assistant", "content": "It asks for a quotient."},
            {"role": "user", "content": f"{ENGLISH['reason']['transition']}\n{ENGLISH['solve']['request']}"},
        ],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    start = text_of(tokenizer, prompt)
    # Small template: the generation prompt holds an empty thinking block, which a past turn does not.
    start = start.removesuffix("<think>\n\n</think>\n\n")
    assert start + "It asks for a quotient." + text_of(tokenizer, transition) == whole
    assert "without citing" in text_of(tokenizer, transition)


def test_missing_privileged_field_names_row_and_field(tokenizer):
    bare = dataclasses.replace(EXAMPLE, rubric=None)
    with pytest.raises(UserError, match=r"rows:1: field 'rubric'.*take 'rubric' out"):
        contexts.encode_role(tokenizer, bare, Role(("question", "rubric")), ENGLISH, "solve")


def test_unknown_field_and_missing_question_are_errors():
    with pytest.raises(UserError, match="unknown field"):
        Role(("question", "hint"))
    with pytest.raises(UserError, match="must see the question"):
        Role(("rubric",))


def test_pad_left_never_cuts():
    tokens, mask = contexts.pad_left([np.array([5, 6]), np.array([7])], 3, pad_id=9)
    np.testing.assert_array_equal(tokens, [[9, 5, 6], [9, 9, 7]])
    np.testing.assert_array_equal(mask, [[False, True, True], [False, False, True]])
    with pytest.raises(ValueError, match="never cut"):
        contexts.pad_left([np.arange(4)], 3, pad_id=0)


def test_a_template_that_fails_is_one_error(tokenizer):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(UserError, match="turns must alternate.*chat_template.jinja"):
        contexts.encode_chat(strict, [{"role": "user", "content": "?"}], thinking=False)


def test_a_raw_transition_follows_the_analysis_s_end_without_a_turn(tokenizer):
    role = Role(("question", "rubric"))
    turn, _ = contexts.encode_reason_first(tokenizer, EXAMPLE, role, ENGLISH, "solve")
    prompt, transition = contexts.encode_reason_first(tokenizer, EXAMPLE, role, ENGLISH, "solve", transition="raw")
    np.testing.assert_array_equal(prompt, turn)
    words = f"{ENGLISH['reason']['transition']}\n{ENGLISH['solve']['request']}"
    assert transition[0] == tokenizer.eos_token_id
    assert text_of(tokenizer, transition) == f"{tokenizer.eos_token}\n\n\n{words}\n"
