"""The collectives over each axis of the mesh: results, the bytes that a device sends, and time against the chip's links."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, WARNING, Finding, seconds, size
from rcsd_jax.host import multihost
from rcsd_jax.models.sharding import AXES
from rcsd_jax.plan import hlo
from rcsd_jax.plan.chips import Chip, Interconnect
from rcsd_jax.plan.pricing import cost_of
from rcsd_jax.plan.rates import Rates

OPERATIONS: dict[str, Callable[[jax.Array, str], jax.Array]] = {
    "all-gather": lambda x, axis: jax.lax.all_gather(x, axis, tiled=True),
    "reduce-scatter": lambda x, axis: jax.lax.psum_scatter(x, axis, tiled=True),
    "all-reduce": jax.lax.psum,
}
"""What training does over an axis: it gathers weights, and adds up gradients."""

SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda members: members - 1,
    "reduce-scatter": lambda members: (members - 1) / members,
    "all-reduce": lambda members: 2 * (members - 1) / members,
}
"""Bytes that a device sends in a group of so many, over those of its own array."""

SLOW = 2.0
"""How much longer than planned a collective may take."""
_LARGE, _SMALL = 2**25, 2**18  # bytes of a device's array, on a TPU and elsewhere
_TIMES = 3


def check_collectives(mesh: jax.sharding.Mesh, chip: Chip | None) -> list[Finding]:
    """Checks every operation over every axis that has several devices. All processes call it.

    Args:
      mesh: the run's.
      chip: the planner's figures; None: times are only measured.
    """
    axes = [name for name, members in mesh.shape.items() if members > 1]
    if not axes:
        return [Finding("collectives", "all", NOT_CHECKED, "one device has none")]
    return [_check(mesh, axis, kind, chip) for axis in axes for kind in OPERATIONS]


def _check(mesh: jax.sharding.Mesh, axis: str, kind: str, chip: Chip | None) -> Finding:
    members = mesh.shape[axis]
    per_device = (_SMALL if chip is None else _LARGE) // 4 // members * members  # float32 values, which members divide
    over_all = PartitionSpec(AXES)
    on_all = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    place = NamedSharding(mesh, over_all)
    numbers = np.arange(mesh.size, dtype=np.int32)
    own = jax.make_array_from_callback((mesh.size,), place, lambda index: numbers[index])
    make = lambda number: _values(number[0], per_device)[None]
    given = jax.jit(on_all(make, in_specs=over_all, out_specs=over_all))(own)
    operate = on_all(lambda x: OPERATIONS[kind](x[0], axis)[None], in_specs=over_all, out_specs=over_all)
    compiled = jax.jit(operate).lower(given).compile()
    got = compiled(given)

    groups = np.moveaxis(numbers.reshape(mesh.devices.shape), AXES.index(axis), -1)

    def right(number: jax.Array, got: jax.Array) -> jax.Array:
        return jnp.all(got[0] == _expected(kind, number[0], jnp.asarray(groups.reshape(-1, members)), per_device))[None]

    flags = jax.jit(on_all(right, in_specs=over_all, out_specs=over_all))(own, got)
    wrong = int(np.sum(~np.asarray(multihost_utils.process_allgather(flags, tiled=True))))
    took = multihost.gather(min(_timed(compiled, given) for _ in range(_TIMES)))
    found: dict[str, Any] = {"seconds": max(took), "devices_wrong": wrong, "bytes": 4.0 * per_device}
    cost = cost_of(hlo.parse(compiled.as_text() or ""), _rates(mesh, chip))
    sent = sum(traffic.bytes for traffic in cost.collectives.values())
    expected_bytes = SENT[kind](members) * 4 * per_device
    found |= {"bytes_sent": sent, "bytes_expected": expected_bytes}
    planned = sum(traffic.seconds for traffic in cost.collectives.values())
    measured = f"{size(sent)} sent in {seconds(max(took))}"
    expected = size(expected_bytes) + (f" in {seconds(planned)}" if chip else "")
    verdict = OK
    if chip:
        found["seconds_planned"] = planned
        verdict = WARNING if max(took) > SLOW * planned else OK
    if abs(sent - expected_bytes) > 0.01 * expected_bytes:
        verdict = WARNING
    if wrong:
        verdict, measured = FAILED, f"wrong on {wrong} of {mesh.size} devices"
    return Finding("collectives", f"{kind} over mesh.{axis} ({members})", verdict, measured, expected, found)


def _values(number: jax.Array, count: int) -> jax.Array:
    """[count] float32: what the device of this number in the mesh has, different for each; sums of them are exact."""
    return ((number * 31 + jnp.arange(count, dtype=jnp.int32) * 7) % 251).astype(jnp.float32)


def _expected(kind: str, number: jax.Array, groups: jax.Array, count: int) -> jax.Array:
    """What a device has after an operation, from the definition. `groups`: [groups, members] numbers of devices."""
    here = groups == number
    group = groups[jnp.argmax(here.any(axis=1))]
    place = jnp.argmax(here.any(axis=0))
    values = jax.vmap(lambda member: _values(member, count))(group)  # [members, count]
    if kind == "all-gather":
        return values.reshape(-1)
    if kind == "all-reduce":
        return values.sum(axis=0)
    return jax.lax.dynamic_index_in_dim(values.sum(axis=0).reshape(len(group), -1), place, keepdims=False)


def _timed(compiled: Any, given: jax.Array) -> float:
    multihost_utils.sync_global_devices("a collective begins")
    began = time.monotonic()
    jax.block_until_ready(compiled(given))
    return time.monotonic() - began


def _rates(mesh: jax.sharding.Mesh, chip: Chip | None) -> Rates:
    """Only its collectives are asked for."""
    if chip is None:
        return Rates(1.0, 1.0, 1.0, 1.0, lambda *_: 0.0)
    network = Interconnect(chip, list(mesh.devices.flat))
    return Rates(chip.clock, chip.hbm, chip.hbm, chip.bf16, network.seconds)
