"""Conversations as rows hold them: lists of {role, content} or {from, value}, whose content is text or a list of parts.

The model writes the next answer. So the last turn is the user's; an answer after it is the reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rcsd_jax.data.examples import Turn

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""Names of roles in published conversations -> the role in a chat template."""
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")


class Unusable(ValueError):
    """A conversation that cannot be learned from; the message ends a sentence that begins with "a row with"."""


class Conversation(NamedTuple):
    """A conversation up to a user turn.

    Attributes:
      history: the turns before that one.
      question: its text.
      reply: the text of the answer after it, or None.
    """

    history: tuple[Turn, ...]
    question: str
    reply: str | None


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, readable or not.

    Examples:
      >>> is_conversation([{"from": "human", "value": "Why?"}]), is_conversation([{"content": "Why?"}]), is_conversation("Why?")
      (True, False, False)
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(turn, Mapping) and _first(turn, ROLE_KEYS) is not None for turn in value)


def decoded(value: Any) -> Any:
    """A list of turns that is stored as JSON text; any other value is returned as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return inner if is_conversation(inner) else value
    return value


def keys_of(value: Sequence[Mapping[str, Any]]) -> str:
    """The keys of its turns, as they are told: "messages", or "from, value"."""
    return "messages" if "role" in value[0] else ", ".join(key for key in ("from", *CONTENT_KEYS) if key in value[0])


def split(turns: Sequence[Turn]) -> Conversation:
    """A conversation as what comes before the last user turn, that turn, and the answer after it.

    Raises:
      Unusable: why it has no next answer to learn.

    Examples:
      >>> split(turns_of([{"from": "human", "value": "Why?"}, {"from": "gpt", "value": [{"type": "text", "text": "So."}]}]))
      Conversation(history=(), question='Why?', reply='So.')
    """
    ends = turns and turns[-1].role == "assistant"
    before = turns[:-1] if ends else turns
    if not before or before[-1].role != "user":
        raise Unusable("a conversation that does not end with a user turn, or with one and an answer to it")
    return Conversation(tuple(before[:-1]), before[-1].content, turns[-1].content if ends else None)


def reply_to(question: str, value: Any) -> str | None:
    """The last answer of a conversation, if it is one to the question: its last user turn is the question, or it has none."""
    if not is_conversation(value):
        return None
    try:
        turns = turns_of(value)
    except Unusable:
        return None
    asked = [turn.content for turn in turns if turn.role == "user"]
    if not turns or turns[-1].role != "assistant" or (asked and asked[-1] != question):
        return None
    return turns[-1].content


def turns_of(value: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns of a list; an empty system turn is left out.

    Raises:
      Unusable: a turn cannot be read.
    """
    turns = []
    for turn in value:
        name = str(_first(turn, ROLE_KEYS))
        role = ROLES.get(name.strip().casefold())
        if role is None:
            raise Unusable(f"a turn of the role '{name}'")
        text = _text(_first(turn, CONTENT_KEYS)).strip()
        if text:
            turns.append(Turn(role, text))
        elif role != "system":
            raise Unusable("a turn without text")
    return turns


def pairs(value: Any) -> list[Turn] | None:
    """The turns of a list of [question, answer] pairs, as LLaMA-Factory's column "history" holds them; None if it is none."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    turns = []
    for pair in value:
        if (
            not isinstance(pair, (list, tuple))
            or len(pair) != 2
            or not all(isinstance(x, str) and x.strip() for x in pair)
        ):
            return None
        turns += [Turn("user", pair[0].strip()), Turn("assistant", pair[1].strip())]
    return turns


def _text(content: Any) -> str:
    """A turn's content as text: a text, or a list of parts of type text, joined by line breaks."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts = []
    for part in parts:
        if isinstance(part, Mapping):
            kind = part.get("type", "text")
            if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise Unusable(f"a turn that holds a part of type '{kind}'")
            part = part["text"]
        if not isinstance(part, str):
            raise Unusable(f"a turn whose content is of type {type(part).__name__}")
        texts.append(part)
    return "\n".join(texts)


def _first(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)
