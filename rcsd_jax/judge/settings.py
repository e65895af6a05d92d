"""Settings of the judge, and of another one to compare it with: their models, their questions, and how to reach them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from rcsd_jax.host import checks
from rcsd_jax.judge.endpoint import EndpointSettings
from rcsd_jax.judge.judging import JudgeSettings


class NamedJudge(NamedTuple):
    """One judge: a model at an endpoint or, if `checkpoint` is not empty, one on this machine; and how it is asked."""

    endpoint: EndpointSettings
    checkpoint: str
    judging: JudgeSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeChoice:
    """The section `judge`; `settings/keys.py` says what each key means.

    Attributes:
      judging: how it is asked.
      endpoint: how to reach and ask a judge at an endpoint.
      checkpoint, batch_size: of a judge on this machine instead.
      second_model, second_base_url, second_key_variable, second_checkpoint: of another judge, asked in the same way; None: as of
        the first.
    """

    judging: JudgeSettings
    endpoint: EndpointSettings
    checkpoint: str
    batch_size: int
    second_model: str
    second_base_url: str | None
    second_key_variable: str | None
    second_checkpoint: str

    def __post_init__(self) -> None:
        checks.choices(self.judging)
        checks.at_least_one(self.judging, "max_characters")
        checks.at_least_one(self.endpoint, "max_tokens", "concurrency")
        checks.at_least_one(self, "batch_size")
        remedy = "name a model at judge.second_base_url, or give judge.second_checkpoint"
        one = not (self.second_model and self.second_checkpoint)
        checks.need(one, self, "second_model", "must name at most one judge", remedy)
        if self.second is not None:
            field = "second_checkpoint" if self.second_checkpoint else "second_model"
            same = self.second[:2] == self.first[:2]
            checks.need(not same, self, field, "is the first judge", "name another judge")

    @property
    def model(self) -> str:
        """The judge's name at the endpoint."""
        return self.endpoint.model

    @property
    def first(self) -> NamedJudge:
        """The judge whose verdicts are scores."""
        return NamedJudge(self.endpoint, self.checkpoint, self.judging)

    @property
    def second(self) -> NamedJudge | None:
        """The other judge, or None. The prices are the first's."""
        if not (self.second_model or self.second_checkpoint):
            return None
        url, key = self.second_base_url, self.second_key_variable
        endpoint = dataclasses.replace(
            self.endpoint,
            model=self.second_model,
            base_url=self.endpoint.base_url if url is None else url,
            key_variable=self.endpoint.key_variable if key is None else key,
        )
        unpriced = dataclasses.replace(self.judging, input_price=None, output_price=None)
        return NamedJudge(endpoint, self.second_checkpoint, unpriced)
