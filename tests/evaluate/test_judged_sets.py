"""Sets that a judge grades: scores by each rule, verdicts by criterion, class and tag, and the agreement of two judges."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate import agreement, judged_sets
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.evaluate.judged_sets import Judges, graded, rewards
from rcsd_jax.evaluate.table import summarise
from rcsd_jax.judge.judging import Judgement
from rcsd_jax.report.summary import print_judged
from rcsd_jax.rubrics.schema import Criterion, Rubric

CRITERIA = (
    Criterion("", "Refers to a doctor.", 8.0, "Essential", {"tags": ["axis:accuracy", "level:example"]}),
    Criterion("", "Is short.", 4.0, "Important", {"tags": ["axis:communication_quality"]}),
    Criterion("", "Names a dose.", -10.0, "Pitfall", {"tags": ["axis:accuracy"]}),
)
EXAMPLES = [
    Example(f"q{i}", "What now?", None, Rubric(CRITERIA), None, f"rows:{i}", extra={"example_tags": ["theme:hedging"]})
    for i in range(3)
]
MET = [(1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, None, 0.0)]


def judge_that_says(verdicts, asked):
    def judge(examples, texts, verdict):
        asked.append((list(texts), verdict))
        return [Judgement(tuple(met), ("so",) * len(met)) for met in verdicts]

    return judge


def as_records(found, samples=1):
    common = {"length": 3, "cut": False, "text": "…"}
    return [{"id": f"q{i // samples}", "sample": i % samples, **common, **one} for i, one in enumerate(found)]


def evaluated(rule, verdicts=MET, second=None, *, samples=1, examples=EXAMPLES):
    judges = Judges(judge_that_says(verdicts, []), None if second is None else judge_that_says(second, []))
    records = as_records(graded(judges, rule, examples, ["…"] * len(examples)), samples)
    return judged_sets.summary(summarise(records, samples=samples), records, rule), records


def test_a_graded_text_holds_scores_and_a_verdict_for_every_criterion():
    asked = []
    judges = Judges(judge_that_says(MET, asked), judge_that_says([(1.0, 0.0, 0.0)] * 3, []))
    texts = ["<think>Let me see.</think>See a doctor.", "Take 5 mg.", "See a doctor."]
    found = graded(judges, ("clipped_points", "explicit"), EXAMPLES, texts)
    assert asked == [(["See a doctor.", "Take 5 mg.", "See a doctor."], "met")]
    assert [one["rubric_score"] for one in found] == [1.0, 0.0, 1.0]
    assert [one["explicit_score"] for one in found] == pytest.approx([1.0, 0.0, 1.0])
    assert [one["second_score"] for one in found] == pytest.approx([8 / 12] * 3)
    assert [one["judged"] for one in found] == pytest.approx([1, 1, 2 / 3])
    assert found[2]["verdicts"][1] == {
        "criterion": "Is short.", "class": "Important", "weight": 4.0, "met": None, "reason": "so", "second_met": 0.0
    }  # fmt: skip
    json.dumps(found)


def test_rewards_are_not_clipped_and_ask_the_first_judge_alone():
    def never(*_):
        raise AssertionError("the second judge was asked")

    found = rewards(EXAMPLES, Judges(judge_that_says(MET, []), never).first(EXAMPLES, ["…"] * 3, "met"))
    assert [one["rubric_score"] for one in found] == pytest.approx([1.0, -10 / 12, 1.0])
    assert found[0].keys() == {"rubric_score", "judged"}


def test_healthbench_clips_means_and_not_conversations():
    """simple-evals: each metric is the mean over conversations that have it, clipped to [0, 1]; tags of criteria and of examples."""
    scores = [1.0, -10 / 12, 1.0]
    accuracy = [1.0, -10 / 8, 1.0]
    of_set, _ = evaluated(("mean_clipped_points",))
    assert of_set["rubric_score"] == pytest.approx(np.mean(scores))
    assert of_set["tags"] == {
        "axis:accuracy": {"rubric_score": pytest.approx(np.mean(accuracy)), "answers": 3},
        "axis:communication_quality": {"rubric_score": 0.5, "answers": 2},  # the third has no verdict there
        "level:example": {"rubric_score": pytest.approx(2 / 3), "answers": 3},
        "theme:hedging": {"rubric_score": pytest.approx(np.mean(scores)), "answers": 3},
    }
    of_set, records = evaluated(("mean_clipped_points",), [(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0)])
    assert [r["rubric_score"] for r in records] == pytest.approx([-10 / 12, -6 / 12, 1.0])
    assert of_set["rubric_score"] == 0.0 and of_set["rubric_score_interval"][0] == 0.0
    assert of_set["tags"]["axis:accuracy"]["rubric_score"] == 0.0
    each, _ = evaluated(("clipped_points",), [(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0)])
    assert each["rubric_score"] == pytest.approx(1 / 3)  # RaR and RubricHub clip every answer


def test_classes_are_counted_over_judged_criteria():
    of_set, _ = evaluated(("points",))
    assert of_set["classes"] == {
        "Essential": {"criteria": 3, "met": pytest.approx(2 / 3)},
        "Important": {"criteria": 2, "met": 0.5},
        "Pitfall": {"criteria": 3, "met": pytest.approx(1 / 3)},
    }
    bare = [
        Example(
            "q0", "?", None, Rubric((Criterion("", "A.", 1.0, "Essential", {"tags": {"verifier": "llm"}}),)), None, ""
        )
    ]
    of_set, records = evaluated(("points",), [(None,)], examples=bare)
    assert (
        of_set["rubric_score"] is None
        and of_set["classes"] == {}
        and "tags" not in of_set
        and "agreement" not in of_set
    )
    assert np.isnan(records[0]["rubric_score"]) and of_set["ungraded"] == 1.0


def test_a_benchmark_is_scored_as_in_its_paper(tmp_path):
    from tests.evaluate.test_benchmarks import ROWS, asked

    for name, verdict, met, expected in (
        ("rar", "met", (1, 1, 0), {"rubric_score": 2 / 3, "explicit_score": 2 / 3}),
        ("researchqa", "extent", (0.0, 0.25, 0.75, 1.0), {"rubric_score": 0.5}),
        ("rubrichub", "met", (1, 0, 1), {"rubric_score": 4 / 6}),
        ("healthbench", "met", (1, 0, 1), {"rubric_score": (7 - 5) / 10}),
    ):
        seen, example = [], asked(name, ROWS[name], tmp_path=tmp_path)
        (found,) = graded(Judges(judge_that_says([met], seen)), BENCHMARKS[name].aggregations, [example], ["…"])
        assert seen == [(["…"], verdict)], name
        assert {key: found[key] for key in found if key.endswith("_score")} == pytest.approx(expected), name
        assert ("tag_scores" in found) == (name == "healthbench"), name
    assert found["tag_scores"] == pytest.approx(
        {"theme:hedging": 0.2, "axis:accuracy": (7 - 5) / 7, "axis:completeness": 0.0, "level:example_level": 1.0}
    )


# --- agreement -------------------------------------------------------------------------------------------------------


def weighted_kappa(first, second, categories):
    """scikit-learn's cohen_kappa_score(weights="quadratic"), written out."""
    n = len(first)
    observed = expected = 0.0
    for i, a in enumerate(categories):
        for j, b in enumerate(categories):
            both = sum(x == a and y == b for x, y in zip(first, second, strict=True))
            observed += (i - j) ** 2 * both
            expected += (i - j) ** 2 * first.count(a) * second.count(b) / n
    return 1 - observed / expected


