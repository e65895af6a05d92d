"""An append-only log of values by key, so that costly values are not made twice.

A file has one JSON line per value: `{"key": "<its key>", ...}`. After a kill:

- At most the last line is torn. The next opening cuts it off and counts it. Any other damage is refused, also
  an unfinished line of a foreign file: nothing is cut off that this module did not write.
- `put` returns when the line is with the operating system, `put_batch` when its lines are on the disk.
- Behind a URL the file is written whole. `put` does so at most every 30 seconds, so that a kill loses that time's values;
  `put_batch` and `close` do so before they return.

One process writes a file. Others hold the same values in memory: see `host.shared_log`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, ItemsView, Iterable, Mapping
from typing import IO, Any, Generic, Self, TypeVar

import numpy as np

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, Log, as_path, is_remote, told_if_refused

T = TypeVar("T")

_START = b'{"key": "'  # of every line


def key_of(*parts: Any) -> str:
    """The hash (SHA-256, hexadecimal) of everything that decides a value.

    Args:
      *parts: JSON values; arrays count as lists, and the order of a mapping's keys does not count.

    Examples:
      >>> first = key_of({"model": "8b"}, np.array([1, 2]), 0)
      >>> len(first), first == key_of({"model": "8b"}, [1, 2], 0), first == key_of({"model": "8b"}, [1, 2], 1)
      (64, True, False)
    """
    text = json.dumps(list(parts), sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


@dataclasses.dataclass(frozen=True)
class Codec(Generic[T]):
    """How the values of a log are written and read.

    Attributes:
      noun: the name of a line's content in error messages, such as "a judge's answer".
      remedy: what the user can do about a damaged line.
      to_record: a value as a JSON object, without its key.
      from_record: the value of such an object, which holds "key" too. It raises ValueError, KeyError, TypeError or
        OverflowError for any other.
    """

    noun: str
    remedy: str
    to_record: Callable[[T], dict[str, Any]]
    from_record: Callable[[dict[str, Any]], T]


class KeyedLog(Generic[T]):
    """Values by key: all in memory, and in a file unless there is no path. A context.

    Attributes:
      path: the file, or None.
      torn_lines: how many unfinished lines were cut off when the file was opened: 0 or 1.
    """

    def __init__(self, path: str | AnyPath | None, codec: Codec[T], *, exclusive: bool = False):
        """Opens the log and makes its folder. The file is made with the first value.

        Args:
          path: the file.
          codec: how its lines are written and read.
          exclusive: make the file now, and refuse it while another process has it open. A file behind a URL cannot be
            locked: the user must see to it that no other job uses it.

        Raises:
          UserError: the file cannot be written, another process has it open, or a line is not one of these values.
        """
        self.path = None if path is None else as_path(path)
        self.torn_lines = 0
        self._codec = codec
        self._held: dict[str, T] = {}
        self._log: Log | None = None
        self._lock: IO[bytes] | None = None
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if exclusive and not is_remote(self.path):
                self._lock = self.path.open("ab")
        except OSError as error:
            remedy = "choose another place for it"
            raise UserError(f"cannot be written ({error.strerror})", file=self.path, remedy=remedy) from error
        try:
            self._claim()
            if self.path.exists():
                self._load(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def get(self, key: str) -> T | None:
        """The value of a key, or None."""
        return self._held.get(key)

    def items(self) -> ItemsView[str, T]:
        """Every key with its value, in the order in which they were written."""
        return self._held.items()

    def put(self, key: str, value: T) -> None:
        """Adds a value. A key that exists keeps its value.

        Raises:
          WriteFailed: the store behind a URL refuses it.
        """
        self._add([(key, value)])

    def put_batch(self, batch: Iterable[tuple[str, T]]) -> None:
        """Adds values and syncs the file. Keys that exist keep their values.

        Raises:
          WriteFailed: the store behind a URL refuses them.
        """
        if self._add(batch) and self._log is not None:
            self._log.sync()

    def close(self) -> None:
        """Syncs the file and releases it."""
        try:
            if self._log is not None:
                self._log.close()
        finally:
            if self._lock is not None:
                self._lock.close()
            self._log = self._lock = None

    def _add(self, batch: Iterable[tuple[str, T]]) -> bool:
        """Writes the values of new keys; returns whether there were any."""
        fresh: dict[str, T] = {}
        for key, value in batch:
            if key not in self._held:
                fresh.setdefault(key, value)
        if fresh and self.path is not None:
            if self._log is None:
                self._log = Log(self.path)
            records = ({"key": key} | self._codec.to_record(value) for key, value in fresh.items())
            self._log.write("\n".join(map(json.dumps, records)))
        self._held.update(fresh)
        return bool(fresh)

    def _claim(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait for it, or choose another place for this one"
            raise UserError("another run has this file open", file=self.path, remedy=remedy) from error

    def _load(self, path: AnyPath) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        if rest and _is_torn(rest):
            _cut_off(path, lines)
            self.torn_lines, rest = 1, b""
        for row, line in enumerate([*lines, rest] if rest else lines, start=1):
            try:
                record = json.loads(line)
                key, value = record["key"], self._codec.from_record(record)
                if not isinstance(key, str):
                    raise TypeError("key is no str")
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                problem = f"not {self._codec.noun} ({error})"
                raise UserError(problem, remedy=self._codec.remedy, file=path, row=row) from error
            self._held.setdefault(key, value)


def _is_torn(rest: bytes) -> bool:
    """Whether the text after the last line break is a log line that a kill or a crash of the machine left unfinished.

    A line without its break is unfinished, even if it decodes.
    """
    return rest[: len(_START)] == _START[: len(rest)] or not rest.strip(b"\0")


def _cut_off(path: AnyPath, lines: list[bytes]) -> None:
    """Keeps only the whole lines."""
    if not is_remote(path):
        os.truncate(path, sum(len(line) + 1 for line in lines))
        return
    with told_if_refused(path):
        path.write_bytes(b"".join(line + b"\n" for line in lines))
