"""Settings of the teacher: what it sees, which weights it has, and what it does before it scores."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.roles.contexts import ATTEMPT_FIELDS, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The section `teacher`; `settings/keys.py` says what each key means."""

    fields: tuple[str, ...]
    thinking: bool
    weights: str = checks.one_of(("fixed", "live", "ema"))
    ema_decay: float
    reason_tokens: int
    guidance: float
    guidance_by: str = checks.one_of(("context", "criteria"))

    def __post_init__(self) -> None:
        checks.choices(self)
        Role(self.fields, self.thinking)
        checks.share(self, "ema_decay")
        checks.at_least_zero(self, "reason_tokens", "guidance")
        checks.finite(self, "guidance")
        if self.attempts:
            problem = f"cannot analyse {' and '.join(self.attempts)}, which are known after sampling alone"
            checks.need(not self.reason_tokens, self, "reason_tokens", problem, "set 0")
        if self.guided_by_criteria:
            seen = "rubric" in self.fields and not self.reason_tokens and not self.attempts
            problem = "needs a teacher that sees a rubric, writes no analysis and is shown no attempts"
            checks.need(seen, self, "guidance_by", problem, "set 'context'")

    @property
    def role(self) -> Role:
        """What it sees."""
        return Role(self.fields, self.thinking)

    @property
    def attempts(self) -> tuple[str, ...]:
        """Of what it sees, the fields that are known only when the student has written."""
        return tuple(name for name in ATTEMPT_FIELDS if name in self.fields)

    @property
    def guided_by_criteria(self) -> bool:
        """Whether it is pushed along single criteria."""
        return bool(self.guidance) and self.guidance_by == "criteria"