def test_kappa_is_cohens():
    """With two categories: (p_o - p_e) / (1 - p_e)."""
    rng = np.random.default_rng(1)
    for k in (2, 5):
        for _ in range(20):
            first, second = rng.integers(0, k, size=(2, 40)).tolist()
            second = [a if rng.random() < 0.5 else b for a, b in zip(first, second, strict=True)]
            table = agreement.table_of(list(zip(first, second, strict=True)), k)
            assert agreement.kappa(table) == pytest.approx(weighted_kappa(first, second, range(k)))
            same = np.mean(np.array(first) == np.array(second))
            assert agreement.agreement(table) == pytest.approx(same)
            if k == 2:
                by_chance = sum(first.count(c) * second.count(c) for c in range(k)) / 40**2
                assert agreement.kappa(table) == pytest.approx((same - by_chance) / (1 - by_chance))


def test_kappa_where_chance_brings_no_disagreement():
    assert agreement.kappa(agreement.table_of([(1, 1)] * 5, 2)) is None and agreement.kappa(np.zeros((2, 2))) is None
    assert agreement.agreement(np.zeros((2, 2))) is None and agreement.kappa_interval(np.zeros((3, 2, 2))) is None
    assert agreement.kappa(agreement.table_of([(0, 0), (1, 1)], 2)) == 1.0
    assert agreement.kappa(agreement.table_of([(0, 1), (1, 0)], 2)) == -1.0


