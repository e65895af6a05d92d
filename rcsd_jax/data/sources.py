"""Sources of examples. A path names its source by its ending or by a prefix. A new source is a line of `SOURCES`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rcsd_jax.data.account import Account, ignored
from rcsd_jax.data.examples import Example
from rcsd_jax.data.hub import read_hub
from rcsd_jax.data.jsonl import read_jsonl
from rcsd_jax.data.mixtures import parts_of
from rcsd_jax.data.parquet import read_parquet
from rcsd_jax.data.tfds import read_tfds
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import MAX_CRITERIA, MIN_CRITERIA


@dataclasses.dataclass(frozen=True)
class Reading:
    """How rows are read; a source uses the fields it needs.

    Attributes:
      source: a key of `SOURCES`, if the path does not name its source.
      split: of a data set, if its path names none.
      data_dir: where TFDS keeps prepared data; None for its default.
      fields, require, min_criteria, max_criteria, incomplete, say, tell: see `records.to_examples`.
      count, seed, flawed: for a source that makes its rows: their number, their seed, and the share of flawed references.
    """

    source: str = "jsonl"
    split: str = "train"
    data_dir: str | None = None
    fields: Mapping[str, str | None] | None = None
    require: Sequence[str] = ("question",)
    min_criteria: int = MIN_CRITERIA
    max_criteria: int = MAX_CRITERIA
    incomplete: str = "fail"
    say: Callable[[str], Any] = warnings.warn
    tell: Callable[[Account], Any] = ignored
    count: int = 0
    seed: int = 0
    flawed: float | None = None

    @property
    def of_records(self) -> dict[str, Any]:
        """The arguments of `records.to_examples`."""
        names = ("fields", "require", "min_criteria", "max_criteria", "incomplete", "say", "tell")
        return {name: getattr(self, name) for name in names}


class Source(NamedTuple):
    """A source of rows.

    Attributes:
      read: a function of a place, without the source's name, and a `Reading`.
      makes_rows: whether it makes its rows itself; then it holds no benchmarks.
    """

    read: Callable[[str, Reading], list[Example]]
    makes_rows: bool = False


def _hub(place: str, how: Reading) -> list[Example]:
    name, _, split = place.partition("#")
    return read_hub(name, split=split or how.split, **how.of_records)


def _tfds(place: str, how: Reading) -> list[Example]:
    name, _, split = place.partition("#")
    return read_tfds(name, split=split or how.split, data_dir=how.data_dir, **how.of_records)


SOURCES: dict[str, Source] = {
    "jsonl": Source(lambda place, how: read_jsonl(place, **how.of_records)),
    "parquet": Source(lambda place, how: read_parquet(place, **how.of_records)),
    "hub": Source(_hub),
    "tfds": Source(_tfds),
}


def split_source(path: str, default: str) -> tuple[str, str]:
    """A path's source and its place: "hub:…" and "tfds:…", ".jsonl" and ".parquet", or else the default.

    Examples:
      >>> split_source("hub:openai/gsm8k:main#test", "jsonl"), split_source("rows.parquet", "jsonl"), split_source("rows", "jsonl")
      (('hub', 'openai/gsm8k:main#test'), ('parquet', 'rows.parquet'), ('jsonl', 'rows'))
    """
    name, colon, rest = path.partition(":")
    if colon and name in SOURCES:
        return name, rest
    ending = Path(path).suffix.removeprefix(".")
    return (ending if ending in ("jsonl", "parquet") else default), path


def read(path: str, **how: Any) -> list[Example]:
    """Reads the examples at a path.

    Args:
      path: a file (.jsonl, .parquet), a folder of Parquet files, `hub:OWNER/NAME[:CONFIGURATION][#SPLIT]`,
        `tfds:NAME[#SPLIT]`, or several of these; see `mixtures.parts_of`.
      **how: of `Reading`.

    Raises:
      UserError: unreadable data, or what `records.to_examples` objects to.
    """
    return read_as(path, Reading(**how))


def read_as(path: str, how: Reading) -> list[Example]:
    """`read` with its arguments as a value. Of several sources, the rows follow each other, and ids begin with the source's name."""
    parts = parts_of(path)
    if len(parts) == 1:
        return _read_one(parts[0].path, how)
    return [
        dataclasses.replace(example, id=f"{part.name}/{example.id}", source=part.name)
        for part in parts
        for example in _read_one(part.path, how)
    ]


def _read_one(path: str, how: Reading) -> list[Example]:
    source, place = split_source(path, how.source)
    if source not in SOURCES:
        raise UserError("no such source", field="data.source", value=source, remedy=f"use one of {', '.join(SOURCES)}")
    return SOURCES[source].read(place, how)
