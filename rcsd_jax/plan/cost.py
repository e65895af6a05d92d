"""What a compiled program costs on a chip: its HLO, loops counted as often as they run, put on a time line.

The time line follows the compiler's own schedule. An instruction takes the cycles that the compiler estimates. Copies
between HBM and vector memory and collectives that the compiler made asynchronous go on beside it; what is not done when
its result is needed is waited for. What carries no estimate (kernels, collectives) is modelled from FLOPs and bytes, and
each part is summed apart, so that one sees how much of the time is whose word.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rcsd_jax.plan import hlo

# Instructions that move no data: names for places, or done as part of others.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier add-dependency "
    "domain copy-start slice-start async-start async-update async-done".split()
)
_FREE_CALLS = ("AsyncCollective", "ConcatBitcast", "AssumeGatherIndices", "AllocateBuffer", "Sharding", "SliceBitcast")
_HBM = (0,)  # memory spaces


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
      flops: of matrix products that XLA compiles; those of kernels are theirs.
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
        """Adds another part that runs so many times."""
        for name in ("flops", "hbm_bytes", "compute", "kernel", "hbm_wait", "collective"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name, kernel in other.kernels.items():
            self.kernels[name] = _sum(self.kernels.get(name, Kernel()), kernel, times)
        for kind, traffic in other.collectives.items():
            self.collectives[kind] = _sum(self.collectives.get(kind, Traffic()), traffic, times)
        self.loops += other.loops
        self.windowed += other.windowed


_Part = TypeVar("_Part", Kernel, Traffic)


def _sum(ours: _Part, theirs: _Part, times: float) -> _Part:
    changed = {}
    for field in dataclasses.fields(theirs):
        if field.name != "operands":
            changed[field.name] = getattr(ours, field.name) + times * getattr(theirs, field.name)
    return dataclasses.replace(theirs, **changed)


def cost_of(module: hlo.Module, rates: Rates, *, dynamic_trips: int | None = None) -> Cost:
    """The cost of a program on one chip.

    Args:
      module: of `hlo.parse`.
      rates: of the chip.
      dynamic_trips: runs of loops that may end before their bound; None counts them up to the bound.
    """
    return _Pricer(module, rates, dynamic_trips).computation(module.entry)


class _Pricer:
    """Prices computations; each once, however often it is called."""

    def __init__(self, module: hlo.Module, rates: Rates, dynamic_trips: int | None):
        self.module, self.rates, self.dynamic_trips = module, rates, dynamic_trips
        self.priced: dict[str, Cost] = {}

    def computation(self, computation: hlo.Computation) -> Cost:
        if computation.name not in self.priced:
            self.priced[computation.name] = self._price(computation)
        return self.priced[computation.name]

    def _price(self, computation: hlo.Computation) -> Cost:
        cost, line = Cost(), _TimeLine(self.rates)
        started = {
            _channel(i)
            for f in computation.instructions
            for i in self._fused(f)
            if _is_start(self._fused_computation(f))
        } - {None}
        for i in computation.instructions:
            if i.opcode in ("while", "call", "conditional"):
                part = self._called(computation, i)
                cost.add(part)
                line.passes(part.seconds, part.hbm_bytes)
                continue
            if i.opcode in ("copy-start", "slice-start"):
                source, target = computation.operand(i, 0).shapes[0], i.shapes[0 if i.opcode == "copy-start" else 1]
                line.starts_copy(i.name, target.bytes)
                cost.hbm_bytes += target.bytes * ((source.space in _HBM) + (target.space in _HBM))
                continue
            if i.opcode in ("copy-done", "slice-done"):
                cost.hbm_wait += line.needs_copy(i.operands[0])
                continue
            collective = self._collective(computation, i, started)
            if collective is not None:
                kind, group, sent, how = collective
                seconds = self.rates.collective(kind, group, sent)
                if how == "done":
                    cost.collective += line.needs_collective(i.operands[0])
                    continue
                if how != "continued":
                    traffic = Traffic(1, sent, seconds)
                    cost.collectives[kind] = _sum(cost.collectives.get(kind, Traffic()), traffic, 1)
                if how == "start":
                    line.starts_collective(i.name, seconds)
                    continue
                if how == "waited":
                    cost.collective += line.waits_collective(seconds)
                    continue
            self._instruction(computation, i, cost, line)
        return cost

    def _called(self, computation: hlo.Computation, i: hlo.Instruction) -> Cost:
        total = Cost()
        if i.opcode == "call":
            total.add(self.computation(self.module.called(i, "to_apply" if i.called("to_apply") else "calls")))
        elif i.opcode == "conditional":  # the dearest branch
            total.add(
                max((self.computation(self.module.computations[name]) for name in i.branches), key=lambda c: c.seconds)
            )
        else:
            loop = hlo.loop_of(self.module, computation, i)
            trips = self.dynamic_trips if loop.dynamic and self.dynamic_trips is not None else loop.trips
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

    def _is_windowed(self, body: hlo.Computation) -> bool:
        inside = [j for i in body.instructions for j in (i, *self._fused(i))]
        sends = any(j.opcode.startswith("collective-permute") for j in inside)
        return sends and any(j.opcode in ("dot", "convolution") for j in inside)

    def _instruction(self, computation: hlo.Computation, i: hlo.Instruction, cost: Cost, line: _TimeLine) -> None:
        if i.opcode in _FREE or (i.opcode == "custom-call" and any(t in _target(i) for t in _FREE_CALLS)):
            return
        flops = self._flops(computation, i)
        moved = self._hbm_bytes(computation, i)
        cycles = i.estimated_cycles
        cost.flops += flops
        cost.hbm_bytes += moved
        if cycles is not None:
            seconds = cycles / self.rates.clock
            cost.compute += seconds
        else:
            in_place = i.opcode in ("fusion", "dynamic-update-slice", "dynamic-slice", "slice", "gather")
            in_place = in_place or _stated_bytes(computation, i) is not None
            touched = moved if in_place else i.bytes + sum(computation.by_name[o].bytes for o in i.operands)
            kernel_flops = _kernel_flops(computation, i) if i.opcode == "custom-call" else flops
            # Without an estimate: as fast as its FLOPs at the stated rate, or its bytes, allow.
            memory = moved / self.rates.hbm + max(touched - moved, 0.0) / self.rates.vmem
            seconds = max(kernel_flops / self.rates.kernel_flops, memory)
            cost.kernel += seconds
            if i.opcode == "custom-call":
                name = re.sub(r"[.\d]+$", "", i.name) if _target(i) == "tpu_custom_call" else _target(i)
                shapes = tuple(_show(computation.by_name[o]) for o in i.operands)
                kernel = Kernel(1, kernel_flops, touched, seconds, shapes)
                cost.kernels[name] = _sum(cost.kernels.get(name, Kernel()), kernel, 1)
        line.passes(seconds, moved)

    # --- what a fusion holds ---------------------------------------------------------------------------------------

    def _fused_computation(self, i: hlo.Instruction) -> hlo.Computation | None:
        inner = i.called("calls")
        return self.module.computations[inner] if inner else None

    def _fused(self, i: hlo.Instruction) -> tuple[hlo.Instruction, ...]:
        inner = self._fused_computation(i)
        return () if inner is None else inner.instructions

    def _flops(self, computation: hlo.Computation, i: hlo.Instruction) -> float:
        inner = self._fused_computation(i)
        if inner is None:
            return hlo.product_flops(computation, i)
        return sum(self._flops(inner, j) for j in inner.instructions)

    def _hbm_bytes(self, computation: hlo.Computation, i: hlo.Instruction) -> float:
        """Bytes that an instruction reads from and writes to HBM; of an operand that is sliced, the slice."""
        stated = _stated_bytes(computation, i)
        if stated is not None:
            return stated
        inner = self._fused_computation(i) if i.opcode == "fusion" else None
        if i.opcode == "dynamic-slice" or i.opcode == "gather" or i.opcode == "slice":
            source = computation.operand(i, 0).shapes[0].space in _HBM
            return i.bytes * (source + (i.shapes[0].space in _HBM))
        if i.opcode == "dynamic-update-slice":
            update = computation.operand(i, 1)
            return update.bytes * ((i.shapes[0].space in _HBM) + (update.shapes[0].space in _HBM))
        total = 0.0
        for position, name in enumerate(i.operands):
            operand = computation.by_name[name]
            if any(s.space in _HBM for s in operand.shapes):
                total += operand.bytes if inner is None else self._read(inner, position, operand.bytes)
        written = [s for s in i.shapes if s.space in _HBM]
        if inner is None:
            return total + sum(s.bytes for s in written)
        return total + self._written(inner, written)

    def _read(self, inner: hlo.Computation, position: int, whole: float) -> float:
        """Bytes of a parameter that a fused computation reads."""
        name = inner.parameters[position].name
        total = 0.0
        for user in _users(inner, name):
            if user.opcode in ("dynamic-slice", "gather", "slice"):
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] in _aliases(inner, name):
                continue  # updated in place
            elif user.opcode == "fusion":
                deeper = self.module.called(user, "calls")
                places = [k for k, o in enumerate(user.operands) if o in _aliases(inner, name)]
                total += sum(self._read(deeper, k, whole) for k in places)
            else:
                return whole
        return min(total, whole)

    def _written(self, inner: hlo.Computation, written: list[hlo.Shape]) -> float:
        updates = [inner.operand(j, 1).bytes for j in inner.instructions if j.opcode == "dynamic-update-slice"]
        places = {j.shapes[0].dims for j in inner.instructions if j.opcode == "dynamic-update-slice"}
        whole = sum(s.bytes for s in written if s.dims not in places)
        return whole + (sum(updates) if any(s.dims in places for s in written) else 0.0)

    # --- collectives -----------------------------------------------------------------------------------------------

    def _collective(
        self, computation: hlo.Computation, i: hlo.Instruction, started: set[str | None]
    ) -> tuple[str, tuple[int, ...], float, str] | None:
        """(kind, group, bytes sent, how) of a collective; None of anything else.

        `how`: "waited", "start" and "done" of an asynchronous one, or "continued": work that goes on beside one.
        """
        if i.opcode.endswith("-done") and i.opcode.removesuffix("-done") in hlo.COLLECTIVES:
            return i.opcode.removesuffix("-done"), (), 0.0, "done"
        kind = i.opcode.removesuffix("-start")
        if kind in hlo.COLLECTIVES:
            return *self._wire(computation, i, kind), "start" if i.opcode.endswith("-start") else "waited"
        inner = self._fused_computation(i)
        found = [j for j in self._fused(i) if j.opcode in hlo.COLLECTIVES]
        if inner is None or not found:
            return None
        if _is_start(inner):
            return *self._wire(inner, found[0], found[0].opcode), "start"
        if _has_call(inner, "AsyncCollectiveDone"):
            return found[0].opcode, (), 0.0, "done"
        if inner.name.startswith("async_collective_fusion") or _channel(found[0]) in started:
            return found[0].opcode, (), 0.0, "continued"
        kind = found[0].opcode
        if kind == "all-reduce" and i.bytes < 0.75 * found[0].bytes:
            kind = "reduce-scatter"  # TPUs write it as an all-reduce of which every chip keeps its slice
        return *self._wire(inner, found[0], kind), "waited"

    def _wire(self, computation: hlo.Computation, i: hlo.Instruction, kind: str) -> tuple[str, tuple[int, ...], float]:
        group = hlo.replica_group(i)
        operand = sum(computation.by_name[o].bytes for o in i.operands)
        result = i.bytes
        if i.opcode.endswith("-start"):  # its result holds operand and result
            result = max(result - operand, operand)
        return kind, group, hlo.wire_bytes(kind, result, operand, max(len(group), 1))


class _TimeLine:
    """What goes on beside the instructions of one computation: copies, in the order started, and collectives."""

    def __init__(self, rates: Rates):
        self.rates, self.now = rates, 0.0
        self.copies: collections.OrderedDict[str, float] = collections.OrderedDict()  # name -> bytes still to move
        self.wire_free = 0.0
        self.collectives: dict[str, float] = {}  # name -> when it is done

    def passes(self, seconds: float, hbm_bytes: float = 0.0) -> None:
        """An instruction runs, and uses this much of HBM's bandwidth itself."""
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
        """Seconds until a copy, and those before it, are done."""
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
        """Seconds that a collective takes which nothing hides; those under way go first."""
        waited = max(self.wire_free, self.now) + seconds - self.now
        self.passes(waited)
        self.wire_free = self.now
        return waited


