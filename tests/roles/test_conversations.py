"""Conversations as both roles see them, with the chat templates of ten families."""

import importlib.resources

import numpy as np
import pytest

from rcsd_jax.data.examples import Example, Turn
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods.networks import Networks
from rcsd_jax.methods.rollout import RolloutOptions, assemble, draw
from rcsd_jax.roles import contexts, encode
from rcsd_jax.roles.contexts import ENGLISH, Role
from rcsd_jax.roles.encode import Encoding, Longest
from rcsd_jax.roles.limits import Bounds, may_exceed
from rcsd_jax.rubrics.schema import from_records
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.rows import Rows
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.settings import keys
from tests.chat_templates import TEMPLATES, tokenizer_with
from tests.settings_for_tests import settings_of

RUBRIC = from_records(["Essential Criteria: Says 6.", "Important Criteria: Adds.", "Pitfall Criteria: Says 5."])
TURNS = {"system": "Be brief.", "user": "1 + 1?", "assistant": "<think>\nTwo.\n</think>\n\n2"}
SHAPES = {
    "one turn": (),
    "two turns": ("user", "assistant"),
    "three turns": ("user", "assistant", "user", "assistant"),
    "a system turn": ("system",),
    "a system turn and two turns": ("system", "user", "assistant"),
}
REFUSES_SYSTEM = (
    "gemma"  # Gemma 3's template has the same turns, and puts a system turn into the first user turn itself
)
ROLES = {place: Role(("question", "reference", "rubric"), shown_in=place) for place in contexts.PLACES}


def example(shape, question="2 * 3?"):
    history = tuple(Turn(role, f"{TURNS[role]} ({i})") for i, role in enumerate(SHAPES[shape]))
    return Example(shape, question, "It is 6.", RUBRIC, "6", f"rows:{shape}", history=history)


def encoding(place="user", task="solve", thinking=False, **more):
    student, teacher = Role(("question",), thinking), Role(ROLES[place].fields, thinking, place)
    return Encoding(student, teacher, ENGLISH, task, learns_references=True, **more)


def rendered(template, turns, **settings):
    """The turns as the template itself renders them, or Gemma 3's template for Gemma's."""
    tokenizer = tokenizer_with("gemma3" if template == REFUSES_SYSTEM else template)
    return tokenizer.apply_chat_template(turns, **settings)


CASES = [(t, s, p) for t in TEMPLATES for s in SHAPES for p in contexts.PLACES]


# --- the templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"smollm2", "smollm3", "olmo2", "olmo3", "granite"}))
def test_the_short_templates_render_as_the_whole_ones(name):
    file = importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip("this version of TRL does not keep it")
    tokenizer, whole = tokenizer_with(name), file.read_text(encoding="utf-8")
    for roles in SHAPES.values():
        turns = [{"role": role, "content": TURNS[role]} for role in (*roles, "user")]
        for answered in (turns, [*turns, {"role": "assistant", "content": TURNS["assistant"]}]):
            if name == REFUSES_SYSTEM and "system" in roles:
                continue
            for thinking in (False, True):
                settings = dict(tokenize=False, add_generation_prompt=answered is turns, enable_thinking=thinking)
                ours = tokenizer.apply_chat_template(answered, **settings)
                assert ours == tokenizer.apply_chat_template(answered, chat_template=whole, **settings)


# --- both roles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template, shape, place", CASES)
def test_each_role_sees_the_conversation_and_the_completion_is_its_next_turn(template, shape, place):
    tokenizer, one = tokenizer_with(template), example(shape)
    texts = {
        "student": contexts.role_text(tokenizer, one, Role(("question",)), ENGLISH, "solve"),
        "teacher": contexts.role_text(tokenizer, one, ROLES[place], ENGLISH, "solve"),
    }
    for name, text in texts.items():
        places = [text.index(turn.content.removeprefix("<think>\nTwo.\n</think>\n\n")) for turn in one.history]
        assert [*places, text.rindex("2 * 3?")] == sorted([*places, text.rindex("2 * 3?")]), name
        # The answer as the template writes it into the conversation follows the prompt directly.
        role = Role(("question",)) if name == "student" else ROLES[place]
        answer = {"role": "assistant", "content": "It is six."}
        turns = [*contexts.messages(one, role, ENGLISH, "solve"), answer]
        whole = rendered(template, turns, tokenize=False, enable_thinking=role.thinking)
        assert whole.startswith(text + "It is six.")
    shown = ("Reference answer:\nIt is 6.", '"description": "Pitfall Criteria: Says 5."')
    assert all(text in texts["teacher"] and text not in texts["student"] for text in shown)
    before = texts["teacher"].index(shown[0]) < texts["teacher"].rindex("2 * 3?")
    assert before == (place == "system")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("place", contexts.PLACES)
