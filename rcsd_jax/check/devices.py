"""The devices, the mesh over them, and whether the planner knows the chip."""

from __future__ import annotations

import jax

from rcsd_jax.check.finding import NOT_CHECKED, OK, Finding
from rcsd_jax.plan.chips import Chip


def check_devices(mesh: jax.sharding.Mesh, chip: Chip | None) -> list[Finding]:
    """What is there. `chip`: the planner's figures for these devices; None if it has none."""
    devices = list(mesh.devices.flat)
    kind = devices[0].device_kind
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    numbers = {"kind": kind, "platform": devices[0].platform, "count": len(devices), "processes": jax.process_count()}
    of_processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    found = Finding("devices", "devices", OK, f"{len(devices)} x {kind}{of_processes}", "", numbers)
    laid = Finding("devices", "mesh", OK, axes, f"{mesh.size} devices", {"mesh": dict(mesh.shape)})
    if chip is None:
        known = Finding("devices", "plan", NOT_CHECKED, "no plan for this device", "times are only measured")
    else:
        rates = f"{chip.bf16 / 1e12:.0f} TFLOP/s, {chip.hbm / 1e9:.0f} GB/s, {chip.capacity / 2**30:.2f} GiB a device"
        known = Finding("devices", "plan", OK, f"known as {chip.name}", rates, {"chip": chip.name})
    return [found, laid, known]
