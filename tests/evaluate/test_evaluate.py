"""Graders and the averaging of what they say."""

import dataclasses
import functools
import io
import itertools
import re

import numpy as np
import pytest

from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.answers import last_boxed
from rcsd_jax.evaluate.graders import grade_all, grade_boxed, grade_number, grade_rubric
from rcsd_jax.evaluate.table import evaluate, pass_at_k, summarise
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.report.summary import print_evaluation, print_summary
from rcsd_jax.roles.thinking import ThinkingBlock
from rcsd_jax.rubrics.schema import from_records, to_json
from rcsd_jax.sampling.sampler import Completion

RUBRIC = from_records([f"Essential Criteria: States {i}." for i in range(4)])
EXAMPLE = Example("1", "Why?", "So \\boxed{4 m}.", RUBRIC, None, "rows:1")


@pytest.mark.parametrize(
    "text, content",
    [
        ("\\boxed{4}", "4"),
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {a{b}c}", "a{b}c"),
        ("\\boxed{1} and a cut \\boxed{2", "1"),
        ("no box", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_boxed_grader_compares_with_the_references_box():
    assert grade_boxed(EXAMPLE, "It is \\boxed{4\\,m}") == {"accuracy": 1.0, "parsed": 1.0}
    assert grade_boxed(EXAMPLE, "It is \\boxed{5 m}") == {"accuracy": 0.0, "parsed": 1.0}
    assert grade_boxed(EXAMPLE, "It is 4 m") == {"accuracy": 0.0, "parsed": 0.0}


def test_boxed_grader_without_a_box_in_the_reference():
    example = Example("1", "Why?", "4 m", None, "four metres", "rows:1")
    for text, score in (("\\boxed{4 m}", 1.0), ("\\boxed{four metres}", 1.0), ("\\boxed{4}", 0.0)):
        assert grade_boxed(example, text)["accuracy"] == score


def test_graders_accept_any_of_several_answers():
    listed = Example("1", "q", "4 V", None, "4 V", "rows:1", accepted=("4 V", "\\boxed{four}", "-4 V"))
    for found, score in (("4 V", 1.0), ("four", 1.0), ("-4 V", 1.0), ("5 V", 0.0)):
        assert grade_boxed(listed, f"\\boxed{{{found}}}")["accuracy"] == score
    numbers = Example("1", "q", None, None, "4", "rows:1", accepted=("4", "-4"))
    assert [grade_number(numbers, f"\\boxed{{{x}}}")["accuracy"] for x in (4, -4, 5)] == [1.0, 1.0, 0.0]
    with pytest.raises(UserError, match="rows:1: field 'answer' = 'four': not a number"):
        grade_number(dataclasses.replace(numbers, accepted=("4", "four")), "\\boxed{4}")


def test_boxed_grader_tells_symbols_apart_by_case():
    for truth, found, score in (
        (r"2\pi R", r"2\pi r", 0.0),
        ("m", "M", 0.0),
        ("yes", "Yes", 1.0),
        ("NaCl", "NaCl", 1.0),
    ):
        example = Example("1", "q", f"\\boxed{{{truth}}}", None, None, "rows:1")
        assert grade_boxed(example, f"\\boxed{{{found}}}")["accuracy"] == score, found


def test_rubric_grader():
    half = to_json(
        from_records(["Essential Criteria: States 0.", "Essential Criteria: States 1.", "Optional Criteria: X."])
    )
    assert grade_rubric(EXAMPLE, to_json(RUBRIC)) == {"valid": 1.0, "salvaged": 0.0, "criterion_f1": 1.0}
    assert grade_rubric(EXAMPLE, half)["criterion_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert grade_rubric(EXAMPLE, "no rubric") == {"valid": 0.0, "salvaged": 0.0, "criterion_f1": 0.0}


def test_evaluate_averages_in_the_examples_order():
    examples = [EXAMPLE] * 4

    def complete(prompts, seeds):
        assert list(seeds) == [0, 1, 2, 3]
        yield [3, 1], [Completion(np.array([1]), False), Completion(np.array([0, 0]), True)]
        yield [0, 2], [Completion(np.array([1, 1, 1]), False), Completion(np.array([1, 1]), False)]

    summary, records = evaluate(
        examples,
        [np.zeros(1)] * 4,
        complete=complete,
        decode=lambda tokens: "good" if tokens[0] else "bad",
        grade_all=lambda examples, texts: [{"accuracy": float(text == "good")} for text in texts],
    )
    assert [r["text"] for r in records] == ["good", "bad", "good", "good"]
    assert summary["accuracy"] == 0.75 and summary["share_cut"] == 0.25 and summary["length"] == 2.0
    assert summary["accuracy_stderr"] == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)
    low, high = summary["accuracy_interval"]
    assert 0.25 <= low < 0.75 < high == 1.0 and "samples" not in summary


def test_only_what_follows_a_thought_is_graded_and_cut_thoughts_are_counted():
    """By token ids: 8 opens a thinking block and 9 ends it, whatever the decoded text shows."""
    written = [[8, 1, 9, 4], [8, 4, 9, 1], [8, 4, 4], [4]]
    block = ThinkingBlock(begin=(8,), end=(9,), opened=False)

    def complete(prompts, seeds):
        yield list(range(4)), [Completion(np.array(x), len(x) == 3) for x in written]

    summary, records = evaluate(
        [EXAMPLE] * 4,
        [np.zeros(1)] * 4,
        complete=complete,
        decode=lambda tokens: "".join(f"\\boxed{{{x} m}}" for x in tokens if x < 8),
        grade_all=functools.partial(grade_all, "boxed"),
        answer=block.answer,
    )
    assert [(r["accuracy"], r["parsed"]) for r in records] == [(1, 1), (0, 1), (0, 0), (1, 1)]
    assert [r["thought_length"] for r in records] == [3, 3, 3, 0]
    assert [r["unended_thought"] for r in records] == [False, False, True, False]
    assert records[0]["text"] == "\\boxed{1 m}\\boxed{4 m}"  # a reader sees all of it
    assert summary["share_unended_thoughts"] == 0.25 == summary["share_cut"] and summary["thought_length"] == 9 / 4
    assert summary["accuracy"] == 0.5 and summary["parsed"] == 0.75 and "unended_thought" not in summary
    plain = summarise([{"id": "1", "sample": 0, "text": "", "length": 1, "cut": False, "accuracy": 1.0}])
    of_roles = {"base": {"eval": {"sampled": summary}}, "trained": {"eval": {"sampled": plain}}}
    cells = lambda line: [cell.strip() for cell in re.split("[┃│]", line)]
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(console, of_roles)
    lines = console.file.getvalue().splitlines()
    head, base, trained = (cells(next(x for x in lines if word in x)) for word in ("thoughts cut", "base", "trained"))
    assert [row[head.index("thoughts cut")] for row in (base, trained)] == ["25.0", "–"]
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, {"run": {"evaluation": of_roles, "paths": {}}}, {"run": ("rubric",)})
    (line,) = [line for line in console.file.getvalue().splitlines() if "thoughts cut" in line]
    assert cells(line)[2:5] == ["thoughts cut", "base student", "25.0"]


def test_several_samples_of_a_question():
    def complete(prompts, seeds):
        assert [p[0] for p in prompts] == [7, 7, 7, 8, 8, 8] and list(seeds) == [0, 2, 4, 1, 3, 5]
        yield list(range(6)), [Completion(np.array([int(i in (0, 4, 5))]), False) for i in range(6)]

    def grade_all(examples, texts):
        values = [{"accuracy": float(text == "1"), "judged": float(text)} for text in texts]
        return [*values[:5], {"accuracy": 1.0, "judged": float("nan")}]

    summary, records = evaluate(
        [EXAMPLE] * 2,
        [np.array([7]), np.array([8])],
        complete=complete,
        decode=lambda tokens: str(tokens[0]),
        grade_all=grade_all,
        samples=3,
    )
    assert (
        [r["sample"] for r in records] == [0, 1, 2, 0, 1, 2] and summary["samples"] == 3 and summary["questions"] == 2
    )
    assert summary["accuracy"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert summary["pass@2"] == pytest.approx((2 / 3 + 1.0) / 2) and summary["pass@3"] == 1.0
    assert summary["judged"] == pytest.approx((1 / 3 + 1 / 2) / 2) and summary["ungraded"] == pytest.approx(1 / 6)


def test_pass_at_k_is_the_share_of_draws():
    for right in range(6):
        for k in range(1, 6):
            draws = list(itertools.combinations([True] * right + [False] * (5 - right), k))
            assert pass_at_k(5, right, k) == pytest.approx(np.mean([any(d) for d in draws]))


def test_nothing_graded_has_no_mean():
    record = {"id": "1", "sample": 0, "text": "", "length": 1, "cut": False, "accuracy": float("nan")}
    summary = summarise([record] * 2)
    assert summary["accuracy"] is None and summary["ungraded"] == 1.0


def example_with(answer=None, **extra):
    return Example("1", "Which?", None, None, answer, "rows:7", extra)


def test_option_grader():
    example = example_with(options=["the muon", "the electron"], correct=1)
    told = {"\\boxed{B}": (1.0, 1.0), "\\boxed{the electron}": (1.0, 1.0), "\\boxed{A}": (0.0, 1.0), "Hm.": (0.0, 0.0)}
    for text, (accuracy, parsed) in told.items():
        assert grade_all("option", [example], [text]) == [{"accuracy": accuracy, "parsed": parsed}]


def test_number_grader():
    example = example_with("-2.3", unit="$\\mathrm{kJ}$")
    told = {
        "\\boxed{-2.31}": (1.0, 1.0),  # without a unit it is in the one that the question names
        "\\boxed{-2310 \\text{ J}}": (1.0, 1.0),
        "\\boxed{-2.31 \\text{ J}}": (0.0, 1.0),
        "\\boxed{-2.6\\,\\mathrm{kJ}}": (0.0, 1.0),
        "\\boxed{-2.3 \\text{ m}}": (0.0, 1.0),
        "\\boxed{\\text{unknown}}": (0.0, 0.0),
    }
    for text, (accuracy, parsed) in told.items():
        assert grade_all("number", [example], [text]) == [{"accuracy": accuracy, "parsed": parsed}], text
    scaled = example_with("1.5", unit="$10^{34} \\mathrm{~m}^{-3} \\mathrm{~s}^{-1}$")
    assert grade_all("number", [scaled] * 2, ["\\boxed{1.5}", "\\boxed{1.7}"]) == [
        {"accuracy": 1.0, "parsed": 1.0},
        {"accuracy": 0.0, "parsed": 1.0},
    ]
    with pytest.raises(UserError, match="rows:7.*answer.*not a number"):
        grade_all("number", [example_with("many")], ["\\boxed{1}"])


def test_boxed_grader_knows_equal_expressions():
    example = dataclasses.replace(EXAMPLE, reference="\\boxed{\\frac{1}{2}}")
    assert [grade_boxed(example, f"\\boxed{{{x}}}")["accuracy"] for x in ("0.5", "1/2", "0.6")] == [1.0, 1.0, 0.0]


def test_thinking_is_not_graded():
    texts = [
        "<think>\\boxed{9 m}</think> \\boxed{4 m}",
        "<think>So \\boxed{4 m}",
        "It is \\boxed{9 m}.</think>\\boxed{4 m}",
    ]
    assert [s["accuracy"] for s in grade_all("boxed", [EXAMPLE] * 3, texts)] == [1.0, 0.0, 1.0]
    assert grade_all("boxed", [EXAMPLE], texts[1:2])[0]["parsed"] == 0.0
    seen = []
    grade_all("judge", [EXAMPLE], texts[:1], judge=lambda examples, given: seen.extend(given) or [{}])
    assert seen == [" \\boxed{4 m}"]
    with pytest.raises(ValueError, match="judge"):
        grade_all("judge", [EXAMPLE], texts[:1])


@pytest.mark.parametrize("grader, field", [("rubric", "rubric"), ("boxed", "reference"), ("number", "answer")])
def test_what_a_grader_needs_and_a_row_lacks_is_named(grader, field):
    bare = Example("1", "Why?", None, None, None, "rows:1")
    with pytest.raises(UserError, match="rows:1") as error:
        grade_all(grader, [bare], ["\\boxed{4}"])
    assert error.value.field == field
