"""FLOPs of matrix products and convolutions, as XLA's own cost analysis counts them."""

from __future__ import annotations

import functools
import math
import re

from rcsd_jax.plan.hlo import Computation, Instruction, Module, Shape, found


def flops_of(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of an instruction, including everything fused into it."""
    inner = module.inside(instruction)
    if inner is None:
        return product_flops(computation, instruction)
    return sum(flops_of(module, inner, one) for one in inner.instructions)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs (a multiplication and an addition are two) of a `dot` or `convolution`; 0 for anything else."""
    if instruction.opcode == "dot":
        left = computation.operand(instruction, 0).shapes[0]
        contracted = found(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
        depth = math.prod(left.dims[int(d)] for d in contracted.split(",") if d)
        return 2.0 * instruction.shapes[0].size * depth
    if instruction.opcode == "convolution":
        left, right = (computation.operand(instruction, k).shapes[0] for k in (0, 1))
        return _convolution_flops(left, right, instruction.shapes[0], instruction.attributes)
    return 0.0


def _convolution_flops(left: Shape, right: Shape, out: Shape, attributes: str) -> float:
    # The TPU compiler turns matrix products into convolutions; batches become space, with windows that are mostly
    # padding. So only the products of real elements are counted, as XLA's own cost analysis does.
    lhs_labels, rhs_labels, out_labels = found(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
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
    """The number of pairs (output place, kernel place) of one spatial dimension that meet a real input, not padding or a hole."""
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
