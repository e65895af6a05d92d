"""Roles: what student and teacher see. A role is a list of fields and a thinking switch; a prompt is data.

Both roles go through the tokenizer's own chat template, as one user message:

    [definition]                 what the task is (rubric writing)
    question
    heading, content             for every further field that the role sees
    request                      what to write now

Of a conversation, the earlier turns come first and the last user turn is this message. The further fields may stand in a system turn
instead. The completion follows the generation prompt directly, in both roles, so the same completion tokens can be scored in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rcsd_jax.data.examples import Example, asked_text
from rcsd_jax.host import checks
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.padding import pad_left as pad_left
from rcsd_jax.host.padding import pad_right as pad_right
from rcsd_jax.rubrics.schema import to_json

# What a field name in a role shows of an example; None means that the example does not have it.
FIELDS: dict[str, Callable[[Example, str], str | None]] = {
    "question": lambda example, style: example.question,
    "reference": lambda example, style: example.reference,
    "answer": lambda example, style: example.answer,
    "solution": lambda example, style: example.solution,
    "rubric": lambda example, style: None if example.rubric is None else to_json(example.rubric, style=style),
    "success": lambda example, style: example.extra.get("success"),
    "feedback": lambda example, style: example.extra.get("feedback"),
}
ATTEMPT_FIELDS = ("success", "feedback")
"""Fields that training puts into `extra`: of a question's completions, one that succeeded, and what a grader said of one."""

ATTEMPTS_SHOWN = ("all", "any", "first")
"""Which of a role's attempt fields it sees: all or nothing, those that there are, or the first that there is."""

FURTHER = ("criteria", "purified", "other_row", "failure")
"""Further contexts of a teacher, with which its own is contrasted: without each criterion; without the question; with another row's
material in the place of its own; with a completion of the group that failed in the place of one that succeeded."""

ABOUT_THE_CONVERSATION = ("write_rubric",)
"""Tasks that are about a conversation and do not continue it: their prompt shows it as one text."""

PLACES = ("user", "system")
"""The turn in which a role's further fields may stand."""

TRANSITIONS = ("turn", "raw")
"""What follows the analysis of a teacher that reasons first: a user turn, or text without the template (the authors' release)."""

ENGLISH: dict[str, Any] = {
    "rubric_style": "objects",
    "headings": {
        "reference": "Reference answer:",
        "answer": "Final answer:",
        "solution": "Solution, step by step:",
        "rubric": "Criteria that an excellent answer meets (JSON):",
        "success": "An earlier answer that was right:",
        "feedback": "What was found wrong with an earlier answer:",
    },
    "solve": {
        "definition": "",
        "request": "Reason step by step, and put your final answer within \\boxed{}.",
    },
    "write_rubric": {
        "definition": (
            "Write a grading rubric for answers to the question below. Each criterion is self-contained: a grader who sees "
            "only the criterion and an answer can decide whether it is met. A criterion is an object with a `title` (2 to 5 "
            "words), a `description` (one requirement, at most 40 words, starting with its class) and an integer `weight`. "
            'The classes are "Essential Criteria:" (weight 9 to 10, without it the answer fails), "Important Criteria:" '
            '(5 to 8), "Optional Criteria:" (1 to 4) and "Pitfall Criteria:" (a mistake the answer must not make, -1 to '
            "-5). Give between 3 and 25 criteria."
        ),
        "request": "Answer with the JSON array of criteria and nothing else.",
    },
    "reason": {
        "request": (
            "Before any answer is written: in a short paragraph, say what the material above demands of a good answer and "
            "where a careless answer would go wrong. Do not solve the problem."
        ),
        "transition": (
            "Now do this as if you had only the question before you, without citing or mentioning any of the other "
            "material."
        ),
    },
}
"""The default prompts; a config may replace any of these strings."""

_ANALYSIS = "\u2402ANALYSIS\u2403"  # stands for the sampled analysis while the template renders the turns around it


