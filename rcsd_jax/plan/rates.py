"""What turns a program's counts into seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Rates(NamedTuple):
    """What turns counts into seconds, of one chip.

    Attributes:
      clock: cycles a second.
      hbm, vmem: bytes a second, of HBM and of vector memory.
      kernel_flops: FLOPs a second that kernels without an estimate are taken to reach.
      collective: (kind, group of partition ids, bytes that a chip sends) -> seconds.
    """

    clock: float
    hbm: float
    vmem: float
    kernel_flops: float
    collective: Callable[[str, tuple[int, ...], float], float]
