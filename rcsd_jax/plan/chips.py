"""Public figures of TPU chips, and how fast a collective is on their torus."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from rcsd_jax.host.errors import UserError, first_line


class Chip(NamedTuple):
    """One device as JAX sees it: a chip, or on v4 (topologies without megacore) and Ironwood one of a chip's two cores.

    Attributes:
      name: as in a topology's name.
      bf16: peak FLOPs a second.
      hbm: bytes a second.
      capacity: bytes of HBM that a program may use; the compiler keeps the rest for itself.
      clock: cycles a second of the compiler's estimates.
      link: bytes a second of one ICI link in one direction; on Ironwood a device's share of it.
      wrap: the length from which an axis of a slice is a ring; shorter ones are lines.
      devices_per_chip: 2 on v4 and Ironwood.
    """

    name: str
    bf16: float
    hbm: float
    capacity: float
    clock: float
    link: float
    wrap: int
    devices_per_chip: int = 1


# FLOPs, HBM bandwidth and ICI bandwidth: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. A chip's ICI bandwidth there is that
# of all its links: 2,400 Gbit/s of 6 links on v4, 1,600 of 4 on v5e, 4,800 of 6 on v5p, 3,584 of 4 on v6e.
# Capacity: what the compiler names in its own message when a program does not fit, below the data sheets' 32 (for two cores),
# 16, 95 and 32 GB.
# Clocks: peak / (FLOPs a cycle of the matrix units): 4 units of 128 x 128 on v4 (per core) and v5e, 8 on v5p; on v6e units
# of 256 x 256, of which four make its peak and the compiler's cycles agree. At these clocks the compiler's cycles for a
# product of two 4,096 x 4,096 matrices take 1.18 (v4), 1.04 (v5e), 1.04 (v5p), 1.15 (v6e) times the time at peak, for
# 8,192: 1.14 (v5e), 1.11 (v5p), 1.42 (v6e). `tests/test_plan.py` holds the first. Where HBM is the limit they take 1.2 (v6e)
# to 1.6 (v5p) times the time of the bytes in a thin product, and 2.5 times in a plain pass over an array.
# Ironwood: docs.cloud.google.com/tpu/docs/tpu7x. A chip has 2,307 TFLOP/s in bf16 (4,614 in fp8, which nothing here uses), 192 GiB at
# 7,380 GB/s, and 1,200 GB/s of ICI in both directions together; half of it is one device's. Its two devices share the 6 links of the
# chip, so each has half of a link, as if both sent at the same time. A device has 4 units of 256 x 256: at 2.2 GHz they make its peak,
# and the compiler's cycles take 1.21 (4,096; 1.28 with the wait for its operands) and 1.24 (8,192) times the time at peak, 1.3 in a thin
# product, 2.6 in a plain pass.
GIB = 2.0**30
CHIPS = {
    "v4": Chip("v4", 275e12 / 2, 1228e9 / 2, 15.25 * GIB, 1.05e9, 2400e9 / 8 / 6, 4, 2),
    "v5e": Chip("v5e", 197e12, 819e9, 15.75 * GIB, 1.5e9, 1600e9 / 8 / 4, 16),
    "v5p": Chip("v5p", 459e12, 2765e9, 95.74 * GIB, 1.75e9, 4800e9 / 8 / 6, 4),
    "v6e": Chip("v6e", 918e12, 1640e9, 31.25 * GIB, 1.75e9, 3584e9 / 8 / 4, 16),
    "tpu7x": Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, 94.75 * GIB, 2.2e9, 1200e9 / 2 / 6 / 2, 4, 2),
}
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""What JAX calls a device, in its versions -> name of the chip."""
EXAMPLES = "v5e:2x2, v5e:4x4, v5p:2x2x2, v6e:4x4"
HOP = 1e-6
"""Seconds that a message of any size takes from a chip to its neighbour."""

VMEM_OVER_HBM = 20
"""Vector memory is about this much faster than HBM (jax-ml.github.io/scaling-book, "TPUs")."""


def chip_of(topology: str) -> Chip:
    """The chip that a topology such as "v5e:4x4" names.

    Raises:
      UserError: no chip of that name is known.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(
            f"no figures for this chip; known are {', '.join(CHIPS)}",
            field="--topology",
            value=topology,
            remedy=f"give a chip and its slice's shape, such as {EXAMPLES}",
        )
    return CHIPS[name]


def chip_of_device(device: jax.Device) -> Chip | None:
    """The chip of a device that is there; None if there are no figures for it."""
    name = KINDS.get(device.device_kind)
    return None if name is None else CHIPS[name]


def open_topology(topology: str) -> Sequence[Any]:
    """The devices of a slice, as the TPU compiler knows them; no TPU is needed.

    Raises:
      UserError: libtpu is missing, or there is no such slice.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler (libtpu) is not installed",
            field="--topology",
            value=topology,
            remedy="pip install 'rcsd_jax[tpu]'; it runs on a machine without a TPU",
        )
    shape = topology.partition(":")[2]
    settings = {"chips_per_host_bounds": [1, 1, 1]} if shape in ("1x1", "1x1x1") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **settings).devices
    except Exception as error:  # the plugin's own, of several types
        raise UserError(
            f"no such slice ({first_line(error)})",
            field="--topology",
            value=topology,
            remedy=f"give a chip and its slice's shape, such as {EXAMPLES}",
        ) from error


class Interconnect:
    """How long collectives take on a slice: bytes over the links that a group of chips has, and a hop's latency a step.

    A group spans one or more axes of the torus. On each it has a ring (two links a chip) where the slice is long enough to
    wrap around, else a line, whose ends have one link: the slowest chip counts. Congestion with other traffic is left out.
    """

    def __init__(self, chip: Chip, devices: Sequence[Any]):
        """`devices`: in the mesh's order, which is that of partition ids."""
        self.chip = chip
        self.coords = [tuple(d.coords) for d in devices]
        self.bounds = [max(c[axis] for c in self.coords) + 1 for axis in range(len(self.coords[0]))]

    def seconds(self, kind: str, group: Sequence[int], sent: float) -> float:
        """Seconds of a collective.

        Args:
          kind: its name in HLO.
          group: partition ids of one group; empty for all.
          sent: bytes that every chip sends.
        """
        members = [self.coords[i] for i in (group or range(len(self.coords)))]
        sizes = [len({m[axis] for m in members}) for axis in range(len(self.bounds))]
        spanned = [(size, bound) for size, bound in zip(sizes, self.bounds, strict=True) if size > 1]
        if not spanned:  # the two cores of one chip, or one chip: no link
            return sent / self.chip.hbm
        rings = [bound >= self.chip.wrap and size == bound for size, bound in spanned]
        steps = sum(size // 2 if ring else size - 1 for (size, _), ring in zip(spanned, rings, strict=True))
        if kind == "collective-permute":
            return sent / self.chip.link + HOP
        links = sum(2 if ring else 1 for ring in rings)
        if kind == "all-to-all":  # what is sent crosses a quarter of a ring on the way, a third of a line
            hops = max(math.prod(size for size, _ in spanned) ** (1 / len(spanned)) / (4 if all(rings) else 3), 1.0)
            sent *= hops
        return sent / (links * self.chip.link) + HOP * steps
