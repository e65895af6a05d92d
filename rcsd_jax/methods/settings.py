"""Settings of what is learnt from completions: which tokens weigh how much, the divergence, and the policy loss."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The section `loss`; `settings/keys.py` says what each key means."""

    divergence: str = checks.one_of(("vocabulary", "sampled_token"))
    beta: float
    top_k: int | None
    top_k_support: str = checks.one_of(("teacher", "student"))
    tail: str = checks.one_of(("renormalize", "bucket"))
    entry_clip: float | None
    token_clip: float | None
    importance_clip: float | None
    mask_cut: bool
    skip_first: int
    reduction: str = checks.one_of(("tokens", "completions", "longest"))
    chunk_size: int

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "top_k", "chunk_size")
        checks.at_least_zero(self, "skip_first")
        checks.positive(self, "entry_clip", "token_clip", "importance_clip")
        checks.finite(self, "entry_clip", "token_clip", "importance_clip")
        if self.divergence == "sampled_token":
            for field in ("top_k", "entry_clip"):
                problem = "is of the whole vocabulary's divergence"
                remedy = "leave it out, or set loss.divergence=vocabulary"
                checks.need(getattr(self, field) is None, self, field, problem, remedy)
        checks.need(0.0 <= self.beta <= 1.0, self, "beta", "must lie in [0, 1]", "0 is forward KL, 1 is reverse KL")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """The section `policy`; `settings/keys.py` says what each key means."""

    clip_low: float
    clip_high: float
    kl: float
    scale_advantages: bool
    weight: float

    def __post_init__(self) -> None:
        checks.at_least_zero(self, "clip_low", "clip_high", "kl", "weight")
        checks.finite(self, "clip_high", "kl", "weight")
        checks.share(self, "clip_low")
