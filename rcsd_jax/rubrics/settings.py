"""Settings of rubrics: those that the teacher sees, and how a model writes them."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.rubrics.sources import RUBRIC_SOURCES


@dataclasses.dataclass(frozen=True, kw_only=True)
class RubricSettings:
    """The section `rubric`; `settings/keys.py` says what each key means."""

    source: str = checks.one_of(RUBRIC_SOURCES)
    style: str = checks.one_of(("objects", "strings"))
    min_criteria: int
    max_criteria: int
    noisy_fraction: float
    reduced_fraction: float
    dropout: float
    writer: str
    writer_fields: tuple[str, ...]
    writer_thinking: bool
    constrained: bool
    resample: int
    on_reject: str = checks.one_of(("generic", "drop"))
    salvage: bool
    max_prompt: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    batch_size: int

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "min_criteria", "max_prompt", "max_new_tokens", "batch_size")
        checks.at_least_zero(self, "resample", "temperature", "top_k")
        checks.finite(self, "temperature")
        checks.top_p(self)
        checks.share(self, "noisy_fraction", "dropout")
        ok = 0.0 < self.reduced_fraction <= 1.0
        checks.need(ok, self, "reduced_fraction", "must lie in (0, 1]", "0.5 keeps half")
        problem = f"is more than rubric.max_criteria = {self.max_criteria}"
        checks.need(
            self.min_criteria <= self.max_criteria, self, "min_criteria", problem, "lower it, or raise the other"
        )

    @property
    def written(self) -> bool:
        """Whether a model writes them."""
        return self.source == "written"
