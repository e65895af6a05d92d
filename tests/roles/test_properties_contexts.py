"""Properties of judges' answers and of contexts, whatever a text holds; see `test_properties.py`."""

import json

import numpy as np
import pytest
from hypothesis import strategies as st

from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example
from rcsd_jax.judge import answers as judged
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import ENGLISH, FIELDS, Role
from rcsd_jax.rubrics.schema import from_records
from tests.test_properties import DEEP, DESCRIPTIONS, TEXT, VALUES, holds, inputs, made_of, rubric_of

# --- judges' answers ---------------------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from(("met", "present")), min_size=1, max_size=4)
JUDGED_PIECES = (
    '{"criterion": 1, "met": true}', '{"criterion": 2, "present": false, "reason": ', '{"verdicts": [', "]", "}", "{", "[",
    '"met": ', "true", "false", "yes", "1", ",", ",}", '"', "\\", "<think>", "</think>", "```", "[{", '{"', "null",
)  # fmt: skip


@inputs(200, 7_000)
def test_no_answer_of_a_judge_raises(count):
    def check(text, names):
        found = judged.read(text, names)
        if isinstance(found, judged.Unreadable):
            assert found.problem
        else:
            assert len(found) == len(names) and all(isinstance(verdict.decision, bool) for verdict in found)

    reasons = st.one_of(DEEP, VALUES.map(json.dumps)).map('{{"criterion": 1, "met": true, "reason": {}}}'.format)
    holds(check, count, st.one_of(made_of(*JUDGED_PIECES), reasons), NAMES)


@inputs(100, 3_000)
def test_decisions_are_found_in_any_prose(count):
    def check(names, decisions, reason, before, after, random):
        verdicts = [{"criterion": i + 1, name: decisions[i], "reason": reason} for i, name in enumerate(names)]
        random.shuffle(verdicts)
        text = f"{before}\n```json\n{json.dumps({'verdicts': verdicts})}\n```{after}"
        assert [verdict.decision for verdict in judged.read(text, names)] == decisions[: len(names)]

    prose = st.text(st.characters(exclude_characters="[{<"), max_size=30)
    plain = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<\\"), max_size=20)
    decisions = st.lists(st.booleans(), min_size=4, max_size=4)
    holds(check, count, NAMES, decisions, plain, prose, prose, st.randoms())


# --- contexts ----------------------------------------------------------------------------------------------------------

SHOWN = made_of(
    "{{ x }}", "{% if %}", "<|im_end|>", "<think>", "\n", "  ", "␂ANALYSIS␃", "\x00", "é", text=TEXT
).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer(user_dir):
    return load_tokenizer(user_dir / "model")


@st.composite
def examples(draw):
    texts = {name: draw(SHOWN) for name in FIELDS if name != "rubric"}
    rubric = rubric_of(draw(st.lists(DESCRIPTIONS.map("Essential Criteria: x{}".format), min_size=1, max_size=3)))
    attempts = {name: texts[name] for name in contexts.ATTEMPT_FIELDS}
    known = texts["question"], texts["reference"], rubric, texts["answer"]
    return Example("1", *known, "rows:1", attempts, solution=texts["solution"])


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


FIELD_LISTS = st.permutations(sorted(FIELDS)).flatmap(
    lambda names: st.integers(1, len(names)).map(lambda n: ("question", *(x for x in names[:n] if x != "question")))
)
TASKS = st.sampled_from(("solve", "write_rubric"))
STYLES = st.sampled_from(("objects", "strings"))


@inputs(100, 3_000)
def test_a_context_holds_each_shown_field_whole_and_in_order(count, tokenizer):
    def check(example, fields, task, style, thinking):
        prompts = ENGLISH | {"rubric_style": style}
        role = Role(fields, thinking)
        tokens = contexts.encode_role(tokenizer, example, role, prompts, task)
        text, at = text_of(tokenizer, tokens), 0
        for name in fields:
            content = FIELDS[name](example, style)
            at = text.index(content, at) + len(content)
        assert text.index(prompts[task]["request"], at)
        np.testing.assert_array_equal(tokens, contexts.encode_role(tokenizer, example, role, prompts, task))

    holds(check, count, examples(), FIELD_LISTS, TASKS, STYLES, st.booleans())


@inputs(50, 1_000)
def test_what_follows_an_analysis_is_the_same_for_every_row(count, tokenizer):
    rubric = from_records(["Essential: a"], min_criteria=1)
    plain = Example("0", "Why?", "So.", rubric, "b", "rows:0", solution="So it is.")

    def check(example, fields, task):
        role = Role(tuple(name for name in fields if name not in contexts.ATTEMPT_FIELDS))
        prompt, transition = contexts.encode_reason_first(tokenizer, example, role, ENGLISH, task)
        for name in role.fields:
            assert FIELDS[name](example, "objects") in text_of(tokenizer, prompt)
        np.testing.assert_array_equal(
            transition, contexts.encode_reason_first(tokenizer, plain, role, ENGLISH, task)[1]
        )

    holds(check, count, examples(), FIELD_LISTS, TASKS)


@inputs(50, 1_000)
def test_padding_never_cuts(count):
    def check(rows, length):
        rows = [np.asarray(row, np.int32) for row in rows]
        for pad in (contexts.pad_left, contexts.pad_right):
            if max(map(len, rows)) > length:
                with pytest.raises(ValueError, match="never cut"):
                    pad(rows, length, 0)
                continue
            tokens, mask = pad(rows, length, 0)
            for row, padded, kept in zip(rows, tokens, mask, strict=True):
                np.testing.assert_array_equal(padded[kept], row)
                assert not padded[~kept].any()

    holds(check, count, st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=4), st.integers(0, 9))
