"""Optimised HLO text as data: computations, shapes, loops with their trip counts, groups of devices, matrix products.

Nothing here knows TPUs or models; `rcsd_jax.plan.cost` puts prices on what this module reads.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1,
}  # fmt: skip

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """One array of an instruction's result; `space` is its memory: 0 is HBM, 1 the chip's vector memory."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without the padding of tiles; tokens and opaque types have none."""
        return self.size * BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # the leaves, where the result is a tuple
    operands: tuple[str, ...]
    literal: str  # what stands between the parentheses: a constant's value, a parameter's number
    attributes: str  # all that follows
    root: bool

    @property
    def bytes(self) -> float:
        """Of the whole result."""
        return sum(s.bytes for s in self.shapes)

    def called(self, role: str) -> str | None:
        """The computation that is called as `role`: calls, body, condition, to_apply."""
        return next((name for r, name in _CALLED.findall(self.attributes) if r == role), None)

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional, or those that a custom call lists."""
        listed = [n for names in _CALLED_LISTS.findall(self.attributes) for n in re.findall(r"[\w.\-]+", names)]
        two = [n for r, n in _CALLED.findall(self.attributes) if r in ("true_computation", "false_computation")]
        return tuple(listed + two)

    @property
    def op_name(self) -> str:
        """The JAX operation it comes from; empty if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def estimated_cycles(self) -> int | None:
        """The TPU compiler's estimate; None where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found.group(1)) if found else None


class Computation:
    """Instructions in the order in which they are scheduled."""

    def __init__(self, name: str, instructions: tuple[Instruction, ...]):
        self.name, self.instructions = name, instructions
        self.by_name = {i.name: i for i in instructions}
        self.root = next((i for i in instructions if i.root), instructions[-1])
        self.parameters = sorted((i for i in instructions if i.opcode == "parameter"), key=lambda i: int(i.literal))

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """An operand of one of its instructions."""
        return self.by_name[instruction.operands[index]]


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction, role: str) -> Computation:
        """The computation that an instruction calls as `role`, which it has to.

        Raises:
          KeyError: it calls none.
        """
        name = instruction.called(role)
        if name is None:
            raise KeyError(role)
        return self.computations[name]


def parse(text: str) -> Module:
    """Reads the text of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    lines: list[str] = []
    entry = name = None
    for line in text.splitlines():
        if name is None:
            header = _COMPUTATION.match(line)
            if header:
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
        elif line.startswith("}") and not line.startswith("}}"):  # a continued attribute may begin with two
            instructions = tuple(_instruction(one) for one in lines)
            computations[name] = Computation(name, instructions)
            name = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # an attribute with a line break in it
    if entry is None or entry not in computations:
        raise ValueError("the HLO text has no ENTRY computation")
    return Module(computations, computations[entry])


def _instruction(line: str) -> Instruction:
    head = _found(_INSTRUCTION, line)
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if not opcode:
        raise ValueError(f"not an HLO instruction: {line.strip()[:200]}")
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    operands = () if opcode.group(1) in ("constant", "parameter") else tuple(_OPERAND.findall(inside))
    return Instruction(
        head.group(2), opcode.group(1), shapes_of(rest[:end]), operands, inside, rest[close + 1 :], bool(head.group(1))
    )


