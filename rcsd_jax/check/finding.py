"""A finding: what was looked at, what was measured, what was expected, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
"""A warning is about speed or room that is not known: the run computes the right thing. A failure means that it does not, or ends."""


class Finding(NamedTuple):
    """One line of the check.

    Attributes:
      part: of the check: a key of `stage.PARTS`.
      name: what was looked at.
      verdict: one of the four above.
      measured, expected: for the reader.
      numbers: the same as numbers: seconds, bytes, relative errors, nats.
    """

    part: str
    name: str
    verdict: str
    measured: str
    expected: str = ""
    numbers: Mapping[str, Any] = {}

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return self._asdict() | {"numbers": dict(self.numbers)}


def total(findings: Sequence[Finding]) -> str:
    """The verdict of all together: the worst of them; what was not checked does not count."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (FAILED, WARNING) if verdict in verdicts), OK)


def seconds(value: float) -> str:
    """Seconds with a unit.

    Examples:
      >>> seconds(12.34), seconds(0.0123), seconds(4.2e-5)
      ('12.3 s', '12.3 ms', '42 us')
    """
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"


def size(value: float) -> str:
    """Bytes with a unit.

    Examples:
      >>> size(3.2e9), size(4e6), size(512)
      ('2.98 GiB', '3.81 MiB', '0.5 KiB')
    """
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if value >= 2**power:
            return f"{value / 2**power:.3g} {unit}"
    return f"{value / 2**10:.3g} KiB"
