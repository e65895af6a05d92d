"""From verdicts on criteria to the score of an answer: the rules of published evaluations. A new one is a line of `AGGREGATIONS`.

A verdict is a number: how far a criterion is met, 0 or 1, or between them if the judge grades by extent. For a Pitfall it is how
far the fault is there. None is a criterion that was not judged. All rules leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rcsd_jax.rubrics.schema import Criterion

VERDICTS = ("met", "extent")
"""What a judge is asked about a criterion: whether the answer meets it, or how far the answer covers it."""

# RaR-Explicit's weights of the classes.
CLASS_WEIGHTS = {"Essential": 1.0, "Important": 0.7, "Optional": 0.3, "Pitfall": 0.9}

Judged = Sequence[tuple[Criterion, float]]
"""Criteria with their verdicts."""


class Aggregation(NamedTuple):
    """How verdicts become scores.

    Attributes:
      rule: the score of an answer; None if its criteria give none.
      verdict: what the judge is asked, one of `VERDICTS`.
      clips_mean: whether a set's mean is clipped to [0, 1].
    """

    rule: Callable[[Judged], float | None]
    verdict: str = "met"
    clips_mean: bool = False

    def score(self, criteria: Sequence[Criterion], met: Sequence[float | None]) -> float | None:
        """The score of an answer under the criteria that were judged; None if they give none.

        Raises:
          ValueError: `met` has another length.

        Examples:
          >>> from rcsd_jax.rubrics.schema import from_records
          >>> rubric = from_records(["Essential Criteria: A.", "Optional Criteria: B.", "Pitfall Criteria: C."])  # 10, 3, -9
          >>> met = [False, True, True]
          >>> {name: one.score(rubric.criteria, met) for name, one in AGGREGATIONS.items() if one.verdict == "met"}
          {'points': -0.46153846153846156, 'clipped_points': 0.0, 'mean_clipped_points': -0.46153846153846156, 'explicit': 0.13636363636363635}
        """
        judged = [(criterion, one) for criterion, one in zip(criteria, met, strict=True) if one is not None]
        return self.rule(judged)


def points(judged: Judged) -> float | None:
    """The points of the criteria that are met, over all positive points; None without positive points.

        sum_i w_i * met_i / sum_i max(w_i, 0)

    A fault has negative points, so a score may be negative. HealthBench (arXiv 2505.08775) scores a conversation so.
    """
    positive = sum(criterion.weight for criterion, _ in judged if criterion.weight > 0)
    return sum(criterion.weight * met for criterion, met in judged) / positive if positive else None


def clipped_points(judged: Judged) -> float | None:
    """`points`, and 0 where they are negative."""
    score = points(judged)
    return None if score is None else max(score, 0.0)


def explicit(judged: Judged) -> float | None:
    """RaR-Explicit (arXiv 2507.17746, equation 1): criteria count by their class, and an avoided Pitfall counts for the answer.

    sum_i w_i * satisfied_i / sum_i w_i, with w_i of `CLASS_WEIGHTS`
    """
    total = sum(CLASS_WEIGHTS[criterion.kind] for criterion, _ in judged)
    satisfied = ((c, 1.0 - met if c.kind == "Pitfall" else met) for c, met in judged)
    return sum(CLASS_WEIGHTS[c.kind] * one for c, one in satisfied) / total if total else None


def coverage(judged: Judged) -> float | None:
    """The mean of the verdicts, whatever the criteria weigh. ResearchQA (arXiv 2509.00496) scores an answer so."""
    return sum(met for _, met in judged) / len(judged) if judged else None


AGGREGATIONS: dict[str, Aggregation] = {
    "points": Aggregation(points),
    "clipped_points": Aggregation(clipped_points),
    "mean_clipped_points": Aggregation(points, clips_mean=True),
    "explicit": Aggregation(explicit),
    "coverage": Aggregation(coverage, verdict="extent"),
}