def _found(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """What a pattern finds where every compiler writes it."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {re.compile(pattern).pattern} in the HLO text: {text.strip()[:200]}")
    return found


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays in a type's text, tuples flattened."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout or "")
        sizes = tuple(int(d.strip(" <=")) for d in dims.split(",") if d.strip())
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Loops


# The call, at most one, through which a computation is reached: where it stands, and the instruction.
_Call: TypeAlias = tuple[tuple[Computation, Instruction], ...]


class Loop(NamedTuple):
    """How often a loop's body runs."""

    trips: int | None  # None: not found in the text
    dynamic: bool  # the loop may end earlier: its condition is more than a comparison with the bound


def loop_of(module: Module, computation: Computation, loop: Instruction) -> Loop:
    """The trip count of a `while`.

    It is what the compiler noted (`known_trip_count`), or the bound in the condition less where the counter starts;
    counters step by one, as those of `lax.scan`, `fori_loop` and GSPMD's loops do. Bounds may be constants of the
    condition, of a computation that it calls, or values that the loop carries unchanged.
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
        direction = _found(r"direction=(\w+)", compare.attributes).group(1)
        sides = [_resolve(module, place, name, given, computation, init) for name in compare.operands]
        if direction in ("GT", "GE"):
            sides, direction = sides[::-1], {"GT": "LT", "GE": "LE"}[direction]
        (left_index, left), (_, right) = sides
        if direction in ("LT", "LE", "NE") and left_index is not None and right is not None:
            return Loop(max(right - (left or 0) + (direction == "LE"), 0), dynamic)
    return Loop(None, True)


def _comparisons(module: Module, condition: Computation) -> Iterator[tuple[Computation, Instruction, _Call]]:
    """Comparisons of integers in a condition and in what it calls, with the operands of the call."""
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
        index = int(_found(r"index=(\d+)", i.attributes).group(1))
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


# ---------------------------------------------------------------------------------------------------------------------
# Groups of devices


def replica_group(instruction: Instruction) -> tuple[int, ...]:
    """The partition ids of the first group of a collective; of a permutation, of the first pair that differs.

    Empty if the text names no group: then all devices take part.
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


# ---------------------------------------------------------------------------------------------------------------------
# Matrix products


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs (a multiplication and an addition are two) of a `dot` or `convolution`; 0 of anything else."""
    if instruction.opcode == "dot":
        left = computation.operand(instruction, 0).shapes[0]
        contracted = _found(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
        depth = math.prod(left.dims[int(d)] for d in contracted.split(",") if d)
        return 2.0 * instruction.shapes[0].size * depth
    if instruction.opcode == "convolution":
        left, right = (computation.operand(instruction, k).shapes[0] for k in (0, 1))
        return _convolution_flops(left, right, instruction.shapes[0], instruction.attributes)
    return 0.0


def _convolution_flops(left: Shape, right: Shape, out: Shape, attributes: str) -> float:
    # The TPU compiler turns matrix products into convolutions; batches become space, with windows that are mostly
    # padding. So only the products of real elements are counted, as XLA's own cost analysis does.
    lhs_labels, rhs_labels, out_labels = _found(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    lhs, rhs, result = (dict(zip(labels, shape.dims, strict=True)) for labels, shape in (
        (lhs_labels, left), (rhs_labels, right), (out_labels, out)))  # fmt: skip
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}
    groups = {name: int(n) for name, n in re.findall(r"(feature_group_count|batch_group_count)=(\d+)", attributes)}
    spatial = [label for label in lhs_labels if label.isdigit()]
    positions = 1
    for k, label in enumerate(sorted(spatial, key=int)):

        def field(name: str, default: str, k: int = k) -> str:
            return fields[name].split("x")[k] if name in fields else default

        low, high = map(int, field("pad", "0_0").split("_"))
        positions *= _valid_positions(
            lhs[label], rhs[label], result[label], int(field("stride", "1")), low, int(field("lhs_dilate", "1")),
            int(field("rhs_dilate", "1")),
        )  # fmt: skip
    batch = result["b"] / groups.get("batch_group_count", 1)
    # The kernel's input features are already those of one group.
    return 2.0 * batch * result["f"] * rhs["i"] * positions


@functools.cache
def _valid_positions(
    inputs: int, kernel: int, outputs: int, stride: int, low: int, dilate: int, kernel_dilate: int
) -> int:
    """Pairs (output place, kernel place) of one spatial dimension that meet a real input, not padding or a hole."""
    if kernel == 1 and low == 0 and stride == 1 and dilate == 1:
        return min(outputs, inputs)
    last = (inputs - 1) * dilate
    count = 0
    for k in range(kernel):
        shift = k * kernel_dilate - low  # output o reads place o * stride + shift of the dilated input
        if dilate == 1:
            first = max(-(shift // stride), 0)
            count += max(min((last - shift) // stride, outputs - 1) - first + 1, 0)
        else:
            places = (o * stride + shift for o in range(outputs))
            count += sum(0 <= p <= last and p % dilate == 0 for p in places)
    return count
