"""Settings of the loss: the weights of tokens, the divergence, and the policy loss."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.losses.emphasis import KINDS
from rcsd_jax.losses.options import DIVERGENCES, SUPPORTS, TAILS, DivergenceOptions
from rcsd_jax.losses.weighting import REDUCTIONS
from rcsd_jax.methods.contract import Emphasis, PolicyOptions
from rcsd_jax.methods.thoughts import PARTS

COMPLETIONS = ("all", "wrong", "longest_wrong")
"""Which completions of a question are learnt from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings(DivergenceOptions):
    """The section `loss`: the divergence's options and the step's; `settings/keys.py` says what each key means."""

    divergence: str = checks.one_of(DIVERGENCES)
    top_k_support: str = checks.one_of(SUPPORTS)
    tail: str = checks.one_of(TAILS)
    importance_clip: float | None
    thinking: str = checks.one_of(PARTS)
    completions: str = checks.one_of(COMPLETIONS)
    mask_cut: bool
    skip_first: int
    reduction: str = checks.one_of(REDUCTIONS)
    emphasis: str = checks.one_of(KINDS)
    emphasis_strength: float
    emphasis_share: float
    chunk_size: int

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "top_k", "chunk_size")
        checks.at_least_zero(self, "skip_first")
        checks.positive(self, "entry_clip", "token_clip", "importance_clip")
        checks.finite(self, "entry_clip", "token_clip", "importance_clip")
        checks.share(self, "emphasis_strength", "emphasis_share")
        if self.divergence == "sampled_token":
            for field in ("top_k", "entry_clip"):
                problem = "has an effect only on the divergence of the whole vocabulary"
                remedy = "leave it out, or set loss.divergence=vocabulary"
                checks.need(getattr(self, field) is None, self, field, problem, remedy)
        checks.need(0.0 <= self.beta <= 1.0, self, "beta", "must lie in [0, 1]", "0 is forward KL, 1 is reverse KL")
        super().__post_init__()

    @property
    def divergence_options(self) -> DivergenceOptions:
        """The options of the divergence."""
        return DivergenceOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DivergenceOptions)})

    @property
    def emphasis_choice(self) -> Emphasis:
        """How tokens are emphasised."""
        return Emphasis(self.emphasis, self.emphasis_strength, self.emphasis_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings(PolicyOptions):
    """The section `policy`; `settings/keys.py` says what each key means."""

    def __post_init__(self) -> None:
        checks.at_least_zero(self, "clip_low", "clip_high", "kl", "weight")
        checks.finite(self, "clip_high", "kl", "weight")
        checks.share(self, "clip_low")