def _aliases(computation: hlo.Computation, name: str) -> set[str]:
    names = {name}
    for i in computation.instructions:
        if i.opcode in ("bitcast", "reshape") and i.operands[0] in names:
            names.add(i.name)
    return names


def _users(computation: hlo.Computation, name: str) -> list[hlo.Instruction]:
    names = _aliases(computation, name)
    return [i for i in computation.instructions if i.name not in names and names & set(i.operands)]


def _channel(i: hlo.Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", i.attributes) if i.opcode in hlo.COLLECTIVES else None
    return found.group(1) if found else None


def _has_call(computation: hlo.Computation | None, target: str) -> bool:
    return computation is not None and any(
        i.opcode == "custom-call" and target in _target(i) for i in computation.instructions
    )


def _is_start(computation: hlo.Computation | None) -> bool:
    return _has_call(computation, "AsyncCollectiveStart")


def _target(i: hlo.Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    return found.group(1) if found else ""


def _show(i: hlo.Instruction) -> str:
    return ", ".join(f"{s.dtype}[{','.join(map(str, s.dims))}]" for s in i.shapes)


def _stated_bytes(computation: hlo.Computation, i: hlo.Instruction) -> float | None:
    """Bytes of a pool of keys or values that a kernel touches, where that is not all of it; else None.

    `cache_write` says so itself; paged attention reads the pages in its table.
    """
    if i.opcode == "custom-call" and i.name.startswith("write_places"):
        return float(_said_of_kernel(i)["bytes_accessed"])
    if i.opcode != "custom-call" or not i.name.startswith("paged_attention"):
        return None
    arrays = [computation.by_name[o].shapes[0] for o in i.operands]
    pools = [s for s in arrays if len(s.dims) == 4 and s.dtype in ("bf16", "f16", "f32", "s8")][-2:]
    table = max(s.dims[0] for s in arrays if s.dtype == "s32" and len(s.dims) == 1)  # [B * pages of a row]
    return float(sum(s.bytes / s.dims[1] * table for s in pools))


# Products of [T, Hd] and [Hd, S] that an attention kernel makes: two forward; backward, the kernels of dq and of dk and dv
# both make the scores and their gradient anew; the fused one makes them once.
_ATTENTION_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_FUSED_BACKWARD_PRODUCTS = 5


def _said_of_kernel(i: hlo.Instruction) -> dict[str, Any]:
    """A Pallas kernel's own `cost_estimate`; empty without one."""
    said = re.search(r'"cost_estimate":(\{[^}]*\})', i.attributes)
    return json.loads(said.group(1)) if said else {}


def _kernel_flops(computation: hlo.Computation, i: hlo.Instruction) -> float:
    """FLOPs of a Pallas kernel: as it says itself, or of attention by its operands' shapes, causal; else 0."""
    if said := _said_of_kernel(i):
        return float(said.get("flops", 0))
    named = re.search(r"(?:splash|flash)_\w*?(fwd|dq|dkv)", i.name)
    if not named:
        return 0.0
    arrays = [computation.by_name[o].shapes[0] for o in i.operands]
    arrays = [s for s in arrays if len(s.dims) >= 3 and s.dtype in ("bf16", "f32", "f16") and s.dims[-1] > 1]
    if len(arrays) < 2:
        return 0.0
    q, k = arrays[0], arrays[1]
    part = named.group(1)
    fused = part == "dkv" and sum(len(s.dims) >= len(k.dims) for s in i.shapes) >= 3  # it writes dq as well
    products = _FUSED_BACKWARD_PRODUCTS if fused else _ATTENTION_PRODUCTS[part]
    length, keys, width = q.dims[-2], k.dims[-2], q.dims[-1]
    # Queries and keys come in blocks; what a block of queries sees of a block of keys is computed with all the rest of it.
    names = {"fwd": ("block_q", "block_kv")}.get(part, (f"block_q_{part}", f"block_kv_{part}"))
    found = [re.search(rf"{name}\W+(\d+)", i.attributes) for name in names]
    rows, columns = (min(int(n[1]), whole) if n else whole for n, whole in zip(found, (length, keys), strict=True))
    seen = sum(min(-(-end // columns) * columns, keys) for end in range(rows, length + 1, rows))
    return products * 2.0 * math.prod(q.dims[:-2]) * rows * seen * width
