"""The rules that make scores of verdicts, against the formulas of the papers and their evaluation programs, written out apart."""

from fractions import Fraction

import numpy as np
import pytest

from rcsd_jax.rubrics.aggregation import AGGREGATIONS
from rcsd_jax.rubrics.schema import Criterion, from_records
from rcsd_jax.rubrics.scoring import score

RNG = np.random.default_rng(0)


def rubrics(count, *, share_negative):
    """Criteria with points as HealthBench has them, -10 to 10 and never 0, and a verdict on each."""
    for _ in range(count):
        points = [
            int(p) * (-1 if RNG.random() < share_negative else 1) for p in RNG.integers(1, 11, size=RNG.integers(1, 20))
        ]
        rows = [{"criterion": f"Says {i}.", "points": p} for i, p in enumerate(points)]
        yield points, rows, [bool(x) for x in RNG.random(len(points)) < 0.5]


def criteria_of(rows):
    """Also of rubrics without a positive weight, which are no rubrics to train with."""
    more = [{"criterion": "Is there.", "points": 10}]
    return from_records([*rows, *more], min_criteria=1).criteria[: len(rows)]


def test_points_are_those_of_healthbench_and_of_the_trainers_of_rubrichub():
    """simple-evals: points of what is met over positive points, None without these. verl-rubric: the same, at least 0."""
    seen = set()
    for points, rows, met in rubrics(300, share_negative=0.6):
        possible = sum(p for p in points if p > 0)
        achieved = sum(p for p, yes in zip(points, met, strict=True) if yes)
        expected = None if possible == 0 else Fraction(achieved, possible)
        criteria = criteria_of(rows)
        for name in ("points", "mean_clipped_points"):
            assert AGGREGATIONS[name].score(criteria, met) == (
                None if expected is None else pytest.approx(float(expected))
            )
        clipped = None if expected is None else pytest.approx(float(max(expected, 0)))
        assert AGGREGATIONS["clipped_points"].score(criteria, met) == clipped
        seen.add("none" if expected is None else "below" if expected < 0 else "above")
    assert seen == {"none", "below", "above"}


def test_rar_explicit_weighs_classes_and_counts_avoided_pitfalls():
    """The paper's equation 1, whose pitfalls are worded as what the answer avoids, so a fault is a criterion that is not satisfied."""
    weight = {
        "Essential": Fraction(1),
        "Important": Fraction(7, 10),
        "Optional": Fraction(3, 10),
        "Pitfall": Fraction(9, 10),
    }
    for _ in range(100):
        kinds = [str(k) for k in RNG.choice(list(weight), size=RNG.integers(1, 12))]
        criteria = [Criterion("", f"Says {i}.", -2.0 if k == "Pitfall" else 5.0, k) for i, k in enumerate(kinds)]
        met = [bool(x) for x in RNG.random(len(kinds)) < 0.5]
        satisfied = [yes != (kind == "Pitfall") for kind, yes in zip(kinds, met, strict=True)]
        top = sum(weight[kind] for kind, yes in zip(kinds, satisfied, strict=True) if yes)
        expected = float(top / sum(weight[kind] for kind in kinds))
        assert AGGREGATIONS["explicit"].score(criteria, met) == pytest.approx(expected)


def test_coverage_is_that_of_researchqa():
    """compute_coverage.py: ratings 1 to 5 become (rating - 1) / 4, and their mean counts every item alike."""
    for _ in range(100):
        ratings = RNG.integers(1, 6, size=RNG.integers(1, 9))
        criteria = [
            Criterion("", f"Does it name {i}?", float(RNG.integers(1, 11)), "Important") for i in range(len(ratings))
        ]
        expected = np.mean([(rating - 1) / 4 for rating in ratings])
        extents = [[0.0, 0.25, 0.5, 0.75, 1.0][rating - 1] for rating in ratings]
        assert AGGREGATIONS["coverage"].score(criteria, extents) == pytest.approx(expected)


def test_criteria_without_a_verdict_are_left_out():
    criteria = [
        Criterion("", "A.", 2.0, "Essential"),
        Criterion("", "B.", 2.0, "Essential"),
        Criterion("", "C.", -1.0, "Pitfall"),
    ]
    points = AGGREGATIONS["points"].score
    assert points(criteria, [True, False, False]) == 0.5 and points(criteria, [True, None, False]) == 1.0
    assert points(criteria, [None, True, True]) == 0.5 and points(criteria, [False, False, True]) == -0.25
    assert points(criteria, [None, None, True]) is None
    for name, aggregation in AGGREGATIONS.items():
        assert aggregation.score(criteria, [None] * 3) is None, name
        for at in range(3):  # as if it were not in the rubric
            met = [1.0, 0.0, 1.0]
            without = aggregation.score(criteria[:at] + criteria[at + 1 :], met[:at] + met[at + 1 :])
            assert aggregation.score(criteria, met[:at] + [None] + met[at + 1 :]) == without
    with pytest.raises(ValueError):
        points(criteria, [True])


def test_the_score_that_rewards_use_is_the_points():
    for points, rows, met in rubrics(50, share_negative=0.3):
        if max(points) > 0:
            rubric = from_records(rows, min_criteria=1)
            assert score(rubric, met) == AGGREGATIONS["points"].score(rubric.criteria, met)
