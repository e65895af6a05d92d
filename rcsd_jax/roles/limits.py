"""Limits of prompts and references: a row with a longer one is left out, or is an error. Nothing is ever cut."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import Role
from rcsd_jax.roles.encode import Ablations, Encoding, Row, reference_text


class Limits(NamedTuple):
    """The largest number of tokens, and whether more are an error.

    Attributes:
      student: of the student's prompt, `data.max_student_prompt`.
      teacher: of the teacher's prompt, `data.max_teacher_prompt`.
      writer: of a rubric writer's prompt, `rubric.max_prompt`.
      reference: of a completion from the data, `sampling.max_new_tokens`.
      fails: whether a longer row ends the run (`data.too_long`).
    """

    student: int
    teacher: int
    reference: int
    writer: int
    fails: bool = False

    def fit(self, row: Row) -> bool:
        """Whether a row is within all limits.

        Raises:
          UserError: it is not, and that is an error.
        """
        return (
            self.prompt_fits(row.example, row.student, role="student")
            and self.prompt_fits(row.example, row.teacher, role="teacher")
            and self.reference_fits(row.example, row.reference)
        )

    def without_too_long(self, row: Row) -> Row:
        """A row without those of the teacher's further prompts that are beyond the limit; its own is used in their place."""
        prompts, weights = row.without
        short = [len(prompt) <= self.teacher for prompt in prompts]
        if all(short):
            return row
        kept = Ablations([prompt for prompt, fits in zip(prompts, short, strict=True) if fits], weights[short])
        return row._replace(without=kept)

    def prompt_fits(self, example: Example, tokens: np.ndarray, *, role: str) -> bool:
        """Whether a prompt is within its role's limit; roles of evaluation count too: "base" and "trained" are the student.

        Raises:
          UserError: it is not, and that is an error.
        """
        what = f"the {role}'s prompt"
        if role in ("student", "base", "trained"):
            return self._within(self.student, "data.max_student_prompt", "question", what, example, tokens)
        if role == "rubric writer":
            return self._within(self.writer, "rubric.max_prompt", "question", what, example, tokens)
        return self._within(self.teacher, "data.max_teacher_prompt", "question", what, example, tokens)

    def reference_fits(self, example: Example, tokens: np.ndarray) -> bool:
        """Whether a completion from the data is within its limit.

        Raises:
          UserError: it is not, and that is an error.
        """
        return self._within(self.reference, "sampling.max_new_tokens", "reference", "the reference", example, tokens)

    def _within(self, limit: int, key: str, field: str, what: str, example: Example, tokens: np.ndarray) -> bool:
        if len(tokens) <= limit:
            return True
        if self.fails:
            raise UserError(
                f"{what} has {len(tokens)} tokens, more than {key} = {limit}",
                file=example.origin,
                field=field,
                value=getattr(example, field),
                remedy="raise the limit, or set data.too_long=skip",
            )
        return False

    def nothing_fits(self, count: int) -> UserError:
        """The error for data whose rows are all too long."""
        return UserError(
            f"no example is left: all {count} prompts (or references) are longer than the limits",
            field="data.max_teacher_prompt",
            value=self.teacher,
            remedy="raise data.max_student_prompt, data.max_teacher_prompt or, of references, sampling.max_new_tokens",
        )


class Bounds(NamedTuple):
    """Bounds that rows are compared with before they are tokenized; None: not compared."""

    student: int | None
    teacher: int | None
    reference: int | None


def may_exceed(examples: Sequence[Example], bounds: Bounds, tokenizer: Any, encoding: Encoding) -> list[int]:
    """The indexes of examples whose prompts or references may have more tokens than the bounds.

    All others certainly have not. The check is cheap, because nothing is tokenized.
    """

    def can(example: Example) -> bool:
        for role, request, limit, around in of_roles:
            turns = contexts.messages(example, role, encoding.texts, encoding.task, request=request)
            if len(turns) == 1:
                most = most_tokens(turns[0]["content"]) + around
            else:  # the template's part depends on the turns
                most = most_tokens(contexts.chat_text(tokenizer, turns, thinking=role.thinking, origin=example.origin))
            if most > limit:
                return True
        return bounds.reference is not None and most_tokens(reference_text(example, encoding)) >= bounds.reference

    of_roles = [
        (role, request, limit, _most_around(tokenizer, role))
        for role, request, limit in (
            (encoding.student, None, bounds.student),
            (encoding.teacher_before, encoding.teacher_request, bounds.teacher),
        )
        if limit is not None
    ]
    return [i for i, example in enumerate(examples) if can(example)]


def most_tokens(text: str) -> int:
    """The largest number of tokens of a text, with any tokenizer.

    A token is at least one byte of UTF-8. Text that is not ASCII may be normalised first, which makes it at most three times
    as long (Unicode's NFC), and some tokenizers put something before a text.
    """
    if text.isascii():
        return len(text) + 1
    return 3 * len(text.encode()) - 2 * sum(map(str.isascii, text)) + 1


def _most_around(tokenizer: Any, role: Role) -> float:
    """The largest number of tokens that the chat template puts around a message."""
    probe = f"x{string.printable}é漢x"
    around = contexts.chat_text(tokenizer, [{"role": "user", "content": probe}], thinking=role.thinking).split(probe)
    # A template that changes or repeats messages gives no bound, so every row must be tokenized.
    return math.inf if len(around) != 2 else most_tokens("".join(around))
