"""Encodes rows as tokens: each role's prompt of an example, as token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.data.examples import Example, Turn, rubric_of
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import Role
from rcsd_jax.rubrics import variants
from rcsd_jax.rubrics.schema import to_json


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How rows become prompts.

    Attributes:
      student: the student's fields.
      teacher: the teacher's fields; attempts come during training, and only `teacher_prompt` includes them.
      texts: the texts of prompts around the fields, such as `contexts.ENGLISH`.
      task: what the model writes, a key of `texts`.
      reasons: whether the teacher writes an analysis first.
      transition: what then follows, see `contexts.TRANSITIONS`.
      reason_thinking: the chat template's thinking switch for the analysis.
      learns_references: whether completions are taken from the rows.
      further: the contexts with which the teacher also scores, of `contexts.FURTHER`; "" if there are none.
    """

    student: Role
    teacher: Role
    texts: Mapping[str, Any]
    task: str
    reasons: bool = False
    transition: str = "turn"
    reason_thinking: bool = False
    learns_references: bool = False
    further: str = ""

    @property
    def teacher_before(self) -> Role:
        """The teacher as its first prompt shows it: without the fields that come during training, and thinking as it is to analyse."""
        known = tuple(name for name in self.teacher.fields if name not in contexts.ATTEMPT_FIELDS)
        thinking = self.reason_thinking if self.reasons else self.teacher.thinking
        return dataclasses.replace(self.teacher, fields=known, thinking=thinking)

    def with_thinking(self, thinking: bool | None) -> Encoding:
        """The same with this switch for both roles' completions; None: as it is."""
        if thinking is None:
            return self
        student, teacher = (dataclasses.replace(role, thinking=thinking) for role in (self.student, self.teacher))
        return dataclasses.replace(self, student=student, teacher=teacher)

    @property
    def teacher_request(self) -> str | None:
        """The request for an analysis that replaces the task's own request; None without an analysis."""
        return self.texts["reason"]["request"] if self.reasons else None


class Ablations(NamedTuple):
    """The teacher's further prompts of an example, and their weights: those of the criteria that are left out, 1 on average; else 1."""

    prompts: list[np.ndarray]  # [Q] int32 of each; none unless `Encoding.further` names a kind
    weights: np.ndarray  # [K] float32


class Row(NamedTuple):
    """An example and each role's prompt of it, as token ids."""

    example: Example
    student: np.ndarray  # [P] int32
    teacher: np.ndarray  # [Q] int32
    reference: np.ndarray  # [n] int32; empty where a role writes the completions
    without: Ablations


class Longest(NamedTuple):
    """The lengths for which a run's static shapes are made."""

    student: int  # tokens
    teacher: int  # tokens
    further: int  # further prompts of a row


class Encoded(NamedTuple):
    """Rows as columns; `skipped` did not fit."""

    examples: list[Example]
    student: list[np.ndarray]  # [P] int32 each
    teacher: list[np.ndarray]  # [Q] int32 each
    transition: np.ndarray  # [U] int32, what follows the analysis of a teacher that reasons first; else empty
    skipped: int
    references: list[np.ndarray]  # [n] int32 each; empty where a role writes the completions
    without: list[Ablations]
    longest: Longest


def encode_rows(examples: Sequence[Example], tokenizer: Any, encoding: Encoding) -> list[Row]:
    """Every example as a `Row`, by one call of the tokenizer.

    Raises:
      UserError: an example lacks a field.
    """
    texts = [_texts_of(example, tokenizer, encoding) for example in examples]
    distinct = list(dict.fromkeys(x for t in texts for x in (t.student, t.teacher, t.reference, *t.without)))
    tokens = dict(zip(distinct, contexts.encode_texts(tokenizer, distinct), strict=True))
    end = [tokenizer.eos_token_id] if encoding.learns_references else []
    return [
        Row(
            example,
            tokens[text.student],
            tokens[text.teacher],
            np.asarray([*tokens[text.reference], *end], np.int32),
            Ablations([tokens[x] for x in text.without], _weights_of(example, encoding, len(text.without))),
        )
        for example, text in zip(examples, texts, strict=True)
    ]


def collate(rows: Sequence[Row], transition: np.ndarray, longest: Longest, *, skipped: int = 0) -> Encoded:
    """Rows as columns."""
    return Encoded(
        examples=[row.example for row in rows],
        student=[row.student for row in rows],
        teacher=[row.teacher for row in rows],
        transition=transition,
        skipped=skipped,
        references=[row.reference for row in rows],
        without=[row.without for row in rows],
        longest=longest,
    )


def longest_of(rows: Sequence[Row]) -> Longest:
    """The lengths of the longest among at least one row."""
    return Longest(
        max(len(row.student) for row in rows),
        max(len(prompt) for row in rows for prompt in (row.teacher, *row.without.prompts)),
        max(len(row.without.weights) for row in rows),
    )


