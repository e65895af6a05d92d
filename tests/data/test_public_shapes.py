"""Rows in the shapes of published data sets, in our own words, read without a flag; and what is left out, and counted."""

import json

import pytest

from rcsd_jax.data.conversations import Unusable, is_conversation, split, turns_of
from rcsd_jax.data.examples import Turn, asked_text
from rcsd_jax.data.jsonl import read_jsonl
from rcsd_jax.host.errors import UserError

POINTS = [
    {"criterion": "Asks how long.", "points": 10, "tags": ["axis:context"]},
    {"criterion": "Names a doctor.", "points": 3, "tags": []},
    {"criterion": "Frightens.", "points": -8, "tags": []},
]
RAR = [
    {"title": "Value", "description": "Essential Criteria: States 4 V.", "weight": 5},
    {"title": "Law", "description": "Important Criteria: Names Ohm's law.", "weight": 4},
    {"title": "Unit", "description": "Pitfall Criteria: Omits the unit.", "weight": -1},
]
ITEMS = "1. The response has five lines. [Hard Rule]\n2. The response is clear. [Principle]\n3. The response rhymes. [Hard Rule]"
USER, MORE, ANSWER = (
    {"role": "user", "content": "Why?"},
    {"role": "user", "content": "How?"},
    {"role": "assistant", "content": "So."},
)

