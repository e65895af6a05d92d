"""The one record that every data source yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import Rubric


class Turn(NamedTuple):
    """A turn of a conversation: its role, "system", "user" or "assistant", and its text."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A question, and what is known about it.

    Attributes:
      id: unique within its source and stable between runs; variants of rubrics and caches are keyed by it.
      question: the text that the student sees; of a conversation, the last user turn.
      reference: a reference answer or solution, or None.
      rubric: the ground-truth rubric, or None.
      answer: only the final answer, for exact grading, or None.
      origin: the source and the row in it, as errors name them.
      extra: the source's other fields, unchanged.
      history: the turns before the question; empty unless it is the last turn of a conversation.
      accepted: the answers of which a grader accepts any, if the source lists several; `reference` or `answer` is the first.
      source: the name of its part, if the data is a mixture.
      solution: a whole chain of thought that leads to the answer, where `reference` is shorter; None unless a role sees it.
    """

    id: str
    question: str
    reference: str | None
    rubric: Rubric | None
    answer: str | None
    origin: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()
    accepted: tuple[str, ...] = ()
    source: str = ""
    solution: str | None = None


def asked_text(example: Example) -> str:
    """What is asked, as one text: the question, or the whole conversation up to it with each turn under its role.

    Examples:
      >>> print(asked_text(Example("1", "And 7 * 6?", None, None, None, "", history=(Turn("user", "6 * 7?"), Turn("assistant", "42")))))
      [user]
      6 * 7?
      [assistant]
      42
      [user]
      And 7 * 6?
    """
    if not example.history:
        return example.question
    turns = (*example.history, Turn("user", example.question))
    return "\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)


def rubric_of(example: Example) -> Rubric:
    """The rubric of an example that must have one.

    Raises:
      UserError: it has none.
    """
    if example.rubric is None:
        raise UserError("no rubric", file=example.origin, field="rubric", remedy="give the row a rubric")
    return example.rubric
