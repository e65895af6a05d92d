"""Bytes that instructions read from and write to HBM. For an operand that is sliced or updated in place, only the slice counts."""

from __future__ import annotations

from rcsd_jax.plan.hlo import Computation, Instruction, Module, Shape
from rcsd_jax.plan.kernels import stated_bytes

HBM = (0,)  # memory spaces


def hbm_bytes(module: Module, computation: Computation, i: Instruction) -> float:
    """Bytes that an instruction reads from and writes to HBM; for a sliced operand, only the slice counts."""
    stated = stated_bytes(computation, i)
    if stated is not None:
        return stated
    inner = module.inside(i) if i.opcode == "fusion" else None
    if i.opcode == "dynamic-slice" or i.opcode == "gather" or i.opcode == "slice":
        source = computation.operand(i, 0).shapes[0].space in HBM
        return i.bytes * (source + (i.shapes[0].space in HBM))
    if i.opcode == "dynamic-update-slice":
        update = computation.operand(i, 1)
        return update.bytes * ((i.shapes[0].space in HBM) + (update.shapes[0].space in HBM))
    total = 0.0
    for position, name in enumerate(i.operands):
        operand = computation.by_name[name]
        if any(s.space in HBM for s in operand.shapes):
            total += operand.bytes if inner is None else _read(module, inner, position, operand.bytes)
    written = [s for s in i.shapes if s.space in HBM]
    if inner is None:
        return total + sum(s.bytes for s in written)
    return total + _written(inner, written)


def _read(module: Module, inner: Computation, position: int, whole: float) -> float:
    """Bytes of a parameter that a fused computation reads."""
    name = inner.parameters[position].name
    total = 0.0
    for user in _users(inner, name):
        if user.opcode in ("dynamic-slice", "gather", "slice"):
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] in _aliases(inner, name):
            continue  # updated in place
        elif user.opcode == "fusion":
            deeper = module.called(user, "calls")
            places = [k for k, o in enumerate(user.operands) if o in _aliases(inner, name)]
            total += sum(_read(module, deeper, k, whole) for k in places)
        else:
            return whole
    return min(total, whole)


def _written(inner: Computation, written: list[Shape]) -> float:
    updates = [inner.operand(j, 1).bytes for j in inner.instructions if j.opcode == "dynamic-update-slice"]
    places = {j.shapes[0].dims for j in inner.instructions if j.opcode == "dynamic-update-slice"}
    whole = sum(s.bytes for s in written if s.dims not in places)
    return whole + (sum(updates) if any(s.dims in places for s in written) else 0.0)


def _aliases(computation: Computation, name: str) -> set[str]:
    names = {name}
    for i in computation.instructions:
        if i.opcode in ("bitcast", "reshape") and i.operands[0] in names:
            names.add(i.name)
    return names


def _users(computation: Computation, name: str) -> list[Instruction]:
    names = _aliases(computation, name)
    return [i for i in computation.instructions if i.name not in names and names & set(i.operands)]
