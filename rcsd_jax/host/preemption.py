"""SIGTERM and Ctrl-C ask a run to end. It ends between two steps or batches, with everything saved.

One signal to any process ends all processes at the same step: they agree whenever they check.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import Preempted


class StopRequest:
    """Inside the context, the first SIGTERM or SIGINT sets the request instead of ending the process; a second SIGINT ends it.

    Outside the main thread, where Python allows no handlers, it is never set.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received: int | None = None
        self._old: dict[int, Any] = {}  # as returned by `signal.signal`

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._receive) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Whether any process was asked to end. A collective: every process must call it at the same place."""
        agreed = multihost.largest(self._received or 0)
        if agreed:
            self._received = agreed
        return bool(agreed)  # a signal that came while they agreed on 0 stays for the next time

    def raise_if_set(self, state: str) -> None:
        """Raises Preempted if any process was asked to end; `state` says what is saved. A collective."""
        if self.is_set():
            assert self._received is not None, "all have it from the one that received it"
            raise Preempted(state, signal=self._received)

    def raise_if_heard(self, state: str) -> None:
        """Raises Preempted if this process was asked to end, without asking the others."""
        if self._received is not None:
            raise Preempted(state, signal=self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = number
