"""The work of custom calls (Pallas kernels): their own estimates, or counts from their operands' shapes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rcsd_jax.plan.hlo import Computation, Instruction

# Products of [T, Hd] and [Hd, S] in an attention kernel: two forward. Backward, the kernel of dq and the kernel of dk and dv both
# compute the scores and their gradient again; the fused kernel computes them once.
_ATTENTION_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_FUSED_BACKWARD_PRODUCTS = 5


def stated_bytes(computation: Computation, i: Instruction) -> float | None:
    """Bytes that a kernel touches, if it does not touch all of its operands, such as a stack of layers; otherwise None.

    Our kernels state them; paged attention reads the pages in its table.
    """
    if i.opcode == "custom-call" and re.search("write_places|attend_few_queries|grouped_matmul", i.name):
        return float(_said_of_kernel(i)["bytes_accessed"])
    if i.opcode != "custom-call" or not i.name.startswith("paged_attention"):
        return None
    arrays = [computation.by_name[o].shapes[0] for o in i.operands]
    pools = [s for s in arrays if len(s.dims) == 4 and s.dtype in ("bf16", "f16", "f32", "s8")][-2:]
    table = max(s.dims[0] for s in arrays if s.dtype == "s32" and len(s.dims) == 1)  # [B * pages of a row]
    return float(sum(s.bytes / s.dims[1] * table for s in pools))


def _said_of_kernel(i: Instruction) -> dict[str, Any]:
    """A Pallas kernel's own `cost_estimate`; empty if it has none."""
    said = re.search(r'"cost_estimate":(\{[^}]*\})', i.attributes)
    return json.loads(said.group(1)) if said else {}


def kernel_flops(computation: Computation, i: Instruction) -> float:
    """FLOPs of a Pallas kernel: its own estimate, or for attention the count from its operands' shapes, causal; otherwise 0."""
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
    # Queries and keys come in blocks; if a block of queries sees part of a block of keys, the whole pair is computed.
    names = {"fwd": ("block_q", "block_kv")}.get(part, (f"block_q_{part}", f"block_kv_{part}"))
    found = [re.search(rf"{name}\W+(\d+)", i.attributes) for name in names]
    rows, columns = (min(int(n[1]), whole) if n else whole for n, whole in zip(found, (length, keys), strict=True))
    seen = sum(min(-(-end // columns) * columns, keys) for end in range(rows, length + 1, rows))
    return products * 2.0 * math.prod(q.dims[:-2]) * rows * seen * width
