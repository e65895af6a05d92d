"""Work that Ironwood's SparseCores do while the device goes on with other work: collectives, copies and gathers.

In HLO it is a `call-start` of a computation, and a `call-done` where its result is needed.
"""

from __future__ import annotations

from typing import NamedTuple

from rcsd_jax.plan.collectives import Collective, collective_of
from rcsd_jax.plan.hlo import Instruction, Module

_MOVE_NOTHING = frozenset("parameter constant tuple get-tuple-element bitcast call-done".split())


class Offloaded(NamedTuple):
    """What a `call-start` starts.

    Attributes:
      collectives: in their order.
      moved: bytes that other work reads and writes in HBM.
    """

    collectives: tuple[Collective, ...]
    moved: float


def offloaded(module: Module, start: Instruction) -> Offloaded:
    """The work of a `call-start`, with the calls inside it."""
    computation = module.called(start, "to_apply")
    collectives: tuple[Collective, ...] = ()
    moved = 0.0
    for i in computation.instructions:
        if i.opcode == "call-start":
            inner = offloaded(module, i)
            collectives, moved = collectives + inner.collectives, moved + inner.moved
        elif (collective := collective_of(module, computation, i, set())) is not None:
            collectives += (collective,)
        elif i.opcode not in _MOVE_NOTHING:
            moved += 2 * i.bytes
    return Offloaded(collectives, moved)
