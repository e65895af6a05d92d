"""Settings of an evaluation: sets, roles, number of answers, and graders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rcsd_jax.evaluate import graders
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.host import checks

ROLES = ("base", "teacher", "trained")

SHOWN = ("first", "shortest")
"""Which of a group's other successes a teacher sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The section `eval`; `settings/keys.py` says what each key means."""

    grader: str = checks.one_of(graders.choices_of_evaluation)
    path: str
    splits: Mapping[str, str]
    benchmarks: Mapping[str, str | None]
    samples: int
    every: int
    every_splits: tuple[str, ...]
    count: int
    batch_size: int
    max_new_tokens: int | None
    thinking: bool | None
    roles: tuple[str, ...]
    greedy: tuple[bool, ...]
    temperature: float

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.at_least_one(self, "count", "batch_size", "samples", "max_new_tokens")
        checks.at_least_zero(self, "every", "temperature")
        checks.finite(self, "temperature")
        modes = all(isinstance(mode, bool) for mode in self.greedy)
        remedy = "set (False,), (True,) or (False, True)"
        checks.need(modes, self, "greedy", "has a value other than True and False", remedy)
        if self.every:
            remedy = "set eval.grader or eval.benchmarks and keep 'trained' in eval.roles, or set eval.every=0"
            evaluated = bool(self.grader) or bool(self.asked)
            checks.need(evaluated and "trained" in self.roles, self, "every", "nothing to evaluate", remedy)
        splits = (*self.own, *self.asked)
        known = set(self.every_splits) <= set(splits)
        checks.need(known, self, "every_splits", "no such set", f"use some of {splits}")
        checks.need(set(self.roles) <= set(ROLES), self, "roles", "no such role", f"use some of {ROLES}")
        if self.grader:
            remedy = "give held-out rows as eval.path, or set eval.grader to an empty string"
            checks.need(bool(self.path) or bool(self.splits), self, "path", "nothing to evaluate on", remedy)

    @property
    def own(self) -> Mapping[str, str]:
        """Name -> path of the user's own sets; none without a grader."""
        return (self.splits or {"eval": self.path}) if self.grader else {}

    @property
    def asked(self) -> Mapping[str, str]:
        """Name -> path of the benchmarks to evaluate; "" for the place where it is published."""
        return {name: path for name, path in self.benchmarks.items() if path is not None}

    @property
    def graders(self) -> set[str]:
        """The graders of all sets."""
        return {self.grader, *(BENCHMARKS[name].grader for name in self.asked)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """The section `reward`; `settings/keys.py` says what each key means."""

    grader: str = checks.one_of(graders.choices)
    score: str
    success: float
    shown: str = checks.one_of(SHOWN)

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.finite(self, "success")
