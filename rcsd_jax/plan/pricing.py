"""Prices a compiled program on a chip: puts its HLO on a time line and counts loops as often as they run.

The time line follows the compiler's own schedule. An instruction takes the cycles that the compiler estimates. Copies between HBM
and vector memory, and collectives that the compiler made asynchronous or gave to a SparseCore, run at the same time; the chip waits for those that are not
done when their result is needed. Kernels and collectives have no estimate and are modelled from FLOPs and bytes. Each part is
summed separately, so that one sees where each share of the time comes from.
"""

from __future__ import annotations

import re

from rcsd_jax.models import dealt_experts
from rcsd_jax.plan.collectives import channels_started, collective_of
from rcsd_jax.plan.cost import Cost, Kernel, LoopCount, Traffic
from rcsd_jax.plan.hbm_traffic import HBM, hbm_bytes
from rcsd_jax.plan.hlo import Computation, Instruction, Module
from rcsd_jax.plan.hlo_loops import loop_of
from rcsd_jax.plan.kernels import kernel_flops, stated_bytes
from rcsd_jax.plan.product_flops import flops_of
from rcsd_jax.plan.rates import Rates
from rcsd_jax.plan.sparsecore import offloaded
from rcsd_jax.plan.timeline import TimeLine

# Instructions that move no data: they name places, or are done as part of others.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier add-dependency "
    "domain copy-start slice-start async-start async-update async-done".split()
)
_FREE_CALLS = ("AsyncCollective", "ConcatBitcast", "AssumeGatherIndices", "AllocateBuffer", "Sharding", "SliceBitcast")

USUAL_TRIPS = {dealt_experts.PARTS: 0}
"""A loop's scope -> how often it usually runs, if neither the text nor the program's lengths say it."""


def cost_of(module: Module, rates: Rates, *, dynamic_trips: int | None = None) -> Cost:
    """The cost of a program on one chip.

    Args:
      module: the result of `hlo.parse`.
      rates: the chip's rates.
      dynamic_trips: runs of loops that may end before their bound; None counts them up to the bound.
    """
    return _Pricer(module, rates, dynamic_trips).computation(module.entry)


