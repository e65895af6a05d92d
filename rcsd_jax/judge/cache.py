"""What a judge answered, kept on disk as it arrives, so that nothing is asked and paid for twice.

One JSON line per answer, append only, with the operating system before the next one is received: a kill leaves at most one
torn line, the last, which the next opening cuts off. What is kept is the judge's text, from which decisions are read anew.
Behind a URL the file is written whole, at most every 30 seconds (`rcsd_jax.host.files.Log`): a kill loses that time's answers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import ItemsView, Mapping
from typing import IO, Any

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, Log, as_path, is_remote
from rcsd_jax.judge.asking import Answer

_KEPT = {"text": str, "cut": bool, "requests": int, "input_tokens": int, "output_tokens": int, "uncounted": int}
_START = b'{"key": "'  # of every line


def key_of(identity: Mapping[str, Any], prompt: str, attempt: int) -> str:
    """The hash (SHA-256, hexadecimal) of all that decides an answer.

    Args:
      identity: what identifies the judge and how it is asked, JSON values; never a secret.
      prompt: what it is asked.
      attempt: 0, then counting the re-asks.
    """
    parts = [dict(identity), prompt, attempt]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class AnswerCache:
    """Answers by key: all in memory, and on disk unless there is no path. A context; one process at a time has a file.

    Attributes:
      path: the file, or None.
      torn_lines: unfinished lines cut off when the file was opened: 0 or 1.
    """

    def __init__(self, path: str | AnyPath | None):
        """Opens the cache, making the file and its folder where absent.

        Raises:
          UserError: it cannot be written, another process has it open, or a line other than the last is not one that
            this class wrote. A file behind a URL cannot be locked: that no other job uses it is for the user to see to.
        """
        self.path = None if path is None else as_path(path)
        self.torn_lines = 0
        self._held: dict[str, Answer] = {}
        self._log: Log | None = None
        self._lock: IO[bytes] | None = None
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = None if is_remote(self.path) else self.path.open("ab")
        except OSError as error:
            raise UserError(
                f"the judge's answers cannot be written ({error.strerror})",
                file=self.path,
                remedy="choose another place for them",
            ) from error
        try:
            self._claim()
            if self.path.exists():
                self._load(self.path)
            self._log = Log(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def get(self, key: str) -> Answer | None:
        """What was answered under the key, or None."""
        return self._held.get(key)

    def items(self) -> ItemsView[str, Answer]:
        """Every key with its answer, in the order in which they arrived."""
        return self._held.items()

    def put(self, key: str, answer: Answer) -> None:
        """Adds an answer. A key held already stays as it is.

        Raises:
          ValueError: there is no text.
        """
        if answer.text is None:
            raise ValueError("only answers are kept; what got none is asked again by the next run")
        if key in self._held:
            return
        if self._log is not None:
            self._log.write(json.dumps({"key": key} | {name: getattr(answer, name) for name in _KEPT}))
        self._held[key] = answer

    def close(self) -> None:
        """Syncs the file and lets others have it."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.close()
        self._log = self._lock = None

    def _claim(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "another run has the judge's answers open",
                file=self.path,
                remedy="wait for it, or choose another place for them",
            ) from error

    def _load(self, path: AnyPath) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        if rest and not is_remote(path) and (rest[: len(_START)] == _START[: len(rest)]):
            # No line break, so not finished, even if it decodes. Another file's last line is not ours to cut off.
            os.truncate(path, sum(len(line) + 1 for line in lines))
            self.torn_lines, rest = 1, b""
        for row, line in enumerate([*lines, rest] if rest else lines, start=1):
            try:
                key, answer = _from_line(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"not a judge's answer ({error})",
                    remedy="remove this line, or the file to have everything judged again",
                    file=path,
                    row=row,
                ) from error
            self._held.setdefault(key, answer)


def _from_line(line: bytes) -> tuple[str, Answer]:
    record = json.loads(line)
    for name, kind in {"key": str, **_KEPT}.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    return record["key"], Answer(**{name: record[name] for name in _KEPT})
