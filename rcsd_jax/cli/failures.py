"""Recognises errors that mean that disk space or device memory ran out, also inside other errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from rcsd_jax.host.errors import first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last is the limit of a file's size


def resource_spent(error: BaseException) -> str | None:
    """One line for an error that means that device memory or disk space ran out; None for any other error."""
    if (line := disk_full(error)) is not None:
        return line
    for cause in _causes(error):
        if "RESOURCE_EXHAUSTED" in str(cause):
            remedy = "raise train.microbatches or the mesh, or lower batch sizes (train, eval, rubric) and token limits"
            return f"out of device memory; {remedy} ({first_line(cause)})"
    return None


def disk_full(error: BaseException) -> str | None:
    """One line for an error that means that the disk is full; None for any other error."""
    for cause in _causes(error):
        if getattr(cause, "errno", None) in _FULL or any(os.strerror(number) in str(cause) for number in _FULL):
            return f"the disk is full, or a quota reached ({first_line(cause)}); free space, then the same command continues"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that caused it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
