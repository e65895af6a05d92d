"""A keyed log whose values all processes of a job hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rcsd_jax.host import multihost
from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.keyed_log import KeyedLog

L = TypeVar("L", bound=KeyedLog)


def held_by_all(open_log: Callable[[AnyPath | None], L], path: AnyPath) -> L:
    """A log at `path`: process 0 keeps the file, and the others hold the same values in memory."""
    log = multihost.agreed(lambda: open_log(path if multihost.is_main() else None), everywhere=True)
    held = multihost.from_main(lambda: list(log.items()))
    if not multihost.is_main():
        log.put_batch(held)
    return log
