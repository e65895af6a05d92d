"""Settings of the completions that a run learns from: their writer, and how they are sampled."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.models.kernels import FEW


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The section `sampling`; `settings/keys.py` says what each key means."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    source: str = checks.one_of(("student", "teacher", "reference"))
    group: int
    slots: int
    draft_tokens: int
    int8_cache: bool
    merged_adapters: bool
    int8_weights: bool
    presence_penalty: float

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "max_new_tokens", "group")
        checks.at_least_zero(self, "temperature", "top_k", "slots", "draft_tokens")
        checks.finite(self, "temperature", "presence_penalty")
        checks.top_p(self)
        problem = "cannot be combined with drafts, which are checked without it"
        without_both = not (self.presence_penalty and self.draft_tokens)
        checks.need(without_both, self, "presence_penalty", problem, "set it to 0.0, or sampling.draft_tokens=0")
        problem, remedy = (
            f"is more than {FEW - 1}",
            f"guess at most {FEW - 1} tokens; after the first few, guesses are seldom right",
        )
        checks.need(self.draft_tokens < FEW, self, "draft_tokens", problem, remedy)
        ok = self.slots == 0 or self.slots % self.group == 0 or self.group % self.slots == 0
        problem = f"does not divide sampling.slots = {self.slots}"
        checks.need(ok, self, "group", problem, "choose a divisor of it, or set sampling.slots=0")
