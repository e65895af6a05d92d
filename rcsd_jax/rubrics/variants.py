"""The rubrics of the paper's ablation: generic, noisy, random and reduced.

Each is a pure function of its arguments. Random draws depend only on (seed, id), so an example gets the same variant in any
order, batch or process.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import replace

from rcsd_jax.rubrics.schema import Criterion, Rubric, normalised

Pool = Sequence[tuple[str, Rubric]]
"""(example id, its rubric) of the whole data set, in a fixed order, because draws are indices into it."""

_GENERIC = (
    Criterion(
        "Correct final answer", "States one final answer, correct and complete for what is asked.", 10.0, "Essential"
    ),
    Criterion(
        "Sound principle",
        "Names the law or mechanism that governs the problem and applies it validly.",
        10.0,
        "Essential",
    ),
    Criterion(
        "Justified steps",
        "Leads from the given data to the conclusion, each step following from the last.",
        8.0,
        "Important",
    ),
    Criterion(
        "Units and numbers",
        "Carries units through and computes without slips, to a sensible precision.",
        7.0,
        "Important",
    ),
    Criterion(
        "Conditions stated", "Says which assumptions are made and why they hold in this situation.", 5.0, "Important"
    ),
    Criterion(
        "Result checked", "Tests the result, by its order of magnitude, a limiting case or dimensions.", 3.0, "Optional"
    ),
    Criterion("Clear wording", "Is organised and to the point, with symbols and terms explained.", 2.0, "Optional"),
    Criterion(
        "Unsupported claims", "Asserts facts or values that are invented, or contradicts itself.", -5.0, "Pitfall"
    ),
)
_DRAWS = 100


def generic_rubric() -> Rubric:
    """A rubric that fits any science question and says nothing about this one."""
    return Rubric(_GENERIC)


def random_rubric(pool: Pool, *, seed: int, id: str) -> Rubric:
    """Another question's rubric.

    Raises:
      ValueError: the pool holds no other question.
    """
    return _other(pool, _generator("random", seed, id), id)


def noisy(rubric: Rubric, pool: Pool, *, seed: int, id: str, fraction: float = 0.5) -> Rubric:
    """The rubric with a fraction of its criteria (rounded, at least one unless 0) replaced by other questions'.

    A replacement takes over place, class and weight, so that only its description is wrong. It is drawn among criteria of
    the same class. If many draws find none, a criterion of another class is used with its own class and weight.

    Raises:
      ValueError: the fraction is outside 0..1, or the pool has no other question or no criterion that is new.

    Examples:
      >>> whole = generic_rubric()
      >>> other = Rubric(tuple(replace(c, description=f"Something else {i}.") for i, c in enumerate(whole.criteria)))
      >>> changed = noisy(whole, [("a", whole), ("b", other)], seed=0, id="a", fraction=0.25)
      >>> sum(c.description.startswith("Something else") for c in changed.criteria), len(changed)
      (2, 8)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} is not in 0..1")
    rng = _generator("noisy", seed, id)
    criteria = list(rubric.criteria)
    count = max(1, round(fraction * len(criteria))) if fraction else 0
    here = {normalised(c.description) for c in criteria}
    for at in sorted(rng.sample(range(len(criteria)), count)):
        donors = [rng.choice(_other(pool, rng, id).criteria) for _ in range(_DRAWS)]
        alike = [donor for donor in donors if donor.kind == criteria[at].kind]
        donor = next((d for d in (*alike, *donors) if normalised(d.description) not in here), None)
        if donor is None:
            raise ValueError(f"no criterion of another question is new to the rubric of {id!r}")
        here.add(normalised(donor.description))
        if donor.kind == criteria[at].kind:
            donor = replace(criteria[at], title=donor.title, description=donor.description)
        criteria[at] = donor
    return Rubric(tuple(criteria))


def leave_one_out(rubric: Rubric) -> list[Rubric]:
    """The rubric without its first criterion, without its second, and so on.

    Raises:
      ValueError: fewer than two criteria, so nothing would be left.

    Examples:
      >>> len(generic_rubric()), [len(rubric) for rubric in leave_one_out(generic_rubric())]
      (8, [7, 7, 7, 7, 7, 7, 7, 7])
    """
    criteria = rubric.criteria
    if len(criteria) < 2:
        raise ValueError(f"leaving one of {len(criteria)} criteria out leaves no rubric to show")
    return [Rubric(criteria[:k] + criteria[k + 1 :]) for k in range(len(criteria))]


def reduced(rubric: Rubric, *, seed: int, id: str, keep: int | float = 0.5, purpose: str = "reduced") -> Rubric:
    """A random subset of the criteria, in their order. It has a criterion of positive weight if the rubric has one.

    Args:
      rubric: the whole.
      seed: with `id`, decides which criteria stay.
      id: the example's id.
      keep: how many criteria stay: an int is their number, a float in (0, 1] their fraction, rounded up.
      purpose: another one draws others.

    Raises:
      ValueError: keep is not positive, or a float above 1.

    Examples:
      >>> len(reduced(generic_rubric(), seed=0, id="q1", keep=0.5)), len(reduced(generic_rubric(), seed=0, id="q1", keep=3))
      (4, 3)
    """
    if keep <= 0 or (isinstance(keep, float) and keep > 1):
        raise ValueError(f"keep {keep} is neither a positive number of criteria nor a fraction in (0, 1]")
    size = len(rubric.criteria)
    count = math.ceil(keep * size) if isinstance(keep, float) else min(keep, size)
    order = _generator(purpose, seed, id).sample(range(size), size)
    positive = next((at for at in order if rubric.criteria[at].weight > 0), order[0])
    kept = sorted([positive, *(at for at in order if at != positive)][:count])
    return Rubric(tuple(rubric.criteria[at] for at in kept))


def with_dropout(rubric: Rubric, *, seed: int, id: str, place: int, share: float, keep: int) -> Rubric:
    """The rubric without a random share of its criteria (rounded down), in their order (Rubric Dropout, arXiv 2608.11669).

    A criterion of positive weight stays if the rubric has one.

    Args:
      rubric: the whole.
      seed, id, place: decide which criteria go; `place` is the rollout's, so that each time others go.
      share: of the criteria that go.
      keep: how many stay at least.

    Examples:
      >>> drawn = [with_dropout(generic_rubric(), seed=0, id="q1", place=p, share=0.5, keep=3) for p in range(9)]
      >>> {len(rubric) for rubric in drawn}, len(set(drawn)) > 1
      ({4}, True)
    """
    size = len(rubric.criteria)
    stay = min(size, max(keep, size - math.floor(share * size)))
    return reduced(rubric, seed=seed, id=f"{id}:{place}", keep=stay, purpose="dropout")


def _other(pool: Pool, rng: random.Random, id: str) -> Rubric:
    at = rng.randrange(max(len(pool), 1))
    for step in range(len(pool)):
        other, rubric = pool[(at + step) % len(pool)]
        if other != id:
            return rubric
    raise ValueError(f"the pool holds no question other than {id!r}")


def _generator(purpose: str, seed: int, id: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{purpose}:{seed}:{id}".encode()).digest())
