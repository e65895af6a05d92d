"""The trip counts of a compiled program's loops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from rcsd_jax.plan.hlo import Computation, Instruction, Module, found

# The call, at most one, through which a computation is reached: its place, and the instruction.
_Call: TypeAlias = tuple[tuple[Computation, Instruction], ...]


class Loop(NamedTuple):
    """How often a loop's body runs."""

    trips: int | None  # None: not found in the text
    dynamic: bool  # the loop may end earlier: its condition is more than a comparison with the bound


def loop_of(module: Module, computation: Computation, loop: Instruction) -> Loop:
    """The trip count of a `while`.

    The compiler may note it (`known_trip_count`). Otherwise it is the bound in the condition minus the counter's start;
    counters step by one, as in `lax.scan`, `fori_loop` and GSPMD's loops. Bounds may be constants of the condition or of a
    computation that it calls, or values that the loop carries unchanged.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return Loop(int(known.group(1)), False)
    condition = module.called(loop, "condition")
    init = computation.operand(loop, 0)
    root = condition.root
    while root.opcode in ("copy", "bitcast", "convert"):
        root = condition.operand(root, 0)
    if root.opcode == "fusion":
        inner = module.called(root, "calls").root
        dynamic = inner.opcode != "compare"
    else:
        dynamic = root.opcode != "compare"
    for place, compare, given in _comparisons(module, condition):
        direction = found(r"direction=(\w+)", compare.attributes).group(1)
        sides = [_resolve(module, place, name, given, computation, init) for name in compare.operands]
        if direction in ("GT", "GE"):
            sides, direction = sides[::-1], {"GT": "LT", "GE": "LE"}[direction]
        (left_index, left), (_, right) = sides
        if direction in ("LT", "LE", "NE") and left_index is not None and right is not None:
            return Loop(max(right - (left or 0) + (direction == "LE"), 0), dynamic)
    return Loop(None, True)


def _comparisons(module: Module, condition: Computation) -> Iterator[tuple[Computation, Instruction, _Call]]:
    """Comparisons of integers in a condition and in the computations it calls, with the operands of the call."""
    for i in condition.instructions:
        if i.opcode == "compare":
            yield condition, i, ()
        inner = i.called("calls")
        if inner:
            place = module.computations[inner]
            for j in place.instructions:
                if j.opcode == "compare":
                    yield place, j, ((condition, i),)


def _resolve(
    module: Module, place: Computation, name: str, given: _Call, outer: Computation, init: Instruction
) -> tuple[int | None, int | None]:
    """(its place in the loop's state, its constant value), each None if it has none; at entry to the loop."""
    i = place.by_name[name]
    while i.opcode in ("copy", "bitcast", "convert", "reshape"):
        i = place.operand(i, 0)
    if i.opcode == "constant":
        return None, int(i.literal) if re.fullmatch(r"-?\d+", i.literal) else None
    if i.opcode == "parameter" and given:
        ((caller, call),) = given
        return _resolve(module, caller, call.operands[int(i.literal)], (), outer, init)
    if i.opcode == "get-tuple-element":
        index = int(found(r"index=(\d+)", i.attributes).group(1))
        value = None
        if init.opcode == "tuple":
            _, value = _constant(outer, init.operands[index])
        return index, value
    if i.opcode == "parameter":  # of a condition whose state is one number
        return 0, _constant(outer, init.name)[1]
    return None, None


def _constant(place: Computation, name: str) -> tuple[None, int | None]:
    i = place.by_name[name]
    while i.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "broadcast") and i.operands:
        i = place.operand(i, 0)
    literal = i.literal if i.opcode == "constant" else ""
    return None, int(literal) if re.fullmatch(r"-?\d+", literal) else None
