"""Settings of the rows: their place, how they are read, and the limits of their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rcsd_jax.data.mixtures import parts_of
from rcsd_jax.data.records import INCOMPLETE
from rcsd_jax.data.sources import SOURCES
from rcsd_jax.host import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The section `data`; `settings/keys.py` says what each key means."""

    source: str = checks.one_of(SOURCES)
    path: str
    fields: Mapping[str, str]
    incomplete: str = checks.one_of(INCOMPLETE)
    split: str
    tfds_dir: str
    count: int
    flawed: float | None
    max_student_prompt: int
    max_teacher_prompt: int
    too_long: str = checks.one_of(("skip", "fail"))
    pad_to: int

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "max_student_prompt", "max_teacher_prompt", "pad_to")
        checks.share(self, "flawed")
        parts_of(self.path)

    @property
    def shares(self) -> dict[str, float]:
        """Source -> its share, of a mixture with shares; otherwise empty."""
        return {part.name: part.share for part in parts_of(self.path) if part.share is not None}
