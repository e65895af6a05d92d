"""Optimised HLO text as data: computations, instructions, shapes. This file knows nothing about TPUs or models."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_NO_ESTIMATE = 2**60  # cycles that the compiler writes for what it does not know
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
    literal: str  # the text between the parentheses: a constant's value, a parameter's number
    attributes: str  # everything after that
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
        """The JAX operation behind it; empty if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def call_target(self) -> str:
        """The target of a custom call; empty for anything else."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def estimated_cycles(self) -> int | None:
        """The TPU compiler's estimate; None if it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found.group(1)) if found and int(found.group(1)) < _NO_ESTIMATE else None


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
        """The computation that an instruction must call as `role`.

        Raises:
          KeyError: it calls none.
        """
        name = instruction.called(role)
        if name is None:
            raise KeyError(role)
        return self.computations[name]

    def inside(self, instruction: Instruction) -> Computation | None:
        """The computation of a fusion; None for an instruction that calls none."""
        name = instruction.called("calls")
        return self.computations[name] if name else None


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
    head = found(_INSTRUCTION, line)
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


def found(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """The match of a pattern that every compiler writes."""
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