class _Pricer:
    """Prices computations, each only once."""

    def __init__(self, module: Module, rates: Rates, dynamic_trips: int | None):
        self.module, self.rates, self.dynamic_trips = module, rates, dynamic_trips
        self.priced: dict[str, Cost] = {}

    def computation(self, computation: Computation) -> Cost:
        if computation.name not in self.priced:
            self.priced[computation.name] = self._price(computation)
        return self.priced[computation.name]

    def _price(self, computation: Computation) -> Cost:
        cost, line = Cost(), TimeLine(self.rates)
        started = channels_started(self.module, computation)
        for i in computation.instructions:
            if i.opcode in ("while", "call", "conditional"):
                part = self._called(computation, i)
                cost.add(part)
                line.passes(part.seconds, part.hbm_bytes)
                continue
            if i.opcode in ("copy-start", "slice-start"):
                source, target = computation.operand(i, 0).shapes[0], i.shapes[0 if i.opcode == "copy-start" else 1]
                line.starts_copy(i.name, target.bytes)
                cost.hbm_bytes += target.bytes * ((source.space in HBM) + (target.space in HBM))
                continue
            if i.opcode in ("copy-done", "slice-done"):
                cost.hbm_wait += line.needs_copy(i.operands[0])
                continue
            if i.opcode == "call-start":
                self._offloaded(i, cost, line)
                continue
            if i.opcode == "call-done":
                cost.collective += line.needs_collective(i.operands[0])
                cost.hbm_wait += line.needs_copy(i.operands[0])
                continue
            collective = collective_of(self.module, computation, i, started)
            if collective is None or collective.progress == "continued":
                self._instruction(computation, i, cost, line)
            elif collective.progress == "done":
                cost.collective += line.needs_collective(i.operands[0])
            else:
                kind, group, sent, progress = collective
                seconds = self.rates.collective(kind, group, sent)
                cost.add_collective(kind, Traffic(1, sent, seconds))
                if progress == "start":
                    line.starts_collective(i.name, seconds)
                else:
                    cost.collective += line.waits_collective(seconds)
        return cost

    def _offloaded(self, i: Instruction, cost: Cost, line: TimeLine) -> None:
        work = offloaded(self.module, i)
        for kind, group, sent, _ in work.collectives:
            seconds = self.rates.collective(kind, group, sent)
            cost.add_collective(kind, Traffic(1, sent, seconds))
            line.starts_collective(i.name, seconds)
        line.starts_copy(i.name, work.moved)
        cost.hbm_bytes += work.moved

    def _called(self, computation: Computation, i: Instruction) -> Cost:
        total = Cost()
        if i.opcode == "call":
            total.add(self.computation(self.module.called(i, "to_apply" if i.called("to_apply") else "calls")))
        elif i.opcode == "conditional":  # the most expensive branch
            total.add(
                max((self.computation(self.module.computations[name]) for name in i.branches), key=lambda c: c.seconds)
            )
        else:
            loop = loop_of(self.module, computation, i)
            trips = self.dynamic_trips if loop.dynamic and self.dynamic_trips is not None else loop.trips
            trips = next((n for name, n in USUAL_TRIPS.items() if f"/{name}/" in i.op_name), trips)
            body = self.computation(self.module.called(i, "body"))
            condition = self.computation(self.module.called(i, "condition"))
            total.add(body, 1 if trips is None else trips)
            total.add(condition, 1 if trips is None else trips)
            total.loops.append(
                LoopCount(i.op_name or i.name, 1 if trips is None else trips, loop.dynamic, trips is not None)
            )
            if self._is_windowed(self.module.called(i, "body")):
                total.windowed.append(i.op_name or i.name)
        return total

    def _is_windowed(self, body: Computation) -> bool:
        inside = list(body.instructions)
        for inner in map(self.module.inside, body.instructions):
            inside += inner.instructions if inner is not None else ()
        sends = any(j.opcode.startswith("collective-permute") for j in inside)
        return sends and any(j.opcode in ("dot", "convolution") for j in inside)

    def _instruction(self, computation: Computation, i: Instruction, cost: Cost, line: TimeLine) -> None:
        if i.opcode in _FREE or (i.opcode == "custom-call" and any(t in i.call_target for t in _FREE_CALLS)):
            return
        flops = flops_of(self.module, computation, i)
        moved = hbm_bytes(self.module, computation, i)
        cycles = i.estimated_cycles
        cost.flops += flops
        cost.hbm_bytes += moved
        if cycles is not None:
            seconds = cycles / self.rates.clock
            cost.compute += seconds
        else:
            in_place = i.opcode in ("fusion", "dynamic-update-slice", "dynamic-slice", "slice", "gather")
            in_place = in_place or stated_bytes(computation, i) is not None
            touched = moved if in_place else i.bytes + sum(computation.by_name[o].bytes for o in i.operands)
            counted = kernel_flops(computation, i) if i.opcode == "custom-call" else flops
            # Without an estimate: as fast as its FLOPs at the stated rate, or its bytes, allow.
            memory = moved / self.rates.hbm + max(touched - moved, 0.0) / self.rates.vmem
            seconds = max(counted / self.rates.kernel_flops, memory)
            cost.kernel += seconds
            if i.opcode == "custom-call":
                name = re.sub(r"[.\d]+$", "", i.name) if i.call_target == "tpu_custom_call" else i.call_target
                shapes = tuple(_show(computation.by_name[o]) for o in i.operands)
                cost.add_kernel(name, Kernel(1, counted, touched, seconds, shapes))
        line.passes(seconds, moved)


def _show(i: Instruction) -> str:
    return ", ".join(f"{s.dtype}[{','.join(map(str, s.dims))}]" for s in i.shapes)
