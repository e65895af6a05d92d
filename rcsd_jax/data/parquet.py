"""Examples from Parquet: one file, or a folder of them in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rcsd_jax.data import records
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError, first_line


def read_parquet(path: str | Path, **settings: Any) -> list[Example]:
    """Reads a file or a folder of files, as `jsonl.read_jsonl` reads lines; rows are counted through all files.

    Raises:
      UserError: also for files that are missing, empty or not Parquet.
    """
    path = Path(os.path.expanduser(path))  # unchanged if there is no such user
    return records.to_examples(_rows(path), file=path, origin=path.stem, **settings)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Late: takes a third of a second.
    import pyarrow
    import pyarrow.parquet

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    row = 0
    try:
        for file in files:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    # Values that Python cannot represent, such as invalid UTF-8 and dates beyond its calendar, raise any of these.
    except (OSError, ValueError, ArithmeticError, LookupError, pyarrow.ArrowException) as error:
        remedy = "name a .parquet file, or a folder of them, that can be read"
        raise UserError(f"cannot be read ({first_line(error)})", remedy=remedy, file=path) from error
