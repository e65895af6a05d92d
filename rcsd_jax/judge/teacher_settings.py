"""Settings of a teacher behind an endpoint."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.judge.endpoint import EndpointSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherEndpoint:
    """The section `teacher_endpoint`; `settings/keys.py` says what each key means."""

    model: str
    base_url: str
    key_variable: str
    concurrency: int
    timeout_s: float
    retries: int
    requests_per_minute: float | None

    def __post_init__(self) -> None:
        checks.at_least_one(self, "concurrency")

    @property
    def endpoint(self) -> EndpointSettings:
        """How to reach it; a request asks for one token, which is ignored."""
        return EndpointSettings(**dataclasses.asdict(self), temperature=0.0, max_tokens=1)
