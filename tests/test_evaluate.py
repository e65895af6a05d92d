"""Graders and the averaging of what they say."""

import numpy as np
import pytest

from rcsd_jax.completions import Completion
from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.graders import grade_boxed, grade_rubric, last_boxed
from rcsd_jax.evaluate.table import evaluate
from rcsd_jax.rubrics.schema import from_records, to_json

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
        grade=lambda example, text: {"accuracy": float(text == "good")},
    )
    assert [r["text"] for r in records] == ["good", "bad", "good", "good"]
    assert summary["accuracy"] == 0.75 and summary["share_cut"] == 0.25 and summary["length"] == 2.0
    assert summary["accuracy_stderr"] == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)
