"""Sources of the teacher's rubrics. A new source is a line of `RUBRIC_SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rcsd_jax.rubrics import variants
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.rubrics.variants import Pool


class Given(NamedTuple):
    """The inputs from which a source makes a rubric.

    Attributes:
      id: of the row.
      rubric: the row's own; None if the source does not need it and the row has none.
      pool: the rubrics of all rows.
      generic: the rubric that fits any question.
      seed: decides the draws.
      noisy_fraction, reduced_fraction: see the keys of `rubric`.
    """

    id: str
    rubric: Rubric | None
    pool: Pool
    generic: Rubric
    seed: int
    noisy_fraction: float
    reduced_fraction: float


class RubricSource(NamedTuple):
    """How a row gets its rubric, and whether the row must have its own.

    Attributes:
      make: None if the row keeps its own rubric, or a model writes one. A ValueError says why there is none.
      of_row: whether the rubric is made from the row's own.
    """

    make: Callable[[Given], Rubric] | None
    of_row: bool = False


def _own(given: Given) -> Rubric:
    if given.rubric is None:
        raise ValueError("the row has no rubric")
    return given.rubric


def _noisy(given: Given) -> Rubric:
    return variants.noisy(_own(given), given.pool, seed=given.seed, id=given.id, fraction=given.noisy_fraction)


RUBRIC_SOURCES: dict[str, RubricSource] = {
    "data": RubricSource(None, of_row=True),
    "generic": RubricSource(lambda given: given.generic),
    "noisy": RubricSource(_noisy, of_row=True),
    "random": RubricSource(lambda given: variants.random_rubric(given.pool, seed=given.seed, id=given.id)),
    "reduced": RubricSource(
        lambda given: variants.reduced(_own(given), seed=given.seed, id=given.id, keep=given.reduced_fraction),
        of_row=True,
    ),
    "written": RubricSource(None),
}

GENERIC: dict[str, Callable[[], Rubric]] = {}
"""Data source -> its generic rubric, if `variants.generic_rubric` does not fit the words of its rows."""


def generic_rubric(data_source: str) -> Rubric:
    """The rubric that fits any question of a data source."""
    return GENERIC.get(data_source, variants.generic_rubric)()