@dataclasses.dataclass(frozen=True)
class Role:
    """What one role sees: `fields` in order (names of `FIELDS`), the chat template's thinking switch, and the turn in which the
    fields besides the question stand, one of `PLACES`.

    Examples:
      >>> Role(("question", "reference"))
      Role(fields=('question', 'reference'), thinking=False, shown_in='user')
      >>> Role(("reference",))
      Traceback (most recent call last):
      rcsd_jax.host.errors.UserError: field 'fields' = ('reference',): a role must see the question; add 'question'
    """

    fields: tuple[str, ...]
    thinking: bool = False
    shown_in: str = checks.one_of(PLACES, default="user")

    def __post_init__(self) -> None:
        checks.choices(self)
        for name in self.fields:
            if name not in FIELDS:
                raise UserError("unknown field in a role", field="fields", value=name, remedy=f"use {sorted(FIELDS)}")
        if "question" not in self.fields:
            raise UserError("a role must see the question", field="fields", value=self.fields, remedy="add 'question'")


def user_message(
    example: Example, role: Role, prompts: Mapping[str, Any], task: str, *, request: str | None = None
) -> str:
    """The text of the user turn that `role` sees; `request` replaces the task's own.

    Raises:
      UserError: the example lacks a field that the role must see.

    Examples:
      >>> example = Example("1", "6 * 7?", "It is 42.", None, None, "rows.jsonl:1")
      >>> print(user_message(example, Role(("question", "reference")), ENGLISH, "solve", request="Answer."))
      6 * 7?
      Reference answer:
      It is 42.
      Answer.
    """
    parts = [prompts[task].get("definition", "")]
    for name in role.fields:
        if name == "question":
            parts.append(asked_text(example) if task in ABOUT_THE_CONVERSATION else example.question)
        elif role.shown_in == "user":
            parts += _shown(example, name, prompts)
    parts.append(prompts[task]["request"] if request is None else request)
    return "\n".join(part for part in parts if part)


def messages(
    example: Example, role: Role, prompts: Mapping[str, Any], task: str, *, request: str | None = None
) -> list[dict[str, str]]:
    """The turns that `role` sees, of which the last is `user_message`.

    Raises:
      UserError: as `user_message`.
    """
    turns = [] if task in ABOUT_THE_CONVERSATION else [turn._asdict() for turn in example.history]
    if role.shown_in == "system":
        shown = [text for name in role.fields if name != "question" for text in _shown(example, name, prompts)]
        if turns and turns[0]["role"] == "system":
            shown = [f"{turns.pop(0)['content']}\n", *shown]  # most templates know one system turn, at the beginning
        if shown:
            turns.insert(0, {"role": "system", "content": "\n".join(shown)})
    return [*turns, {"role": "user", "content": user_message(example, role, prompts, task, request=request)}]


def _shown(example: Example, name: str, prompts: Mapping[str, Any]) -> list[str]:
    """A field's heading and content."""
    content = FIELDS[name](example, prompts["rubric_style"])
    if not content:
        raise UserError(
            f"no {name} although a role must see it",
            file=example.origin,
            field=name,
            remedy=f"add it to the row, or take '{name}' out of the role's fields",
        )
    return [prompts["headings"][name], content]


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, thinking: bool, origin: Any = None) -> str:
    """A conversation through the tokenizer's chat template, up to the generation prompt.

    Some templates refuse a system turn (Gemma's). Then its text stands in the user's turn: `without_system_turns`.

    Args:
      tokenizer: of the model.
      messages: the turns.
      thinking: the template's switch.
      origin: the row, as an error names it.

    Raises:
      UserError: the template fails.
    """
    try:
        return _rendered(tokenizer, messages, thinking)
    except jinja2.TemplateError as error:
        roles = [message["role"] for message in messages]
        if "system" in roles and refuses_system_turns(tokenizer):
            return chat_text(tokenizer, without_system_turns(messages), thinking=thinking, origin=origin)
        problem = (
            f"the tokenizer's chat template fails on turns of {', '.join(roles)} ({type(error).__name__}: {error})"
        )
        remedy = "repair chat_template.jinja in the model's directory, or use another model"
        raise UserError(problem, field="chat_template", remedy=remedy, file=origin) from error


