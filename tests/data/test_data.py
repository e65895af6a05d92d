"""JSONL reading with its errors, and the order in which batches come."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rcsd_jax.data.batches import batches
from rcsd_jax.data.jsonl import read_jsonl
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics import schema

RUBRIC = ["Essential Criteria: A.", "Important: B.", "Pitfall Criteria: C."]
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "rar_science_400.jsonl"


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "set.jsonl"
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["question", "problem", "prompt", "query", "instruction", "input"])
def test_question_aliases(file, name):
    assert read_jsonl(file({name: " Why? "}))[0].question == "Why?"


@pytest.mark.parametrize("name", ["reference_answer", "reference", "answer", "final_answer", "solution"])
def test_reference_aliases(file, name):
    assert read_jsonl(file({"question": "Q", name: "R"}), require=("reference",))[0].reference == "R"


@pytest.mark.parametrize("name", ["rubric", "rubrics", "rubric_list"])
@pytest.mark.parametrize("value", [RUBRIC, json.dumps(RUBRIC), f"```json\n{json.dumps(RUBRIC)}\n```"])
def test_rubric_aliases_and_forms(file, name, value):
    example = read_jsonl(file({"question": "Q", name: value}), require=("question", "rubric"))[0]
    assert example.rubric == schema.from_records(RUBRIC)


def test_a_whole_example(file):
    row = {
        "uid": 7,
        "problem": "Q",
        "reference_answer": "Since so, 4.",
        "final_answer": 4,
        "rubric": RUBRIC,
        "level": [3],
    }
    (example,) = read_jsonl(file(row))
    assert (example.id, example.question, example.reference, example.answer) == ("7", "Q", "Since so, 4.", "4")
    assert example.origin.endswith("set.jsonl:1") and example.extra == {"level": [3]}


def test_absent_and_blank_fields_are_none_and_ids_are_rows(file):
    first, second = read_jsonl(file({"question": "Q", "reference": " ", "rubric": []}, "", {"question": "Q"}))
    assert (first.reference, first.rubric, first.answer) == (None, None, None)
    assert (first.id, second.id) == ("set:1", "set:3")


def test_an_alias_that_is_null_yields_to_the_next(file):
    assert read_jsonl(file({"question": None, "problem": "P"}))[0].question == "P"


def test_explicit_columns_step_into_objects_and_lists(file):
    row = {
        "question": "not this",
        "prompt": [{"role": "user", "content": "this"}],
        "rubrics": {"GT": RUBRIC, "other": "raw"},
        "a.b": "dotted",
    }
    fields = {"question": "prompt.0.content", "rubric": "rubrics.GT", "reference": "a.b", "answer": None}
    (example,) = read_jsonl(file(row), fields=fields)
    assert (example.question, example.reference, len(example.rubric)) == ("this", "dotted", 3)
    assert set(example.extra) == {"question", "prompt", "rubrics"}


def test_small_rubrics_where_the_bounds_allow_them(file):
    path = file({"question": "Q", "rubric": RUBRIC[:2]})
    assert len(read_jsonl(path, min_criteria=2)[0].rubric) == 2
    with pytest.raises(UserError, match="too_few"):
        read_jsonl(path)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"question": "Q"}).encode() + b"\r\n")
    assert read_jsonl(path)[0].question == "Q"


# --- questions of several parts, and columns that are not read ---------------------------------------------------------

ALPACA = {"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"}


@pytest.mark.parametrize(
    "row, question, extra",
    [
        (ALPACA, "Add the numbers.\n\n2 and 2", set()),
        (ALPACA | {"input": " "}, "Add the numbers.", {"input"}),
        (ALPACA | {"input": 5}, "Add the numbers.\n\n5", set()),
        ({"input": "2 and 2"}, "2 and 2", set()),
        (
            {"instruction": "Sum up.", "context": "A tale.", "category": "c"},
            "Sum up.\n\nA tale.",
            {"category"},
        ),  # Dolly
        ({"instruction": "Sum up.", "input": "", "context": "A tale."}, "Sum up.\n\nA tale.", {"input"}),
    ],
)
def test_both_parts_of_a_question_are_read(file, row, question, extra):
    said = []
    (example,) = read_jsonl(file(row), say=said.append)
    assert example.question == question and set(example.extra) == extra and not said


def test_columns_are_joined_as_they_are_named(file):
    rows = {"task": "Why?", "meta": {"passage": "It is."}}, {"task": "How?"}
    read = lambda fields: [e.question for e in read_jsonl(file(*rows), fields={"question": fields})]
    assert (
        read("task+meta.passage") == ["Why?\n\nIt is.", "How?"] and read("meta.passage + task")[0] == "It is.\n\nWhy?"
    )
    assert read_jsonl(file(ALPACA), fields={"question": "instruction"})[0].question == "Add the numbers."
    assert read_jsonl(file({"a+b": "dotted"}), fields={"question": "a+b"})[0].question == "dotted"
    with pytest.raises(UserError, match="data.fields.question': no record has the column 'pasage'"):
        read("task+pasage")
    with pytest.raises(
        UserError, match="field 'input' = .*expected text, found dict; .*data.fields.question=instruction"
    ):
        read_jsonl(file(ALPACA | {"input": {"a": 1}}))


@pytest.mark.parametrize(
    "rows, fields, parts",
    [
        (
            ({"question": "Q"}, {"question": "Q", "input": "x"}, {"question": "Q", "input": "y"}),
            {},
            ["'input' (2 of 3 rows, from row 2 on)", "which is 'question'", "data.fields.question=question+input reads"],
        ),
        (({"question": "Q", "problem": "P"},), {}, ["'problem' (1 of 1 rows", "part of the question"]),
        (({"question": "Q", "choices": ["a", "b"]},), {}, ["'choices'", "move what the model should see there"]),
        (({"question": "Q", "answer": "4", "solution": "long"},), {}, ["'solution'", "reference, which is 'answer'"]),
        (({"question": "Q", "rubric": RUBRIC, "rubrics": RUBRIC},), {}, ["'rubrics'", "rubric, which is 'rubric'"]),
        (({"turns": [{"content": "be brief"}, {"content": "Q"}]},), {"question": "turns.0.content"}, ["'turns.0.content'"]),
        (({"question": "Q", "input": " ", "problem": None},), {}, []),
        (({"question": "Q", "input": "x"},), {"question": "question"}, []),
        (({"question": "Q", "reference_answer": "R", "answer": "4"}, {"question": "Q", "answer": "R", "final_answer": "4"}), {}, []),
        (({"turns": [{"content": "Q"}]},), {"question": "turns.0.content"}, []),
    ],
)  # fmt: skip
def test_what_is_not_read_is_told_in_one_line(file, rows, fields, parts):
    said = []
    path = file(*rows)
    read_jsonl(path, fields=fields, say=said.append)
    assert len(said) == bool(parts)
    for part in [f"{path}: not read: ", *parts] if parts else []:
        assert part in said[0] and "\n" not in said[0]


def test_callers_without_an_ear_are_warned(file):
    with pytest.warns(UserWarning, match="'problem' .1 of 1 rows"):
        read_jsonl(file({"question": "Q", "problem": "P"}))


def test_an_alias_that_is_blank_yields_to_the_next(file):
    row = {"question": " ", "problem": "P", "reference": "", "answer": "4", "rubric": [], "rubrics": RUBRIC}
    (example,) = read_jsonl(file(row), require=("question", "reference", "rubric"))
    assert (example.question, example.reference, len(example.rubric)) == ("P", "4", 3)


# --- errors ----------------------------------------------------------------------------------------------------------

GOOD = {"question": "Q", "reference": "R", "rubric": RUBRIC}


@pytest.mark.parametrize(
    "rows, options, row, parts",
    [
        ((), {}, None, ["the file is empty", "one JSON object per line"]),
        (("  ", ""), {}, None, ["the file is empty"]),
        ((GOOD, '{"question": "Q"'), {}, 2, ["invalid JSON", "question", "one complete JSON object per line"]),
        ((GOOD, "[1, 2]"), {}, 2, ["a JSON list, not an object", "[1, 2]"]),
        (
            (GOOD, {"reference": "R"}),
            {},
            2,
            ["'question'", "none of the columns question, problem", "columns reference"],
        ),
        (({"text": "Q", "label": 1},), {}, 1, ["data.fields.question", "text, label"]),
        (({"question": ""},), {}, 1, ["the question is empty", "''"]),
        (({"question": "  \n"},), {}, 1, ["the question is empty"]),
        (({"question": None},), {}, 1, ["the question is empty"]),
        (({"question": 7},), {}, 1, ["expected text, found int", "= 7"]),
        (({"prompt": [{"content": "Q"}]},), {}, 1, ["'prompt'", "found list", "problem.text"]),
        (({"question": "Q", "reference": {"a": 1}},), {}, 1, ["'reference'", "found dict", "data.fields.reference"]),
        (
            (GOOD, {"question": "Q"}),
            {"require": ("rubric",)},
            2,
            ["no rubric", "rubric, rubrics, Rubrics, rubric_list", "columns question"],
        ),
        ((GOOD, {"question": "Q", "rubric": []}), {"require": ("rubric",)}, 2, ["the rubric is empty"]),
        (({"question": "Q"},), {"require": ("question", "reference")}, 1, ["no reference", "reference_answer"]),
        (({"question": "Q", "rubric": RUBRIC[:2]},), {}, 1, ["'rubric'", "too_few", "3 to 25"]),
        (({"question": "Q", "rubric": ["A", "B", 3]},), {}, 1, ["bad_record: criterion 3", "not int"]),
        (
            ({"question": "Q", "rubric": [{"criterion": "A", "points": float("nan")}]},),
            {},
            1,
            ["'rubric'", "criterion 1: weight nan is not a usable number", "a finite weight other than 0"],
        ),
        (({"question": "Q", "rubric": "no rubric"},), {}, 1, ["no_array", "'no rubric'"]),
        (({"question": "Q", "rubric": json.dumps(RUBRIC)[:-9]},), {}, 1, ["not a rubric", "too_few"]),
        (({"question": "Q", "rubric": 5},), {}, 1, ["not_a_list"]),
        (
            ({"question": "Q", "rubrics": {"GT": RUBRIC, "x": 1}},),
            {},
            1,
            ["keys GT, x", 'data.fields.rubric="rubrics.GT"'],
        ),
        ((GOOD | {"id": 1}, GOOD | {"id": "1"}), {}, 2, ["'id'", "'1'", "row 1 has the same id"]),
        ((GOOD,), {"fields": {"question": "qestion"}}, 1, ["no column 'qestion'", "question, reference, rubric"]),
        (
            (GOOD,),
            {"fields": {"answer": "boxed"}},
            None,
            ["data.fields.answer", "'boxed'", "question, reference, rubric"],
        ),
        ((GOOD,), {"fields": {"questions": "question"}}, None, ["data.fields.questions", "no such example field"]),
        ((GOOD,), {"require": ("rubrics",)}, None, ["'rubrics'", "no such example field"]),
    ],
)
def test_errors_name_the_place_and_the_remedy(file, rows, options, row, parts):
    path = file(*rows)
    with pytest.raises(UserError) as caught:
        read_jsonl(path, **options)
    message = str(caught.value)
    assert "\n" not in message and caught.value.remedy in message
    assert caught.value.row == row
    if row is not None:
        assert message.startswith(f"{path}:{row}: ")
    for part in parts:
        assert part in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="absent.jsonl: cannot be read .*name a .jsonl file"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_jsonl(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "Q"}\n{"question": "caf\xe9"}\n')
    with pytest.raises(UserError, match="latin.jsonl:2: not UTF-8 at byte 17"):
        read_jsonl(tmp_path / "latin.jsonl")


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/rar_science_400.jsonl beside the repository")
def test_the_real_rows():
    examples = read_jsonl(REAL, fields={"rubric": "rubrics.GT"}, require=("question", "reference", "rubric"))
    assert len(examples) == len({example.id for example in examples}) == 400
    assert examples[0].id == "267" and examples[0].reference == "0.228" and len(examples[0].rubric) == 7
    assert set(examples[0].extra) == {"rubrics", "gt_row_idx", "candidate_row_indices"}
    with pytest.raises(UserError, match=r"keys GT, learned, qwen3_8b_direct.*rubrics\.GT"):
        read_jsonl(REAL)


# --- batches ---------------------------------------------------------------------------------------------------------

SIZES = [(10, 4), (7, 7), (400, 32), (3, 8), (1, 2), (2, 1)]


@pytest.mark.parametrize("count, batch_size", SIZES)
def test_every_epoch_holds_every_example_once(count, batch_size):
    order = batches(range(count), batch_size=batch_size, seed=3)
    seen = [item for step in range(-(-5 * count // batch_size)) for item in order[step]]
    assert all(len(order[step]) == batch_size for step in range(5))
    for epoch in range(5):
        assert Counter(seen[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_epochs_and_seeds_have_different_orders():
    orders = [batches(range(100), batch_size=100, seed=seed)[epoch] for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9 and list(range(100)) not in orders


def test_a_batch_depends_on_seed_and_step_alone():
    first = batches(range(50), batch_size=8, seed=1)
    run = [first[step] for step in range(30)]
    resumed = batches(range(50), batch_size=8, seed=1)
    assert [resumed[step] for step in range(17, 30)] == run[17:]
    assert [resumed[step] for step in reversed(range(30))] == run[::-1]
    assert isinstance(run[0], list) and first[10**7] == resumed[10**7]


@pytest.mark.parametrize("count, batch_size", [(50, 8), (3, 8), (400, 32)])
@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_processes_share_out_the_global_batch(count, batch_size, process_count):
    whole = batches(range(count), batch_size=batch_size, seed=5)
    parts = [
        batches(range(count), batch_size=batch_size, seed=5, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for step in range(5):
        shards = [part[step] for part in parts]
        assert all(len(shard) == batch_size // process_count for shard in shards)
        assert sum(shards, []) == whole[step]


def test_batches_hold_the_examples_themselves(file):
    examples = read_jsonl(file(*({"question": f"Q{i}", "rubric": RUBRIC} for i in range(5))))
    batch = batches(examples, batch_size=5, seed=0)[0]
    assert sorted(example.question for example in batch) == [f"Q{i}" for i in range(5)]
    assert all(any(example is original for original in examples) for example in batch)


def test_batch_errors():
    with pytest.raises(UserError, match="'train.batch_size' = 6: .*4 processes.*set it to 8"):
        batches(range(9), batch_size=6, seed=0, process_count=4)
    with pytest.raises(UserError, match="'train.batch_size' = 0"):
        batches(range(9), batch_size=0, seed=0)
    with pytest.raises(UserError, match="at least one example"):
        batches([], batch_size=2, seed=0)
    with pytest.raises(UserError, match="'seed' = -1"):
        batches(range(9), batch_size=2, seed=-1)
    with pytest.raises(ValueError, match="process_index 2"):
        batches(range(9), batch_size=2, seed=0, process_index=2, process_count=2)


def test_a_chain_of_thought_is_read_where_a_role_sees_it(file):
    row = {"question": "6 * 7?", "answer": "42", "solution": "6 * 7 = 42, so 42."}
    (one,) = read_jsonl(file(row))
    assert (one.reference, one.solution, one.extra) == ("42", None, {"solution": row["solution"]})
    (one,) = read_jsonl(file(row), require=("solution",))
    assert (one.reference, one.solution, one.extra) == ("42", row["solution"], {})
    (one,) = read_jsonl(file(row | {"cot": "By heart."}), fields={"solution": "cot"})
    assert one.solution == "By heart."
    with pytest.raises(UserError, match="solution"):
        read_jsonl(file({"question": "6 * 7?", "answer": "42"}), require=("solution",), incomplete="fail")
