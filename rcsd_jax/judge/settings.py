"""Settings of the judge: its model, its questions, and how to reach it."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.judge.endpoint import EndpointSettings
from rcsd_jax.judge.judging import JudgeSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeChoice:
    """The section `judge`; `settings/keys.py` says what each key means.

    Attributes:
      judging: how it is asked.
      endpoint: how to reach and ask a judge at an endpoint.
      checkpoint, batch_size: of a judge on this machine instead.
    """

    judging: JudgeSettings
    endpoint: EndpointSettings
    checkpoint: str
    batch_size: int

    def __post_init__(self) -> None:
        checks.choices(self.judging)
        checks.at_least_one(self.judging, "max_characters")
        checks.at_least_one(self.endpoint, "max_tokens", "concurrency")
        checks.at_least_one(self, "batch_size")

    @property
    def model(self) -> str:
        """The judge's name at the endpoint."""
        return self.endpoint.model