def test_the_interval_of_kappa_draws_questions():
    """Criteria of a question that agree or disagree together leave more doubt than as many apart."""
    rng = np.random.default_rng(2)
    pairs = [
        [(int(c), int(c if agrees else 1 - c)) for c in rng.integers(0, 2, 10)] for agrees in [True] * 15 + [False] * 5
    ]
    by_question = np.stack([agreement.table_of(one, 2) for one in pairs])
    by_criterion = np.stack([agreement.table_of([pair], 2) for one in pairs for pair in one])
    wide, narrow = (agreement.kappa_interval(tables) for tables in (by_question, by_criterion))
    whole = agreement.kappa(by_question.sum(axis=0))
    assert wide[0] < narrow[0] < whole < narrow[1] < wide[1]
    assert wide == agreement.kappa_interval(by_question)  # a repetition draws the same


def test_two_judges_are_compared_on_criteria_that_both_judged():
    second = [(1.0, 0.0, 0.0), (0.0, None, 1.0), (0.0, 1.0, 0.0)]
    of_set, _ = evaluated(("points",), second=second)
    first_of_both, second_of_both = [1, 1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 0, 0]
    found = of_set["agreement"]
    assert found["criteria"] == 7 and found["same"] == pytest.approx(5 / 7)
    assert found["kappa"] == pytest.approx(weighted_kappa(first_of_both, second_of_both, range(2)))
    assert of_set["second_score"] == pytest.approx(np.mean([8 / 12, -10 / 8, 4 / 12]))
    stream = io.StringIO()
    print_judged(Console(file=stream, width=200), {"base": {"rar": {"greedy": of_set}}}, names={"base": "student"})
    shown = stream.getvalue()
    assert "student" in shown and "66.7" in shown and "71.4" in shown and f"{found['kappa']:.2f}" in shown


def test_extents_are_compared_by_their_distance():
    examples = [Example("q0", "?", None, Rubric(CRITERIA), None, "")]
    near, far = (
        evaluated(("coverage",), [(0.0, 0.5, 1.0)], [other], examples=examples)[0]["agreement"]
        for other in ((0.25, 0.5, 0.75), (1.0, 0.5, 0.0))
    )
    assert near["same"] == far["same"] == pytest.approx(1 / 3)
    assert far["kappa"] == pytest.approx(-1.0) and 0 < near["kappa"] < 1


def test_samples_of_a_question_are_drawn_together():
    verdicts = [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)]
    examples = [EXAMPLES[0]] * 2
    of_set, records = evaluated(("points",), verdicts, verdicts, samples=2, examples=examples)
    assert of_set["questions"] == 1 and of_set["agreement"]["kappa_interval"] == [1.0, 1.0]
    assert of_set["rubric_score"] == pytest.approx(np.mean([8 / 12, -6 / 12])) and len(records) == 2
