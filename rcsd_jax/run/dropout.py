"""Rubric dropout: each rollout leaves out other criteria, from what the teacher sees and from what grades completions.

Which ones follows from the run's seed, the rollout's place in the order of the data, and the row. So every process leaves out the same,
the completions of a question share them, and a resumed run leaves out what it would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rcsd_jax.data.examples import Example
from rcsd_jax.rubrics import variants
from rcsd_jax.settings.stage import Settings


def with_dropout(examples: Sequence[Example], place: int, config: Settings) -> list[Example]:
    """The examples with a random part of their rubrics; unchanged without `rubric.dropout`.

    Args:
      examples: of a rollout; those without a rubric stay as they are.
      place: of the rollout's rows in the order of the data.
      config: of the run.
    """
    rubric = config.rubric
    if not rubric.dropout:
        return list(examples)
    how: dict[str, Any] = dict(seed=config.seed, place=place, share=rubric.dropout, keep=rubric.min_criteria)
    return [
        one
        if one.rubric is None
        else dataclasses.replace(one, rubric=variants.with_dropout(one.rubric, id=one.id, **how))
        for one in examples
    ]