# Name -> row; question, history, reference, answer, weights of the rubric; what is told about the columns.
PUBLIC = {
    "RaR-Science and -Medicine": (
        {"question": "Why?", "reference_answer": "So.", "question_source": "s", "rubric": RAR, "rubric_list": ["Essential Criteria: States 4 V."] * 3, "rubric_count": 3},
        ("Why?", (), "So.", None, [5, 4, -1]),
        "question from question, reference from reference_answer, rubric from rubric (title, description, weight)",
    ),
    "RubricHub RuRL": (
        {"prompt": [USER], "data_source": "d", "ability": "a", "reward_model": {"ground_truth": "", "rubrics": POINTS, "style": "rubric"}, "extra_info": {"index": 1}},
        ("Why?", (), None, None, [10, 3, -8]),
        "question from prompt (messages), rubric from reward_model.rubrics (criterion, points)",
    ),
    "RubricHub RuRL, with the mirrored column": (
        {"prompt": [USER], "Rubrics": POINTS, "reward_model": {"ground_truth": "So.", "rubrics": POINTS}},
        ("Why?", (), "So.", "So.", [10, 3, -8]),
        "question from prompt (messages), reference from reward_model.ground_truth, rubric from Rubrics (criterion, points), "
        "answer from reward_model.ground_truth",
    ),
    "RubricHub RuFT": (
        {"source": "s", "query": "Why?", "answer": "So.", "sample_id": 3, "rubrics": POINTS, "rubric_score": 1.0, "rubric_judge_details": []},
        ("Why?", (), "So.", "So.", [10, 3, -8]),
        "question from query, reference from answer, rubric from rubrics (criterion, points), answer from answer",
    ),
    "HealthBench": (
        {"prompt": [USER, ANSWER, MORE], "prompt_id": "u", "rubrics": POINTS, "example_tags": ["t"], "ideal_completions_data": {"ideal_completion": "Thus.", "ideal_completions_group": "g"}},
        ("How?", (Turn("user", "Why?"), Turn("assistant", "So.")), "Thus.", None, [10, 3, -8]),
        "question from prompt (messages), reference from ideal_completions_data.ideal_completion, rubric from rubrics (criterion, points)",
    ),
    "ResearchQA": (
        {"id": "r1", "general_domain": "g", "field": "f", "query": "Why?", "date": "d", "rubric": [{"rubric_item": f"Does it say {i}?", "type": "Impact"} for i in range(3)]},
        ("Why?", (), None, None, [7, 7, 7]),
        "question from query, rubric from rubric (rubric_item)",
    ),
    "OpenRubrics": (
        {"instruction": "Why?", "rubric": ITEMS, "winner": "A", "response_a": "So.", "response_b": "No."},
        ("Why?", (), None, None, [10, 7, 10]),
        "question from instruction, rubric from rubric (text)",
    ),
    "natural_reasoning": (
        {"question": "Why?", "reference_answer": "So.", "responses": [{"response_model": "m", "response": "r"}]},
        ("Why?", (), "So.", None, None),
        "question from question, reference from reference_answer",
    ),
    "OpenThoughts": (
        {"system": "Think.", "conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": "So."}]},
        ("Why?", (Turn("system", "Think."),), "So.", None, None),
        "question from system + conversations (from, value), reference from conversations (last turn)",
    ),
    "UltraFeedback": (
        {"source": "s", "instruction": "Why?", "models": ["m"], "completions": [{"model": "m", "response": "r", "overall_score": 7}], "correct_answers": ["None"]},
        ("Why?", (), None, None, None),
        "question from instruction",
    ),
    "UltraFeedback, binarized": (
        {"prompt": "Why?", "prompt_id": "u", "chosen": [USER, ANSWER], "rejected": [USER, MORE], "messages": [USER, ANSWER], "score_chosen": 8.0},
        ("Why?", (), "So.", None, None),
        "question from prompt, reference from messages (last turn)",
    ),
    "ShareGPT": (
        {"id": "s_0", "conversations": [{"from": "system", "value": " "}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}, {"from": "human", "value": "How?"}, {"from": "gpt", "value": "Thus."}]},
        ("How?", (Turn("user", "Why?"), Turn("assistant", "So.")), "Thus.", None, None),
        "question from conversations (from, value), reference from conversations (last turn)",
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "text": "Below is …"},
        ("Add.\n\n2 and 2", (), "4", None, None),
        "question from instruction + input, reference from output",
    ),
    "Dolly": (
        {"instruction": "Sum up.", "context": "A tale.", "response": "Short.", "category": "c"},
        ("Sum up.\n\nA tale.", (), "Short.", None, None),
        "question from instruction + context, reference from response",
    ),
    "LLaMA-Factory's Alpaca": (
        {"system": "Be kind.", "history": [["Why?", "So."]], "instruction": "How?", "output": "Thus."},
        ("How?", (Turn("system", "Be kind."), Turn("user", "Why?"), Turn("assistant", "So.")), "Thus.", None, None),
        "question from system + history + instruction, reference from output",
    ),
    "OpenOrca": (
        {"system_prompt": "Be kind.", "question": "Why?", "response": "So."},
        ("Why?", (Turn("system", "Be kind."),), "So.", None, None),
        "question from system_prompt + question, reference from response",
    ),
    "verl's GSM8K": (
        {"data_source": "d", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": ["72", 72.0]}, "extra_info": {"answer": "long"}},
        ("Why?", (), "72", "72", None),
        "question from prompt (messages), reference from reward_model.ground_truth (list), answer from reward_model.ground_truth (list)",
    ),
    "TRL's prompt and completion": (
        {"prompt": [USER], "completion": [ANSWER]},
        ("Why?", (), "So.", None, None),
        "question from prompt (messages), reference from completion (last turn)",
    ),
    "messages as JSON": (
        {"messages": json.dumps([USER, ANSWER, MORE])},
        ("How?", (Turn("user", "Why?"), Turn("assistant", "So.")), None, None, None),
        "question from messages (messages)",
    ),
    "parts of content": (
        {"messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "so?"}]}]},
        ("Why\nso?", (Turn("system", "Be kind."),), None, None, None),
        "question from messages (messages)",
    ),
    "SQuAD": (
        {"id": "q", "question": "Where?", "answers": {"text": ["Bern", "in Bern", "Bern"], "answer_start": [3, 0, 3]}},
        ("Where?", (), "Bern", "Bern", None),
        "question from question, reference from answers (list), answer from answers (list)",
    ),
    "TriviaQA": (
        {"question": "Where?", "answer": {"value": "Bern", "aliases": ["Berne", "Bern"]}},
        ("Where?", (), "Bern", "Bern", None),
        "question from question, reference from answer (list), answer from answer (list)",
    ),
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "set.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", PUBLIC)
def test_published_shapes(name, file):
    row, (question, history, reference, answer, weights), told = PUBLIC[name]
    accounts, path = [], file(row)
    (one,) = read_jsonl(path, say=lambda line: None, tell=accounts.append)
    assert (one.question, one.history, one.reference, one.answer) == (question, history, reference, answer)
    assert (one.rubric and [c.weight for c in one.rubric.criteria]) == weights
    assert accounts[0].line() == f"{path}: {told}; 1 row"


@pytest.mark.parametrize("name", ["HealthBench", "RubricHub RuRL", "OpenThoughts", "UltraFeedback, binarized"])
def test_published_shapes_from_parquet(name, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from rcsd_jax.data.parquet import read_parquet

    row, (question, history, reference, _, weights), _ = PUBLIC[name]
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (one,) = read_parquet(tmp_path / "rows.parquet", say=lambda line: None)
    assert (one.question, one.history, one.reference) == (question, history, reference)
    assert (one.rubric and [c.weight for c in one.rubric.criteria]) == weights


def test_tags_of_criteria_are_kept(file):
    (one,) = read_jsonl(file(PUBLIC["HealthBench"][0]))
    assert one.rubric.criteria[0].extra == {"tags": ["axis:context"]}


def test_a_conversation_as_one_text(file):
    (one,) = read_jsonl(file(PUBLIC["HealthBench"][0]))
    assert asked_text(one) == "[user]\nWhy?\n[assistant]\nSo.\n[user]\nHow?"


def test_an_answer_to_another_question_is_no_reference(file):
    (one,) = read_jsonl(file({"prompt": "How?", "messages": [USER, ANSWER]}))
    assert (one.question, one.reference) == ("How?", None)


def test_a_given_reference_is_preferred_to_the_last_turn(file):
    (one,) = read_jsonl(file({"messages": [USER, ANSWER], "reference": "Thus."}))
    assert (one.question, one.reference) == ("Why?", "Thus.")


def test_named_columns_are_read_as_they_are_named(file):
    path = file({"system": "Be kind.", "prompt": "no", "turns": [USER, ANSWER], "meta": {"good": "Thus."}})
    said = []
    (one,) = read_jsonl(path, fields={"question": "turns"}, say=said.append)
    assert (one.question, one.history, one.reference) == ("Why?", (), "So.") and said == []
    (one,) = read_jsonl(path, fields={"question": "turns", "reference": "meta.good"})
    assert one.reference == "Thus."
    with pytest.raises(UserError, match="data.fields.question=turns"):
        read_jsonl(path, fields={"question": "turns+prompt"})


@pytest.mark.parametrize("value", ["So.", 4, [{"x": 1}], {"x": "y"}])
@pytest.mark.parametrize("column", ["criteria", "messages"])
def test_columns_that_may_hold_something_else_are_passed_over(file, column, value):
    (one,) = read_jsonl(file({"question": "Q", column: value}))
    assert (one.rubric, one.history, one.reference) == (None, (), None)


# --- conversations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns, problem",
    [
        ([ANSWER], "does not end with a user turn"),
        ([USER, ANSWER, ANSWER], "does not end with a user turn"),
        ([{"role": "system", "content": "Be kind."}], "does not end with a user turn"),
        ([USER, {"role": "tool", "content": "x"}], "a turn of the role 'tool'"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{}]}, MORE], "a turn without text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part of type 'image_url'"),
        ([{"role": "user", "content": 5}], "of type int"),
        ([{"role": "user", "content": " "}], "a turn without text"),
    ],
)
def test_conversations_without_a_next_answer(turns, problem, file):
    with pytest.raises(Unusable, match=problem):
        split(turns_of(turns))
    with pytest.raises(UserError, match=f"set.jsonl:1: field 'messages': it has .*{problem}.*; repair it"):
        read_jsonl(file({"messages": turns}))


