"""Examples from a JSON Lines file: one object per line, UTF-8."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rcsd_jax.data import records
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError


def read_jsonl(path: str | Path, **settings: Any) -> list[Example]:
    """Reads a JSONL file; blank lines are skipped. Other arguments and errors as in `records.to_examples`.

    A row without an id gets one that begins with the file's name without its suffix.

    Raises:
      UserError: also for a file that is missing, empty or not UTF-8, and a line that is not a JSON object.
    """
    path = Path(os.path.expanduser(path))  # unchanged if there is no such user
    return records.to_examples(_lines(path), file=path, origin=path.stem, **settings)


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no path
        remedy = "name a .jsonl file that can be read"
        raise UserError(f"cannot be read ({getattr(error, 'strerror', error)})", remedy=remedy, file=path) from error
    if not raw.strip():
        raise UserError("the file is empty", remedy="give a file with one JSON object per line", file=path)
    for row, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 at byte {error.start} of the line"
            raise UserError(problem, remedy="save the file as UTF-8", file=path, row=row) from error
        except (ValueError, RecursionError) as error:
            shown = line[:60].decode("utf-8", "replace")
            remedy = "give one complete JSON object per line"
            raise UserError(f"invalid JSON ({error}) in {shown!r}", remedy=remedy, file=path, row=row) from error
        if not isinstance(record, dict):
            problem = f"a JSON {type(record).__name__}, not an object: {str(record)[:60]!r}"
            raise UserError(problem, remedy="give one JSON object per line", file=path, row=row)
        yield row, record