def without_system_turns(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The turns with the text of each system turn at the beginning of the user's next turn, after which a blank line follows.

    Examples:
      >>> without_system_turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
      [{'role': 'user', 'content': 'Be brief.\\n\\nWhy?'}]
    """
    turns: list[dict[str, str]] = []
    before = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            before += f"{content}\n\n"
        elif role == "user":
            turns.append({"role": role, "content": before + content})
            before = ""
        else:
            turns.append({"role": role, "content": content})
    return turns


def refuses_system_turns(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template refuses a system turn, and takes the same conversation without it."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    try:
        _rendered(tokenizer, turns, False)
    except jinja2.TemplateError:
        with contextlib.suppress(jinja2.TemplateError):
            _rendered(tokenizer, turns[1:], False)
            return True
    return False


def _rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]], thinking: bool) -> str:
    return tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )


def role_text(
    tokenizer: Any, example: Example, role: Role, prompts: Mapping[str, Any], task: str, *, request: str | None = None
) -> str:
    """The prompt that `role` sees as text, through the tokenizer's chat template; the completion is appended to it.

    Raises:
      UserError: as `user_message`, or the template fails.
    """
    turns = messages(example, role, prompts, task, request=request)
    return chat_text(tokenizer, turns, thinking=role.thinking, origin=example.origin)


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids [P] int32 of each text, as it stands: no special tokens are added. All at once use every core."""
    if not texts:
        return []
    # A template already wrote the special tokens; adding them again would shift every position.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    return [np.asarray(tokens, np.int32) for tokens in encoded["input_ids"]]


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, thinking: bool) -> np.ndarray:
    """Token ids [P] int32 of a conversation through the tokenizer's chat template, up to the generation prompt."""
    return encode_texts(tokenizer, [chat_text(tokenizer, messages, thinking=thinking)])[0]


def encode_role(tokenizer: Any, example: Example, role: Role, prompts: Mapping[str, Any], task: str) -> np.ndarray:
    """Token ids [P] int32 of the prompt that `role` sees; the completion is appended to them."""
    return encode_texts(tokenizer, [role_text(tokenizer, example, role, prompts, task)])[0]


def encode_reason_first(
    tokenizer: Any,
    example: Example,
    role: Role,
    prompts: Mapping[str, Any],
    task: str,
    *,
    transition: str = "turn",
    thinking: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's context when it writes an analysis before the completion is scored (the authors' release).

    Args:
      tokenizer, example, role, prompts, task: as of `encode_role`; the role's thinking switch is that of the completion.
      transition: one of `TRANSITIONS`.
      thinking: the switch of the analysis; None: the role's.

    Returns:
      prompt: token ids up to where the analysis is sampled, those of `role_text` with the request of "reason".
      transition: token ids between the analysis and the completion, the same for all examples: the end of that turn, the
        user turn that repeats the task's request, to be met as if unaided, and the generation prompt. "raw": the end token
        and the same words, in no turn.
    """
    asked_for = messages(example, role, prompts, task, request=prompts["reason"]["request"])
    words = f"{prompts['reason']['transition']}\n{prompts[task]['request']}".strip()
    switch = role.thinking if thinking is None else thinking
    before = chat_text(tokenizer, asked_for, thinking=switch, origin=example.origin)
    if transition == "raw":
        prompt, raw = encode_texts(tokenizer, [before, f"{tokenizer.eos_token}\n\n\n{words}\n"])
        return prompt, raw
    turns = [*asked_for, {"role": "assistant", "content": _ANALYSIS}, {"role": "user", "content": words}]
    text = chat_text(tokenizer, turns, thinking=role.thinking, origin=example.origin)
    _, marker, after = text.rpartition(_ANALYSIS)  # the last: a row's text may hold the same characters
    if not marker:
        raise UserError(
            "the chat template drops the assistant's earlier turn, which reason-first needs",
            field="teacher.reason_tokens",
            remedy="set teacher.reason_tokens=0 or use a template that keeps every turn",
        )
    prompt, turn = encode_texts(tokenizer, [before, after])
    return prompt, turn
