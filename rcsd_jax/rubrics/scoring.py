"""The score of a response under a rubric, and the similarity of two rubrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from rcsd_jax.rubrics.aggregation import points
from rcsd_jax.rubrics.schema import Criterion, Rubric, RubricError, normalised


def score(rubric: Rubric, met: Sequence[bool]) -> float:
    """The points of the criteria that are met, over all positive points: `aggregation.points`.

        score = sum_i w_i * met_i / sum_i max(w_i, 0)

    For a Pitfall, `met[i]` means that the fault is *present*, and its negative weight counts. (A judge that is asked whether
    the response heeds "should avoid X" answers the opposite.) So 1 means that the response meets everything and has no
    fault. Faults can bring the score below 0. It is not clipped, because a clipped reward would not see further faults.

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
    found = points(list(zip(rubric.criteria, met, strict=True)))
    if found is None:
        raise RubricError("no_positive_weight", "a score is relative to the positive weights, and there are none")
    return found


def failed(rubric: Rubric, met: Sequence[float | None]) -> list[float]:
    """How much each criterion weighs that is failed: |weight| times how far it is not met, of a Pitfall how far the fault is there.

    Args:
      rubric: the criteria.
      met: as in `score`; None for a criterion that was not judged, which then weighs nothing.

    Examples:
      >>> from rcsd_jax.rubrics.schema import from_records
      >>> rubric = from_records(["Essential Criteria: A.", "Optional Criteria: B.", "Pitfall Criteria: C."])  # 10, 3, -9
      >>> failed(rubric, [True, False, True]), failed(rubric, [False, None, False])
      ([0.0, 3.0, 9.0], [10.0, 0.0, 0.0])
    """
    return [
        0.0 if one is None else abs(criterion.weight) * float(one if criterion.weight < 0 else 1.0 - one)
        for criterion, one in zip(rubric.criteria, met, strict=True)
    ]


def same_description(criterion: Criterion) -> Hashable:
    """A key by which criteria with equal descriptions are the same, whatever their class and weight."""
    return normalised(criterion.description)


def f1(predicted: Rubric | None, truth: Rubric, *, key: Callable[[Criterion], Hashable] = same_description) -> float:
    """F1 of the predicted criteria against the true ones, as sets of keys; 0 for a rejected rubric (None).

    Args:
      predicted: the rubric that the model wrote.
      truth: the ground-truth rubric.
      key: criteria with equal keys are the same; by default the normalised description.

    Examples:
      >>> from rcsd_jax.rubrics.schema import from_records
      >>> truth = from_records(["Essential Criteria: A.", "Essential Criteria: B."], min_criteria=1)
      >>> f1(from_records(["Optional Criteria: a"], min_criteria=1), truth)  # precision 1, recall 1/2
      0.6666666666666666
      >>> f1(None, truth)
      0.0
    """
    if predicted is None:
        return 0.0
    ours, theirs = {key(c) for c in predicted.criteria}, {key(c) for c in truth.criteria}
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0


def unmet(rubric: Rubric, met: Sequence[bool]) -> Rubric | None:
    """The criteria that are failed, of a Pitfall those whose fault is there; None if there are none. `met` is as in `score`.

    Examples:
      >>> from rcsd_jax.rubrics.schema import from_records
      >>> rubric = from_records(["Essential Criteria: A.", "Optional Criteria: B.", "Pitfall Criteria: C."])
      >>> [criterion.description for criterion in unmet(rubric, [True, False, True]).criteria], unmet(rubric, [True, True, False])
      (['B.', 'C.'], None)
    """
    pairs = zip(rubric.criteria, met, strict=True)
    failed = tuple(criterion for criterion, one in pairs if one == (criterion.kind == "Pitfall"))
    return Rubric(failed) if failed else None