def test_both_roles_score_the_same_tokens_at_the_same_offsets(template, place):
    tokenizer = tokenizer_with(template)
    settings = keys.stage()
    settings.sampling.update(source="reference", max_new_tokens=12)
    settings.data.pad_to = 16
    config = settings_of(settings)
    asked = encoding(place)
    rows = encode.encode_rows([example(shape) for shape in SHAPES], tokenizer, asked)
    data = encode.collate(rows, np.zeros(0, np.int32), encode.longest_of(rows))
    batch = make_batch(list(range(len(rows))), data, config, tokenizer.pad_token_id)
    options = RolloutOptions(SamplingConfig(max_new_tokens=12), source="reference")
    completions = assemble(batch, draw(Networks(None, None), batch, None, options), None, options)
    expected = [*tokenizer("It is 6.")["input_ids"], tokenizer.eos_token_id]
    for i, shape in enumerate(SHAPES):
        scored = np.asarray(completions.samples.tokens[i])[np.asarray(completions.completion_mask[i])]
        np.testing.assert_array_equal(scored, expected)
        for role, tokens, mask in (
            (asked.student, completions.student_tokens[i], completions.student_mask[i]),
            (asked.teacher, completions.teacher_tokens[i], completions.teacher_mask[i]),
        ):
            mask = np.asarray(mask)
            assert mask[-1] and (np.diff(mask.astype(int)) >= 0).all()  # the completion follows the prompt's last token
            turns = contexts.messages(example(shape), role, ENGLISH, "solve")
            prompt = rendered(template, turns, add_generation_prompt=True, tokenize=True, enable_thinking=False)
            np.testing.assert_array_equal(np.asarray(tokens)[mask], getattr(prompt, "input_ids", prompt))
            assert list(np.asarray(tokens)[mask]).count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_follows_an_analysis_is_the_same_for_every_conversation(template):
    tokenizer = tokenizer_with(template)
    for place in contexts.PLACES:
        found = set()
        for shape in SHAPES:
            prompt, transition = contexts.encode_reason_first(tokenizer, example(shape), ROLES[place], ENGLISH, "solve")
            assert "2 * 3?" in tokenizer.decode(prompt) and ENGLISH["reason"]["request"] in tokenizer.decode(prompt)
            found.add(tuple(transition))
        assert len(found) == 1


@pytest.mark.parametrize("template", ["smollm3", "granite"])
def test_a_template_that_writes_the_date_writes_the_same_every_day(template):
    text = contexts.role_text(tokenizer_with(template), example("one turn"), Role(("question",)), ENGLISH, "solve")
    assert {"smollm3": "Today Date: 01 January 2025", "granite": "Today's Date: January 01, 2025."}[template] in text


def test_a_system_turn_of_the_row_stands_before_the_privileged_fields():
    turns = contexts.messages(example("a system turn and two turns"), ROLES["system"], ENGLISH, "solve")
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"].startswith("Be brief. (0)\n\nReference answer:\nIt is 6.\n")
    assert turns[-1]["content"] == f"2 * 3?\n{ENGLISH['solve']['request']}"
    student = contexts.messages(example("two turns"), Role(("question",), shown_in="system"), ENGLISH, "solve")
    assert [turn["role"] for turn in student] == ["user", "assistant", "user"]  # no other field, no system turn


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_rubric_is_written_about_the_whole_conversation(template):
    """In one user turn, so that its system turn does not command the writer and no template refuses it."""
    turns = contexts.messages(
        example("a system turn and two turns"), Role(("question", "reference")), ENGLISH, "write_rubric"
    )
    assert [turn["role"] for turn in turns] == ["user"]
    parts = (
        "Write a grading rubric", "[system]\nBe brief. (0)", "[user]\n1 + 1? (1)", "[assistant]\n<think>", "[user]\n2 * 3?",
        "Reference answer:\nIt is 6.", "JSON array of criteria",
    )  # fmt: skip
    places = [turns[0]["content"].index(part) for part in parts]
    assert places == sorted(places)
    contexts.chat_text(tokenizer_with(template), turns, thinking=False)


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_template_that_refuses_other_turns_is_one_line():
    odd = Example("x", "And?", None, None, None, "rows:x", history=(Turn("user", "So?"),))
    with pytest.raises(UserError, match="rows:x: .*fails on turns of user, user .*must alternate") as caught:
        contexts.role_text(tokenizer_with("gemma"), odd, Role(("question",)), ENGLISH, "solve")
    assert "\n" not in str(caught.value)
    odd = Example("y", "And?", None, None, None, "rows:y", history=(Turn("system", "Be brief."), Turn("user", "So?")))
    with pytest.raises(UserError, match="rows:y: .*fails on turns of user, user .*must alternate"):
        contexts.role_text(tokenizer_with("gemma"), odd, Role(("question",)), ENGLISH, "solve")


