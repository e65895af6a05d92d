"""Benchmarks from rows as they are published: what is asked, what grades it; and the files and data sets they come from."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rcsd_jax.data import sources
from rcsd_jax.evaluate.benchmarks import BENCHMARKS, questions
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.aggregation import AGGREGATIONS

# A made-up row of each, with the columns that the published data have.
ROWS = {
    "gpqa_diamond": {"Record ID": "rec1", "Question": "Which decays?", "Correct Answer": "the muon \n",
                     "Incorrect Answer 1": "the electron", "Incorrect Answer 2": "the photon",
                     "Incorrect Answer 3": "the proton", "Subdomain": "Physics"},
    "scibench": {"problem_text": "How much work?", "answer_latex": " -2.3 ", "answer_number": "-2.3", "unit": " $\\mathrm{kJ}$ ",
                 "problemid": "2.1", "source": "atkins", "solution": ""},
    "piqa": {"goal": "To dry a shirt,", "sol1": "hang it up.", "sol2": "soak it.", "label": 0},
    "medmcqa": {"id": "m1", "question": "Which vitamin?", "opa": "A", "opb": "B12", "opc": "C", "opd": "D", "cop": 2,
                "exp": "…", "subject_name": "Medicine"},
    "pubmedqa": {"pubid": 17, "question": "Does it help?", "context": {"contexts": ["Aim.", "Result."], "labels": ["A", "R"]},
                 "long_answer": "It does.", "final_decision": "yes"},
    "rar": {"question": "Why blue?", "reference_answer": "Scattering.", "rubric_count": 3,
            "rubric": [{"title": f"T{i}", "description": f"Essential Criteria: Names {i}.", "weight": 5} for i in range(3)]},
    "researchqa": {"id": "r1", "query": "What limits it?", "field": "CS", "date": "2024",
                   "rubric": [{"rubric_item": f"Does it name {i}?", "type": ["other"]} for i in range(4)]},
    "rubrichub": {"prompt": [{"role": "user", "content": "Explain."}], "ability": "Science",
                  "reward_model": {"rubrics": [{"criterion": f"Says {i}.", "points": i + 1} for i in range(3)]}},
    "healthbench": {"prompt_id": "h1", "prompt": [{"role": "user", "content": "It hurts."}, {"role": "assistant", "content": "Where?"},
                                                  {"role": "user", "content": "Here."}],
                    "rubrics": [{"criterion": "Asks since when.", "points": 7, "tags": ["axis:accuracy", "level:example_level"]},
                                {"criterion": "Names a doctor.", "points": 3, "tags": ["axis:completeness"]},
                                {"criterion": "Names a dose.", "points": -5, "tags": ["axis:accuracy"]}],
                    "example_tags": ["theme:hedging"], "canary": "…", "ideal_completions_data": None},
}  # fmt: skip


def asked(name, row, seed=0, tmp_path=None):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    benchmark = BENCHMARKS[name]
    examples = sources.read(str(path), fields=benchmark.fields, require=benchmark.requires())
    return questions(benchmark, examples, seed=seed)[0]


def test_every_benchmark_has_a_row_here_and_a_grader():
    assert ROWS.keys() == BENCHMARKS.keys()
    assert {b.grader for b in BENCHMARKS.values()} <= set(GRADERS)
    judged = {name: b.aggregations for name, b in BENCHMARKS.items() if b.grader == "judge"}
    assert all(rules and set(rules) <= set(AGGREGATIONS) for rules in judged.values())
    assert all(len({AGGREGATIONS[rule].verdict for rule in rules}) == 1 for rules in judged.values())
    assert not any(b.aggregations for name, b in BENCHMARKS.items() if name not in judged)
    for benchmark in BENCHMARKS.values():
        assert sources.split_source(benchmark.path, "jsonl")[0] in ("hub", "tfds")


@pytest.mark.parametrize("name", ["gpqa_diamond", "piqa", "medmcqa"])
def test_options_are_lettered_and_shuffled_by_seed(name, tmp_path):
    row, columns = ROWS[name], BENCHMARKS[name].options
    right = row[columns[row[BENCHMARKS[name].correct] if BENCHMARKS[name].correct else 0]].strip()
    places = set()
    for seed in range(20):
        one = asked(name, row, seed, tmp_path)
        assert one.extra["options"][one.extra["correct"]] == right
        assert sorted(one.extra["options"]) == sorted(row[c].strip() for c in columns)
        for letter, option in zip("ABCD", one.extra["options"], strict=False):
            assert f"\n{letter}. {option}\n" in one.question
        places.add(one.extra["correct"])
    assert places == set(range(len(columns)))
    assert asked(name, row, 3, tmp_path) == asked(name, row, 3, tmp_path)


def test_the_others_as_they_are_asked(tmp_path):
    one = asked("pubmedqa", ROWS["pubmedqa"], tmp_path=tmp_path)
    assert one.question == "Aim.\nResult.\nDoes it help?\nAnswer with one of: yes, no, maybe." and one.id == "17"
    assert one.extra["options"] == ["yes", "no", "maybe"] and one.extra["correct"] == 0
    one = asked("scibench", ROWS["scibench"], tmp_path=tmp_path)
    assert (
        one.answer == "-2.3" and one.extra["unit"] == "$\\mathrm{kJ}$" and one.question.endswith("of $\\mathrm{kJ}$.")
    )
    weights = {name: [c.weight for c in asked(name, ROWS[name], tmp_path=tmp_path).rubric.criteria]
               for name in ("rar", "researchqa", "rubrichub")}  # fmt: skip
    assert weights == {"rar": [5.0] * 3, "researchqa": [7.0] * 4, "rubrichub": [1.0, 2.0, 3.0]}
    assert asked("rubrichub", ROWS["rubrichub"], tmp_path=tmp_path).question == "Explain."
    one = asked("healthbench", ROWS["healthbench"], tmp_path=tmp_path)
    assert (
        one.id == "h1" and one.question == "Here." and [turn.content for turn in one.history] == ["It hurts.", "Where?"]
    )
    assert [(c.weight, c.kind == "Pitfall") for c in one.rubric.criteria] == [(7.0, False), (3.0, False), (-5.0, True)]


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("medmcqa", {"cop": -1}, ["rows.jsonl:1", "cop", "-1", "index from 0 to 3"]),
        ("medmcqa", {"cop": 4}, ["cop", "4"]),
        ("pubmedqa", {"final_decision": "perhaps"}, ["final_decision", "perhaps"]),
        ("piqa", {"sol2": ...}, ["rows.jsonl:1", "sol2", "there are"]),
        ("scibench", {"answer_number": ""}, ["rows.jsonl:1", "answer_number", "empty"]),
    ],
)
def test_rows_that_cannot_be_asked(name, change, said, tmp_path):
    row = {k: v for k, v in (ROWS[name] | change).items() if v is not ...}
    with pytest.raises(UserError) as error:
        asked(name, row, tmp_path=tmp_path)
    assert all(part in str(error.value) for part in said)


@pytest.mark.parametrize(
    "path, source, rest",
    [
        ("rows.jsonl", "jsonl", "rows.jsonl"),
        ("hub:a/b:c#test", "hub", "a/b:c#test"),
        ("tfds:piqa#validation", "tfds", "piqa#validation"),
        ("a.parquet", "parquet", "a.parquet"),
        ("folder", "tfds", "folder"),
        ("gs://bucket/rows.txt", "tfds", "gs://bucket/rows.txt"),
    ],
)
def test_the_path_tells_the_source(path, source, rest):
    assert sources.split_source(path, "tfds") == (source, rest)


def test_parquet_and_the_hub_read_what_jsonl_does(tmp_path):
    rows = [ROWS["medmcqa"] | {"id": f"m{i}", "cop": i % 4} for i in range(5)] + [ROWS["medmcqa"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    (tmp_path / "data").mkdir()
    for i in range(2):
        table = pyarrow.Table.from_pylist(rows[3 * i : 3 * i + 3])
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"test-{i}.parquet")
    expected = sources.read(str(tmp_path / "rows.jsonl"))

    def plain(examples):
        return [(e.id, e.question, dict(e.extra)) for e in examples]

    assert len(sources.read(str(tmp_path / "data" / "test-0.parquet"))) == 3
    with pytest.raises(UserError, match="row 2 has the same id"):  # the sixth row repeats m1, also across files
        sources.read(str(tmp_path / "data"), source="parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[3:5]), tmp_path / "data" / "test-1.parquet")
    assert plain(sources.read(str(tmp_path / "data"), source="parquet")) == plain(expected)
    pytest.importorskip("datasets")
    assert plain(sources.read(f"hub:{tmp_path / 'data'}#test")) == plain(expected)
    assert plain(sources.read(f"hub:{tmp_path / 'data'}:test-1.parquet#train")) == plain(expected)[3:]  # one file of it
    with pytest.raises(UserError, match=r"cannot be read from the hub .*check name, configuration and split"):
        sources.read(f"hub:{tmp_path / 'data'}#nothing")


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    for path in ("a.parquet", "b.parquet"):
        with pytest.raises(UserError, match=f"{path}.*cannot be read"):
            sources.read(str(tmp_path / path))
    with pytest.raises(UserError, match="no examples"):
        sources.read(str(tmp_path), source="parquet") if not (tmp_path / "a.parquet").unlink() else None
