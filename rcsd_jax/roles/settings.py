"""Settings of the teacher: its fields, its weights, and its analysis and guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rcsd_jax.checkpoints.settings import QUANTIZATIONS
from rcsd_jax.host import checks
from rcsd_jax.roles.contexts import ATTEMPT_FIELDS, ATTEMPTS_SHOWN, FURTHER, PLACES, TRANSITIONS, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The section `teacher`; `settings/keys.py` says what each key means."""

    fields: tuple[str, ...]
    shown_in: str = checks.one_of(PLACES)
    thinking: bool
    weights: str = checks.one_of(("fixed", "live", "ema", "trust_region"))
    path: str
    paths: Mapping[str, str]
    of_sources: Mapping[str, str]
    quantization: str = checks.one_of(QUANTIZATIONS)
    ema_decay: float
    current_share: float
    reason_tokens: int
    reason_by: str = checks.one_of(("teacher", "student"))
    transition: str = checks.one_of(TRANSITIONS)
    attempts_shown: str = checks.one_of(ATTEMPTS_SHOWN)
    reason_thinking: bool
    guidance: float
    guidance_by: str = checks.one_of(("context", *FURTHER))
    better_of_two: bool

    def __post_init__(self) -> None:
        checks.choices(self)
        Role(self.fields, self.thinking, self.shown_in)
        checks.share(self, "ema_decay", "current_share")
        self._check_own()
        checks.at_least_zero(self, "reason_tokens", "guidance")
        checks.finite(self, "guidance")
        if self.weights == "trust_region" and self.reason_by == "teacher":
            problem = "cannot be combined with a teacher that writes: two networks only score together"
            remedy = "set teacher.reason_tokens=0 or teacher.reason_by=student"
            checks.need(not self.reason_tokens, self, "weights", problem, remedy)
        if self.attempts:
            problem = f"cannot analyse {' and '.join(self.attempts)}, which are known only after sampling"
            checks.need(not self.reason_tokens, self, "reason_tokens", problem, "set 0")
        self._check_further()

    def _check_further(self) -> None:
        further, written = (
            self.further,
            tuple(name for name in self.fields if name not in ("question", *ATTEMPT_FIELDS)),
        )
        if further == "criteria":
            seen = "rubric" in self.fields and not self.reason_tokens and not self.attempts
            problem = "needs a teacher that sees a rubric, writes no analysis and sees no attempts"
        elif further == "failure":
            seen = "success" in self.fields
            problem = "needs a teacher that sees 'success', in whose place a failure then stands"
        else:
            seen = not further or (bool(written) and not self.reason_tokens and not self.attempts)
            problem = (
                "needs a teacher that sees more of the row than its question, writes no analysis and sees no attempts"
            )
        checks.need(seen, self, "guidance_by", problem, "set 'context'")
        problem = "has no effect on a choice between two teachers"
        checks.need(not (self.better_of_two and self.guidance), self, "guidance", problem, "set 0.0")

    def _check_own(self) -> None:
        problem = "cannot be combined with teacher.paths, which names several"
        checks.need(not (self.path and self.paths), self, "path", problem, "set one of the two")
        for name, path in self.paths.items():
            checks.need(bool(path), self, "paths", f"gives {name} no path", "name a model or an adapter")
        for source, name in self.of_sources.items():
            problem = f"gives {source} the unknown teacher {name!r}"
            remedy = f"use {', '.join(self.paths) or 'teacher.paths to name teachers'}"
            checks.need(name in self.paths, self, "of_sources", problem, remedy)
        problem = "follow from the student's, and the teacher is another model"
        remedy = "set 'fixed', or leave teacher.path and teacher.paths out"
        checks.need(self.weights == "fixed" or not self.own, self, "weights", problem, remedy)
        remedy = "set teacher.path, or model.quantization for the student's base"
        plain = self.quantization == "none"
        checks.need(bool(self.own) or plain, self, "quantization", "is for a teacher of its own", remedy)
        writes = len(self.own) > 1 and self.reason_tokens and self.reason_by == "teacher"
        problem = "cannot be combined with several teachers, which only score"
        checks.need(not writes, self, "reason_tokens", problem, "set 0, or teacher.reason_by=student")

    @property
    def own(self) -> dict[str, str]:
        """Name -> path of the teachers that are other models; a single one may have the name ""."""
        return {"": self.path} if self.path else dict(self.paths)

    @property
    def role(self) -> Role:
        """What it sees."""
        return Role(self.fields, self.thinking, self.shown_in)

    @property
    def attempts(self) -> tuple[str, ...]:
        """The fields that are known only after the student has written."""
        return tuple(name for name in ATTEMPT_FIELDS if name in self.fields)

    @property
    def further(self) -> str:
        """Which further contexts guidance needs, of `contexts.FURTHER`; "" if it needs none."""
        return self.guidance_by if self.guidance and self.guidance_by in FURTHER else ""
