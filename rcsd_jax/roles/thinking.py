"""The thinking block of a completion, by token ids: where it ends, whether the prompt opens or ends it, and the answer after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rcsd_jax.checkpoints.settings import ModelSettings
from rcsd_jax.roles import contexts

_PROBE = "question"


@dataclasses.dataclass(frozen=True)
class ThinkingBlock:
    """How completions think.

    Attributes:
      begin: the token ids that open the block; empty if the tokenizer has none.
      end: the token ids that end it, at least one.
      opened: whether the prompt opens it, so that completions begin inside.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    opened: bool

    def answer(self, tokens: np.ndarray) -> np.ndarray | None:
        """The tokens [m] after the thinking block of a completion [n]; all of them if it never opens one; None if it does not end.

        Examples:
          >>> block = ThinkingBlock(begin=(8,), end=(9,), opened=False)
          >>> [block.answer(np.array(tokens)) for tokens in ([8, 5, 9, 7], [7, 7], [8, 5])]
          [array([7]), array([7, 7]), None]
        """
        end = _find(tokens, self.end)
        if end is not None:
            return tokens[end:]
        return None if self.opened or _find(tokens, self.begin) is not None else tokens

    def text(self, tokens: np.ndarray, decode: Callable[[np.ndarray], str]) -> str:
        """The answer as text; empty if the block does not end."""
        answer = self.answer(tokens)
        return "" if answer is None else decode(answer)


def block_of(tokenizer: Any, settings: ModelSettings, *, thinking: bool) -> ThinkingBlock | None:
    """The thinking block of completions that follow a prompt with this thinking switch.

    None if they can have none: the tokenizer does not have `model.thought_end` as tokens of its own, or the template already ends the
    block in the prompt.
    """
    begin, end = (ids_of(tokenizer, text) for text in (settings.thought_begin, settings.thought_end))
    if not end:
        return None
    prompt = contexts.chat_text(tokenizer, [{"role": "user", "content": _PROBE}], thinking=thinking)
    # The end of the turn, and the generation prompt.
    (after,) = contexts.encode_texts(tokenizer, [prompt.rpartition(_PROBE)[2]])
    if _find(after, end) is not None:
        return None
    return ThinkingBlock(begin, end, opened=_find(after, begin) is not None)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """A text's token ids if they are the same in every surrounding; empty otherwise.

    They are if the first and the last are added tokens, such as Qwen3's `</think>`, which are never merged with other text. The token
    for unknown text stands for any, so a text that needs it has none.
    """
    if not text:
        return ()
    ids = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    added = set(tokenizer.get_added_vocab().values())
    if text != tokenizer.unk_token:
        added.discard(tokenizer.unk_token_id)
    return tuple(ids) if ids and {ids[0], ids[-1]} <= added else ()


def _find(tokens: np.ndarray, ids: Sequence[int]) -> int | None:
    """The place after the first occurrence of `ids`; None if there is none."""
    count = len(ids)
    for at in np.flatnonzero(tokens == ids[0]) if count else ():
        if tuple(tokens[at : at + count]) == tuple(ids):
            return int(at) + count
    return None
