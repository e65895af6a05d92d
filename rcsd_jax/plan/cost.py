"""The cost of a compiled program on one chip, as a value that adds up."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeVar


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All runs of one custom call."""

    runs: float = 0
    flops: float = 0
    bytes: float = 0
    seconds: float = 0
    operands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All runs of one kind of collective; bytes are those that one chip sends."""

    runs: float = 0
    bytes: float = 0
    seconds: float = 0  # on the wire, hidden or not


class LoopCount(NamedTuple):
    """A loop of the program, as it was counted."""

    name: str
    trips: int
    dynamic: bool
    known: bool


@dataclasses.dataclass
class Cost:
    """The cost of a program, or of a part of it, on one chip. Sums over all runs of every loop.

    Attributes:
      flops: of matrix products that XLA compiles; kernels count their own.
      hbm_bytes: read and written by instructions, without the padding of tiles.
      compute: seconds, the compiler's estimated cycles over the clock.
      kernel: seconds, modelled, of custom calls and of instructions without an estimate.
      hbm_wait: seconds, modelled, waiting for copies between HBM and vector memory.
      collective: seconds, modelled, on collectives that nothing hides.
      kernels, collectives: by name and kind.
      loops: every loop.
      windowed: loops in which GSPMD sends partial operands of a product around ("windowed dot general").
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    compute: float = 0.0
    kernel: float = 0.0
    hbm_wait: float = 0.0
    collective: float = 0.0
    kernels: dict[str, Kernel] = dataclasses.field(default_factory=dict)
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    loops: list[LoopCount] = dataclasses.field(default_factory=list)
    windowed: list[str] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The modelled time."""
        return self.compute + self.kernel + self.hbm_wait + self.collective

    @property
    def kernel_flops(self) -> float:
        """Of custom calls."""
        return sum(k.flops for k in self.kernels.values())

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Adds another part that runs this many times."""
        for name in ("flops", "hbm_bytes", "compute", "kernel", "hbm_wait", "collective"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name, kernel in other.kernels.items():
            self.add_kernel(name, kernel, times)
        for kind, traffic in other.collectives.items():
            self.add_collective(kind, traffic, times)
        self.loops += other.loops
        self.windowed += other.windowed

    def add_kernel(self, name: str, kernel: Kernel, times: float = 1.0) -> None:
        """Adds runs of a custom call."""
        self.kernels[name] = _sum(self.kernels.get(name, Kernel()), kernel, times)

    def add_collective(self, kind: str, traffic: Traffic, times: float = 1.0) -> None:
        """Adds runs of a kind of collective."""
        self.collectives[kind] = _sum(self.collectives.get(kind, Traffic()), traffic, times)


_Part = TypeVar("_Part", Kernel, Traffic)


def _sum(ours: _Part, theirs: _Part, times: float) -> _Part:
    changed = {}
    for field in dataclasses.fields(theirs):
        if field.name != "operands":
            changed[field.name] = getattr(ours, field.name) + times * getattr(theirs, field.name)
    return dataclasses.replace(theirs, **changed)