def test_what_is_no_conversation():
    for value in (
        None,
        "Why?",
        [],
        ["Why?"],
        [{"content": "Why?"}],
        {"role": "user", "content": "Why?"},
        [["Why?", "So."]],
    ):
        assert not is_conversation(value)


# --- left out --------------------------------------------------------------------------------------------------------


def test_incomplete_rows_are_left_out_and_counted_by_reason(file):
    good = {"question": "Q", "reference": "R", "rubric": RAR}
    rows = [
        good, good | {"reference": ""}, good | {"question": None}, good | {"rubric": RAR[:2]}, good | {"rubric": []},
        good | {"rubric": {f"Number {i}": i + 1 for i in range(26)}}, good | {"rubric": {f"Number {i}": -1 for i in range(3)}},
        {"messages": [ANSWER], **good, "question": ""}, good | {"reference": float("nan")}, good,
    ]  # fmt: skip
    accounts, path = [], file(*rows)
    how = dict(require=("question", "reference", "rubric"), incomplete="skip", tell=accounts.append)
    assert [e.id for e in read_jsonl(path, **how)] == ["set:1", "set:10"]
    assert accounts[0].left_out == {
        "without a reference": [2, 9],
        "without a question": [3],
        "with fewer than 3 criteria": [4],
        "without a rubric": [5],
        "with more than 25 criteria": [6],
        "whose rubric has only pitfalls": [7],
        "with a conversation that does not end with a user turn, or with one and an answer to it": [8],
    }
    assert (
        accounts[0]
        .line()
        .startswith(
            f"{path}: question from question, reference from reference, rubric from rubric (title, description, weight); 2 rows; "
            "left out: 2 of 10 rows without a reference, from row 2 on; left out: 1 of 10 rows without a question"
        )
    )
    with pytest.raises(UserError, match="set.jsonl:2: field 'reference'"):
        read_jsonl(path, **how | {"incomplete": "fail"})


def test_if_all_rows_are_left_out_the_first_says_why(file):
    path = file({"question": "Q", "rubric": RAR[:2]}, {"question": "Q"})
    with pytest.raises(UserError, match="set.jsonl:1: .*too_few.*or set rubric.min_criteria"):
        read_jsonl(path, require=("rubric",), incomplete="skip")


def test_a_rubric_out_of_bounds_costs_no_row_that_needs_none(file):
    path = file({"question": "Q", "rubric": RAR[:2]})
    assert read_jsonl(path, incomplete="skip")[0].rubric is None
    with pytest.raises(UserError, match="too_few"):
        read_jsonl(path)


def test_malformed_values_are_never_left_out(file):
    for row in ({"question": 5}, {"question": "Q", "rubric": [{"criterion": "A", "points": float("nan")}]}):
        with pytest.raises(UserError, match="set.jsonl:2: field"):
            read_jsonl(file({"question": "Q"}, row), incomplete="skip")


def test_an_account_names_what_most_rows_have(file):
    accounts = []
    rows = [{"question": "Q"}, {"prompt": [USER]}, {"prompt": "P"}, {"prompt": "P"}, {"query": "P"}]
    read_jsonl(file(*rows), tell=accounts.append)
    assert "question from prompt or question or prompt (messages) or others; 5 rows" in accounts[0].line()
