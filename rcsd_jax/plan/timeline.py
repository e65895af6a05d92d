"""Work that runs at the same time as the instructions of a computation."""

from __future__ import annotations

import collections

from rcsd_jax.plan.rates import Rates


class TimeLine:
    """Work that runs at the same time as one computation's instructions: copies, in the order started, and collectives."""

    def __init__(self, rates: Rates):
        self.rates, self.now = rates, 0.0
        self.copies: collections.OrderedDict[str, float] = collections.OrderedDict()  # name -> bytes still to move
        self.wire_free = 0.0
        self.collectives: dict[str, float] = {}  # name -> when it is done

    def passes(self, seconds: float, hbm_bytes: float = 0.0) -> None:
        """Lets an instruction run that uses this much of HBM's bandwidth itself."""
        self.now += seconds
        spare = max(seconds * self.rates.hbm - hbm_bytes, 0.0)
        while spare > 0 and self.copies:
            name, left = next(iter(self.copies.items()))
            moved = min(left, spare)
            spare -= moved
            if left - moved <= 0:
                del self.copies[name]
            else:
                self.copies[name] = left - moved

    def starts_copy(self, name: str, moved: float) -> None:
        if moved:
            self.copies[name] = moved

    def needs_copy(self, name: str) -> float:
        """Seconds until a copy and the copies before it are done."""
        if name not in self.copies:
            return 0.0
        waited = 0.0
        while name in self.copies:
            _, left = self.copies.popitem(last=False)
            waited += left / self.rates.hbm
        self.now += waited
        return waited

    def starts_collective(self, name: str, seconds: float) -> None:
        self.wire_free = max(self.wire_free, self.now) + seconds
        self.collectives[name] = self.wire_free

    def needs_collective(self, name: str) -> float:
        waited = max(self.collectives.pop(name, 0.0) - self.now, 0.0)
        self.passes(waited)
        return waited

    def waits_collective(self, seconds: float) -> float:
        """Seconds of a collective that nothing hides; collectives in progress go first."""
        waited = max(self.wire_free, self.now) + seconds - self.now
        self.passes(waited)
        self.wire_free = self.now
        return waited
