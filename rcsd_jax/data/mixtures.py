"""Mixtures: a path that names several sources of rows, each perhaps with its share, "a.jsonl:0.7,b.parquet:0.3"."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from rcsd_jax.host.errors import UserError

_SHARE = re.compile(r"(?P<path>.+):(?P<share>\d+(?:\.\d*)?|\.\d+)")


class Part(NamedTuple):
    """A source of a mixture.

    Attributes:
      path: as `sources.read` takes it.
      share: of the rows that a run uses, before they are divided by their sum; None: its rows count as those of other sources.
      name: under which metrics name it; "" if it is the only one.
    """

    path: str
    share: float | None
    name: str


def parts_of(path: str) -> list[Part]:
    """The sources that a path names; one without a comma, or that exists as it is, names one.

    Raises:
      UserError: a source without a path, or with a share that is 0; shares for some sources only.

    Examples:
      >>> [tuple(part) for part in parts_of("rows/a.jsonl:0.7, hub:owner/b:main#test:.3")]
      [('rows/a.jsonl', 0.7, 'a'), ('hub:owner/b:main#test', 0.3, 'b')]
      >>> parts_of("rows/a.jsonl")
      [Part(path='rows/a.jsonl', share=None, name='')]
    """
    if "," not in path or Path(path).expanduser().exists():
        return [Part(path, None, "")]
    parts: list[Part] = []
    for given in path.split(","):
        found = _SHARE.fullmatch(given.strip())
        place, share = (found["path"].strip(), float(found["share"])) if found else (given.strip(), None)
        if not place or share == 0 or (share is not None and not math.isfinite(share)):
            problem = "names a source without a path" if not place else f"gives {place} no share"
            raise UserError(problem, field="path", value=path, remedy="write FILE:SHARE,FILE:SHARE")
        parts.append(Part(place, share, _name(place, [part.name for part in parts])))
    if len({part.share is None for part in parts}) > 1:
        bare = next(part.path for part in parts if part.share is None)
        remedy = "give every source a share, or none"
        raise UserError(f"gives {bare} no share, but others one", field="path", value=path, remedy=remedy)
    return parts


def _name(place: str, taken: list[str]) -> str:
    """A short name that no other source has: the file's or the data set's."""
    last = place.partition("#")[0].rstrip("/").rpartition("/")[2]
    last = re.sub(r"\.(jsonl|parquet)$", "", last).strip(":").split(":")[0 if "/" in place else -1]
    name = re.sub(r"\W+", "_", last) or "source"
    return next(one for n in range(1, len(taken) + 2) if (one := name if n == 1 else f"{name}_{n}") not in taken)
