"""The one record that every data source yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import Rubric


@dataclass(frozen=True)
class Example:
    """A question, and what is known about it.

    Attributes:
      id: unique within its source and stable between runs; variants of rubrics and caches are keyed by it.
      question: the text that the student sees.
      reference: a reference answer or solution, or None.
      rubric: the ground-truth rubric, or None.
      answer: only the final answer, for exact grading, or None.
      origin: the source and the row in it, as errors name them.
      extra: the source's other fields, unchanged.
    """

    id: str
    question: str
    reference: str | None
    rubric: Rubric | None
    answer: str | None
    origin: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def rubric_of(example: Example) -> Rubric:
    """The rubric of an example that must have one.

    Raises:
      UserError: it has none.
    """
    if example.rubric is None:
        raise UserError("no rubric", file=example.origin, field="rubric", remedy="give the row a rubric")
    return example.rubric
