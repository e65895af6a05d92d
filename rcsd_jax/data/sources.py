"""Where examples lie, told by the path: files by their ending, data sets by what stands before the colon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError

SOURCES = ("jsonl", "parquet", "hub", "tfds")


def split_source(path: str, default: str) -> tuple[str, str]:
    """What a path says of its source, and the rest: "hub:…" and "tfds:…", ".jsonl" and ".parquet", or else the default.

    Examples:
      >>> split_source("hub:openai/gsm8k:main#test", "jsonl"), split_source("rows.parquet", "jsonl"), split_source("rows", "jsonl")
      (('hub', 'openai/gsm8k:main#test'), ('parquet', 'rows.parquet'), ('jsonl', 'rows'))
    """
    name, colon, rest = path.partition(":")
    if colon and name in SOURCES:
        return name, rest
    ending = Path(path).suffix.removeprefix(".")
    return (ending if ending in ("jsonl", "parquet") else default), path


def read(
    path: str, *, source: str = "jsonl", split: str = "train", data_dir: str | None = None, **settings: Any
) -> list[Example]:
    """Reads the examples at a path.

    Args:
      path: a file (.jsonl, .parquet), a folder of Parquet files, `hub:OWNER/NAME[:CONFIGURATION][#SPLIT]` or
        `tfds:NAME[#SPLIT]`.
      source: of `SOURCES`, of a path that does not say.
      split: of data sets whose path names none.
      data_dir: where TFDS keeps prepared data; None for its default.
      **settings: of `records.to_examples`.

    Raises:
      UserError: unreadable data, or what `records.to_examples` objects to.
    """
    source, place = split_source(path, source)
    name, _, named_split = place.partition("#")
    if source == "tfds":
        from rcsd_jax.data.tfds import read_tfds  # imported where they are used: all three take seconds

        return read_tfds(name, split=named_split or split, data_dir=data_dir, **settings)
    if source == "hub":
        from rcsd_jax.data.hub import read_hub

        return read_hub(name, split=named_split or split, **settings)
    if source == "parquet":
        from rcsd_jax.data.parquet import read_parquet

        return read_parquet(place, **settings)
    if source == "jsonl":
        from rcsd_jax.data.jsonl import read_jsonl

        return read_jsonl(place, **settings)
    raise UserError("no such source", field="data.source", value=source, remedy=f"use one of {', '.join(SOURCES)}")