def test_a_late_row_that_the_template_refuses_is_found_at_the_start(monkeypatch):
    monkeypatch.setattr("rcsd_jax.run.rows.AT_START", 2)
    settings = keys.stage()
    settings.train.update(steps=1, batch_size=1)
    examples = [Example(str(i), f"{i}?", None, RUBRIC, None, f"rows:{i}") for i in range(40)]
    assert Rows(examples, tokenizer_with("gemma"), settings_of(settings)).start(positions=10_000)
    examples[33] = Example("33", "Why?", None, RUBRIC, None, "rows:33", history=(Turn("assistant", "Hello."),))
    with pytest.raises(UserError, match="rows:33: .*fails on turns of assistant, user"):
        Rows(examples, tokenizer_with("gemma"), settings_of(settings)).start(positions=10_000)


# --- templates without system turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template, shape, place, said",
    [
        ("gemma", "a system turn", "user", True),
        ("gemma", "two turns", "system", True),
        ("gemma", "two turns", "user", False),
        ("gemma3", "a system turn", "system", False),
        ("qwen3", "a system turn", "system", False),
    ],
)
def test_a_run_says_where_system_turns_go(template, shape, place, said):
    lines = []
    encode.say_where_system_turns_go([example(shape)], tokenizer_with(template), encoding(place), lines.append)
    line = "the chat template refuses system turns; their text stands at the beginning of the user's next turn"
    assert lines == ([line] if said else [])


def test_a_writer_of_rubrics_sees_no_system_turn_to_speak_of():
    lines = []
    about = encoding("user", task="write_rubric")
    encode.say_where_system_turns_go([example("a system turn")], tokenizer_with("gemma"), about, lines.append)
    assert lines == []


def test_a_system_turn_in_the_middle_goes_to_the_users_next_turn():
    turns = [("user", "1?"), ("assistant", "1"), ("system", "Now be brief."), ("user", "2?")]
    found = contexts.without_system_turns([{"role": role, "content": text} for role, text in turns])
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("user", "1?"), ("assistant", "1"), ("user", "Now be brief.\n\n2?")
    ]  # fmt: skip


# --- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["qwen3", "gemma3"])
def test_conversations_that_certainly_fit_do(template):
    tokenizer, asked = tokenizer_with(template), encoding("system")
    examples = [example(shape, "2 * 3? " * n) for shape in SHAPES for n in (1, 20)]
    lengths = [len(row.teacher) for row in encode.encode_rows(examples, tokenizer, asked)]
    for limit in range(min(lengths) - 1, max(lengths) + 60, 41):
        doubtful = may_exceed(examples, Bounds(None, limit, None), tokenizer, asked)
        assert {i for i, length in enumerate(lengths) if length > limit} <= set(doubtful)
    assert may_exceed(examples, Bounds(None, 2 * max(lengths), None), tokenizer, asked) == []


def test_rows_tell_conversations_apart():
    settings = keys.stage()
    settings.train.update(steps=1, batch_size=1)
    digests = set()
    for shape in ("one turn", "two turns", "a system turn"):
        rows = Rows([example(shape)], tokenizer_with("qwen3"), settings_of(settings))
        assert rows.start(positions=10_000)
        digests.add(rows.digest)
    assert len(digests) == 3 and rows.longest() == Longest(len(rows.first.student[0]), len(rows.first.teacher[0]), 0)
