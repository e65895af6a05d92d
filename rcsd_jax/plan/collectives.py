"""Collectives of a compiled program: the participants, the bytes that each chip sends, and the work that runs at the same time."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple, TypeAlias

from rcsd_jax.plan.hlo import Computation, Instruction, Module

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

Progress: TypeAlias = Literal["waited", "start", "done", "continued"]
"""Whether the chip waits for a collective; for an asynchronous one its start, its end, or work that runs at the same time."""


class Collective(NamedTuple):
    """An instruction that is, or holds, a collective."""

    kind: str  # one of `COLLECTIVES`
    group: tuple[int, ...]  # partition ids; empty: all
    sent: float  # bytes, by one chip
    progress: Progress


def channels_started(module: Module, computation: Computation) -> set[str]:
    """The channels of the asynchronous collectives that fusions of a computation start."""
    starts = [inner for i in computation.instructions if (inner := module.inside(i)) is not None and _is_start(inner)]
    return {channel for inner in starts for i in inner.instructions if (channel := _channel(i)) is not None}


def collective_of(
    module: Module, computation: Computation, instruction: Instruction, started: set[str]
) -> Collective | None:
    """The collective that an instruction is or holds; None for anything else.

    Args:
      module, computation: where the instruction is.
      instruction: any instruction.
      started: the result of `channels_started`.
    """
    kind = instruction.opcode.removesuffix("-done")
    if kind in COLLECTIVES and instruction.opcode != kind:
        return Collective(kind, (), 0.0, "done")
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return _collective(computation, instruction, kind, "waited" if kind == instruction.opcode else "start")
    inner = module.inside(instruction)
    held = [i for i in inner.instructions if i.opcode in COLLECTIVES] if inner is not None else []
    if inner is None or not held:
        return None
    first = held[0]
    if _is_start(inner):
        return _collective(inner, first, first.opcode, "start")
    if _has_call(inner, "AsyncCollectiveDone"):
        return Collective(first.opcode, (), 0.0, "done")
    if inner.name.startswith("async_collective_fusion") or _channel(first) in started:
        return Collective(first.opcode, (), 0.0, "continued")
    kind = first.opcode
    if kind == "all-reduce" and instruction.bytes < 0.75 * first.bytes:
        kind = "reduce-scatter"  # TPUs write it as an all-reduce, and every chip keeps its slice
    return _collective(inner, first, kind, "waited")


def _collective(computation: Computation, i: Instruction, kind: str, progress: Progress) -> Collective:
    group = replica_group(i)
    operand = sum(computation.by_name[o].bytes for o in i.operands)
    result = i.bytes
    if i.opcode.endswith("-start"):  # its result holds operand and result
        result = max(result - operand, operand)
    return Collective(kind, group, wire_bytes(kind, result, operand, max(len(group), 1)), progress)


def _channel(i: Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", i.attributes) if i.opcode in COLLECTIVES else None
    return found.group(1) if found else None


def _has_call(computation: Computation, target: str) -> bool:
    return any(i.opcode == "custom-call" and target in i.call_target for i in computation.instructions)


def _is_start(computation: Computation) -> bool:
    return _has_call(computation, "AsyncCollectiveStart")


def replica_group(instruction: Instruction) -> tuple[int, ...]:
    """The partition ids of the first group of a collective; for a permutation, of the first pair that differs.

    Empty if the text names no group, which means that all devices take part.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", instruction.attributes)
    if pairs:
        found = [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)\}", pairs.group(1))]
        return next((p for p in found if p[0] != p[1]), found[0])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.attributes)
    if listed:
        return tuple(map(int, listed.group(1).split(",")))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction.attributes)
    if iota:
        sizes, dims = (tuple(map(int, iota.group(k).split(","))) for k in (1, 2))
        order = tuple(map(int, iota.group(3).split(","))) if iota.group(3) else tuple(range(len(dims)))
        return tuple(_position(n, dims, order) for n in range(sizes[-1]))
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes)
    if axes:
        mesh = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", axes.group(1))]
        chosen = [a for a in re.findall(r"'([^']+)'", axes.group(2))]
        ids = [0]
        for name in chosen:
            stride = math.prod(s for _, s in mesh[[n for n, _ in mesh].index(name) + 1 :])
            ids = [i + k * stride for i in ids for k in range(dict(mesh)[name])]
        return tuple(ids)
    return ()


def _position(n: int, dims: tuple[int, ...], order: tuple[int, ...]) -> int:
    """The n-th of iota(prod(dims)).reshape(dims).transpose(order)."""
    digits = {}
    for axis in reversed(order):
        digits[axis] = n % dims[axis]
        n //= dims[axis]
    position = 0
    for axis, size in enumerate(dims):
        position = position * size + digits[axis]
    return position


def wire_bytes(kind: str, result: float, operand: float, size: int) -> float:
    """Bytes that one chip sends (and receives) in a collective of `size` chips.

    Args:
      kind: one of `COLLECTIVES`.
      result, operand: bytes of its result and of its operand on one chip.
      size: chips in a group.
    """
    share = (size - 1) / size
    return {
        "all-gather": result * share,
        "all-reduce": 2 * operand * share,
        "reduce-scatter": operand * share,
        "all-to-all": operand * share,
        "collective-permute": operand,
    }[kind]
