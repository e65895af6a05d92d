"""Gives rows the rubrics of `rubric.source`, if these need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.rubrics.settings import RubricSettings
from rcsd_jax.rubrics.sources import RUBRIC_SOURCES, Given


def with_rubrics(examples: Sequence[Example], settings: RubricSettings, *, generic: Rubric, seed: int) -> list[Example]:
    """The examples with their rubrics from a source; unchanged if they keep their own, or if a model writes them.

    Args:
      examples: all rows, from which the criteria of others are drawn.
      settings: the source, and how much of a rubric it changes.
      generic: the rubric that fits any question of the data.
      seed: with a row's id, decides the draws.

    Raises:
      UserError: a row for which the source has no rubric.
    """
    make = RUBRIC_SOURCES[settings.source].make
    if make is None:
        return list(examples)
    pool = [(e.id, e.rubric) for e in examples if e.rubric is not None]
    fractions = settings.noisy_fraction, settings.reduced_fraction
    varied = []
    for example in examples:
        try:
            rubric = make(Given(example.id, example.rubric, pool, generic, seed, *fractions))
        except ValueError as error:
            raise UserError(
                str(error),
                file=example.origin,
                field="rubric.source",
                value=settings.source,
                remedy="give more rows with rubrics, or choose another rubric.source",
            ) from error
        varied.append(dataclasses.replace(example, rubric=rubric))
    return varied
