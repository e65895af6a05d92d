"""A limit per minute: evenly spaced turns for requests or tokens."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Lets an amount per minute through, one turn after the other; everything at once if the amount is None."""

    def __init__(self, per_minute: float | None):
        self._seconds = 0.0 if per_minute is None else 60.0 / per_minute
        self._free = 0.0  # when the next turn may begin, by time.monotonic

    async def turn(self, amount: float = 1.0) -> None:
        """Waits until the amount may be used."""
        now = time.monotonic()
        begin = max(now, self._free)
        self._free = begin + amount * self._seconds
        await asyncio.sleep(begin - now)

    def add(self, amount: float) -> None:
        """Counts the use beyond what a turn asked for; negative if it was less."""
        self._free += amount * self._seconds

    def pause(self, seconds: float) -> None:
        """Lets nothing new through for this time."""
        self._free = max(self._free, time.monotonic() + seconds)