def check_template(examples: Sequence[Example], tokenizer: Any, encoding: Encoding) -> None:
    """Renders one conversation of each sequence of turns, because a chat template may refuse some.

    Raises:
      UserError: it does; the error names the row.
    """
    if encoding.task in contexts.ABOUT_THE_CONVERSATION:
        return
    roles = {role.shown_in: role for role in (encoding.student, encoding.teacher)}
    for example in {tuple(turn.role for turn in e.history): e for e in reversed(examples) if e.history}.values():
        for role in roles.values():
            turns = [turn._asdict() for turn in (*example.history, Turn("user", example.question))]
            if role.shown_in == "system" and turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": example.question})  # any text
            contexts.chat_text(tokenizer, turns, thinking=role.thinking, origin=example.origin)


def say_where_system_turns_go(
    examples: Sequence[Example], tokenizer: Any, encoding: Encoding, say: Callable[[str], Any]
) -> None:
    """Calls `say` if a role sees system turns and the chat template refuses these."""
    shown = any(role.shown_in == "system" and len(role.fields) > 1 for role in (encoding.student, encoding.teacher))
    continued = examples if encoding.task not in contexts.ABOUT_THE_CONVERSATION else ()
    if not shown and not any(turn.role == "system" for example in continued for turn in example.history):
        return
    if contexts.refuses_system_turns(tokenizer):
        say("the chat template refuses system turns; their text stands at the beginning of the user's next turn")


def transition_of(example: Example, tokenizer: Any, encoding: Encoding) -> np.ndarray:
    """The tokens after the analysis of a teacher that reasons first, [U] int32, the same for all examples; otherwise empty."""
    if not encoding.reasons:
        return np.zeros((0,), np.int32)
    shown = encoding.teacher, encoding.texts, encoding.task
    how: dict[str, Any] = dict(transition=encoding.transition, thinking=encoding.reason_thinking)
    return contexts.encode_reason_first(tokenizer, example, *shown, **how)[1]


def teacher_prompt(
    tokenizer: Any, example: Example, encoding: Encoding, *, attempts: Sequence[str] = contexts.ATTEMPT_FIELDS
) -> np.ndarray:
    """The teacher's prompt of an example, [Q] int32; of its fields of attempts it has those in `attempts`."""
    hidden = set(contexts.ATTEMPT_FIELDS) - set(attempts)
    role = dataclasses.replace(encoding.teacher, fields=tuple(n for n in encoding.teacher.fields if n not in hidden))
    return contexts.encode_role(tokenizer, example, role, encoding.texts, encoding.task)


def reference_text(example: Example, encoding: Encoding) -> str:
    """The completion in the data, without its end; empty if a role writes completions."""
    if not encoding.learns_references:
        return ""
    if encoding.task == "write_rubric":
        return to_json(rubric_of(example), style=encoding.texts["rubric_style"])
    return example.reference or ""


class _Texts(NamedTuple):
    """The content of a `Row`, as text."""

    student: str
    teacher: str
    reference: str
    without: list[str]


def _texts_of(example: Example, tokenizer: Any, encoding: Encoding) -> _Texts:
    teacher, texts, task = encoding.teacher_before, encoding.texts, encoding.task
    return _Texts(
        contexts.role_text(tokenizer, example, encoding.student, texts, task),
        contexts.role_text(tokenizer, example, teacher, texts, task, request=encoding.teacher_request),
        reference_text(example, encoding),
        [contexts.role_text(tokenizer, one, teacher, texts, task) for one in _further(example, encoding)],
    )


def _further(example: Example, encoding: Encoding) -> list[Example]:
    """The examples of which the teacher's further prompts are made; none of those that are known only after sampling.

    Without each criterion: none for a rubric of one criterion, which gives no guidance.
    """
    if encoding.further == "criteria":
        if example.rubric is None or len(example.rubric.criteria) < 2:
            return []
        return [dataclasses.replace(example, rubric=rubric) for rubric in variants.leave_one_out(example.rubric)]
    if encoding.further == "purified":
        return [dataclasses.replace(example, question="", history=())]
    if encoding.further == "other_row" and "other_row" in example.extra:  # rows that are only evaluated have none
        return [dataclasses.replace(example, **example.extra["other_row"])]
    return []


def _weights_of(example: Example, encoding: Encoding, count: int) -> np.ndarray:
    """[count] float32: the criteria's weights, 1 on average; 1 for other further prompts."""
    if encoding.further != "criteria" or not count:
        return np.ones(count, np.float32)
    weights = np.abs([criterion.weight for criterion in rubric_of(example).criteria]).astype(np.float32)
    return weights / weights.mean()
