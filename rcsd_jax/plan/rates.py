"""Rates that turn a program's counts into seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Rates(NamedTuple):
    """Rates of one chip, which turn counts into seconds.

    Attributes:
      clock: cycles per second.
      hbm, vmem: bytes per second of HBM and of vector memory.
      kernel_flops: the assumed FLOPs per second of kernels without an estimate.
      collective: (kind, group of partition ids, bytes that a chip sends) -> seconds.
    """

    clock: float
    hbm: float
    vmem: float
    kernel_flops: float
    collective: Callable[[str, tuple[int, ...], float], float]
