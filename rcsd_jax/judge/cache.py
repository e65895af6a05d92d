"""A judge's answers, kept on disk as they arrive, so that nothing is asked and paid for twice.

The file holds the judge's texts; decisions are read from them again. The file is a `host.keyed_log`.
"""

from __future__ import annotations

from typing import Any

from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.keyed_log import Codec, KeyedLog, key_of
from rcsd_jax.judge.asking import Answer

__all__ = ["AnswerCache", "key_of"]

_FIELDS = {"text": str, "cut": bool, "requests": int, "input_tokens": int, "output_tokens": int, "uncounted": int}


def _from_record(record: dict[str, Any]) -> Answer:
    for name, kind in _FIELDS.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    return Answer(**{name: record[name] for name in _FIELDS})


_CODEC = Codec(
    noun="a judge's answer",
    remedy="remove this line, or the file to have everything judged again",
    to_record=lambda answer: {name: getattr(answer, name) for name in _FIELDS},
    from_record=_from_record,
)


class AnswerCache(KeyedLog[Answer]):
    """Answers by `key_of(identity, prompt, attempt)`: all in memory, and on disk unless there is no path.

    `identity` identifies the judge and how it is asked, and holds no secret; `attempt` is 0, then counts the re-asks.
    """

    def __init__(self, path: str | AnyPath | None):
        """Opens the cache; makes the file and its folder if they are missing.

        Raises:
          UserError: as `KeyedLog`, which one process has at a time.
        """
        super().__init__(path, _CODEC, exclusive=True)

    def put(self, key: str, answer: Answer) -> None:
        """Adds an answer. A key that exists keeps its answer.

        Raises:
          ValueError: there is no text.
        """
        if answer.text is None:
            raise ValueError("only answers are kept; prompts without an answer are asked again by the next run")
        super().put(key, answer)
