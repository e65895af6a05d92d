"""Numbers from rubrics: the score of a response under one, and how alike two of them are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from rcsd_jax.rubrics.schema import Criterion, Rubric, RubricError, normalised


def score(rubric: Rubric, met: Sequence[bool]) -> float:
    """RaR's explicit aggregation (arXiv 2507.17746) with signed weights.

        score = sum_i w_i * met_i / sum_i max(w_i, 0)

    `met[i]` of a Pitfall says that the fault is *present*: its negative weight then counts. (A judge who is asked
    whether the response heeds "should avoid X" answers the opposite.) So 1 is a response that does everything asked
    and makes no fault; faults can bring it below 0, and it is not clipped, as a clipped reward would not see them.

    Args:
      rubric: the criteria.
      met: one truth value per criterion, in order.

    Raises:
      ValueError: `met` has another length.
      RubricError: code `no_positive_weight`.

    Examples:
      >>> from rcsd_jax.rubrics.schema import from_records
      >>> rubric = from_records(["Essential Criteria: A.", "Optional Criteria: B.", "Pitfall Criteria: C."])  # 10, 3, -9
      >>> score(rubric, [True, True, False]), round(score(rubric, [True, False, True]), 3)
      (1.0, 0.077)
    """
    if len(met) != len(rubric.criteria):
        raise ValueError(f"{len(met)} judgements for {len(rubric.criteria)} criteria")
    total = sum(criterion.weight for criterion in rubric.criteria if criterion.weight > 0)
    if total == 0:
        raise RubricError("no_positive_weight", "a score is relative to the positive weights, and there are none")
    return sum(criterion.weight for criterion, yes in zip(rubric.criteria, met, strict=True) if yes) / total


def same_description(criterion: Criterion) -> Hashable:
    """The key that makes two criteria the same when they ask for the same, whatever their class and weight."""
    return normalised(criterion.description)


def f1(predicted: Rubric | None, truth: Rubric, *, key: Callable[[Criterion], Hashable] = same_description) -> float:
    """F1 of the predicted criteria against the true ones, as sets of keys; 0 for a rubric that was rejected (None).

    Args:
      predicted: the rubric that was written.
      truth: the ground-truth rubric.
      key: what makes two criteria the same; by default the normalised description.

    Examples:
      >>> from rcsd_jax.rubrics.schema import from_records
      >>> truth = from_records(["Essential Criteria: A.", "Essential Criteria: B."], min_criteria=1)
      >>> f1(from_records(["Optional Criteria: a"], min_criteria=1), truth)  # one of one is right, one of two is there
      0.6666666666666666
      >>> f1(None, truth)
      0.0
    """
    if predicted is None:
        return 0.0
    ours, theirs = {key(c) for c in predicted.criteria}, {key(c) for c in truth.criteria}
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0
