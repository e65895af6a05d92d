"""The output of a plan: its table, its verdict, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import rich.box
import rich.table

from rcsd_jax.host.console import Console
from rcsd_jax.plan import measure, model_flops
from rcsd_jax.plan.chips import GIB, Chip
from rcsd_jax.plan.measure import Measured
from rcsd_jax.plan.planned import WHOLE, Plan

HOW_FAR = (
    "Memory is the compiler's own allocation; a program that it refuses does not run on the slice.",
    "Modelled time follows the compiler's schedule and counts loops as often as they run. 'Compiler's cycles' are its estimate "
    "of every fused instruction, divided by the chip's clock. Large products come out 4 to 15% above their time at peak (v6e: "
    "up to 1.4 times), instructions that HBM limits 1.4 to 2.5 times above the time of their bytes. The rest has no estimate: "
    f"kernels are assumed to run at {measure.KERNEL_EFFICIENCY:.0%} of peak for their FLOPs (attention's are causal) or at HBM's "
    "bandwidth for their bytes, copies that run ahead at HBM's bandwidth next to the instructions, collectives at their group's "
    "links and 1 us a hop. Work that other work hides costs nothing.",
    "Nothing was run on a TPU: trust differences between programs more than sums, and sums to about 30%. Host, data, "
    "checkpoints and evaluation are not included. Every prompt and completion has its maximal length, except under --lengths.",
)


def as_json(plan: Plan, chip: Chip, measured: dict[str, Measured], *, title: dict[str, Any]) -> dict[str, Any]:
    """The plan as plain data; seconds, bytes and FLOPs are of one chip, except those called the model's.

    Args:
      plan, chip: the plan and its chip.
      measured: the result of `measure.measure`.
      title: config, topology and model, as the user named them.
    """
    s = plan.lengths
    steps = step(plan, chip, measured)
    return {
        **title,
        "devices": plan.mesh.size,
        "chips": chips_of(plan, chip),
        "mesh": dict(plan.mesh.shape),
        "parameters": model_flops.parameters(plan.decoder),
        "lora_rank": plan.lora_rank,
        "lengths": s._asdict(),
        "chip": {
            "bf16_flops": chip.bf16,
            "hbm_bytes_per_second": chip.hbm,
            "capacity": chip.capacity,
            "clock": chip.clock,
        },
        "programs": {name: _program(plan, chip, m) for name, m in measured.items()},
        "fits": all(m.fits for m in measured.values()),
        "step": steps,
        "how_far_to_trust_it": list(HOW_FAR),
    }


def chips_of(plan: Plan, chip: Chip) -> int:
    """Chips of the slice."""
    return plan.mesh.size // chip.devices_per_chip


def _program(plan: Plan, chip: Chip, m: Measured) -> dict[str, Any]:
    c, seconds = m.cost, m.cost.seconds
    peak = seconds * chip.bf16 * plan.mesh.size
    return {
        "runs_per_step": m.program.runs,
        "rows": m.program.rows,
        "fits": m.fits,
        "refused": m.refused.splitlines()[0] if m.refused else "",
        "hbm": {"needed": m.needed, "capacity": chip.capacity, **(dataclasses.asdict(m.memory) if m.memory else {})},
        "flops": c.flops,
        "kernel_flops": c.kernel_flops,
        "hbm_bytes": c.hbm_bytes,
        "modelled_seconds": {
            "compiler_cycles": c.compute,
            "kernels": c.kernel,
            "hbm_wait": c.hbm_wait,
            "collectives": c.collective,
            "total": seconds,
        },
        "model_flops": m.model_flops,
        "mfu": m.model_flops / peak if m.model_flops and seconds else None,
        "hardware_utilisation": (c.flops + c.kernel_flops) / (seconds * chip.bf16) if seconds else None,
        "bandwidth_bound_seconds": m.bandwidth_bound,
        "share_of_bandwidth_bound": m.bandwidth_bound / seconds if m.bandwidth_bound and seconds else None,
        "ici": {kind: dataclasses.asdict(t) for kind, t in sorted(c.collectives.items())},
        "kernels": {name: dataclasses.asdict(k) for name, k in sorted(c.kernels.items())},
        "loops": [loop._asdict() for loop in c.loops],
        "windowed_products": c.windowed,
        "compile_seconds": m.compile_seconds,
    }


def step(plan: Plan, chip: Chip, measured: dict[str, Measured]) -> dict[str, Any]:
    """Time and cost of one step and of 100; None if a program is missing or does not fit.

    The time is that of the whole step's schedule, or else the sum of its parts. With a queue or packed rows it is the sum, because the
    schedule does not say how often their loops run, and with windows, because it does not say how much of attention each part computes.
    """
    parts = {name: m.cost.seconds * m.program.runs for name, m in measured.items() if name not in WHOLE and m.fits}
    whole = measured.get("train step")
    from_parts = sum(parts.values()) if set(parts) >= set(plan.programs) - set(WHOLE) else None
    unknown = plan.queue or plan.packed or plan.decoder.slides or plan.teacher.slides
    seconds = whole.cost.seconds if whole and whole.fits and not unknown else from_parts
    chip_hours = seconds * chips_of(plan, chip) / 3600 if seconds else None
    decode = measured["decode"].program if "decode" in measured else plan.programs.get("decode")
    tokens = round(decode.runs * decode.rows) if decode else plan.lengths.batch * plan.lengths.completion
    return {
        "seconds": seconds,
        "seconds_from_parts": from_parts,
        "parts": parts,
        "completion_tokens": tokens,
        "hundred_steps_hours": seconds * 100 / 3600 if seconds else None,
        "chip_hours": chip_hours,
        "hundred_steps_chip_hours": 100 * chip_hours if chip_hours else None,
    }


def _expected(e: dict[str, Any], step: dict[str, Any]) -> list[str]:
    """What the lengths of a histogram change, in lines."""
    tokens, mean = e["tokens"], e["mean_lengths"]
    lines = [
        f"with the lengths of {e['lengths']} ({e['batches']} batches drawn; prompts of {mean['student_prompt']:.0f} and "
        f"{mean['teacher_prompt']:.0f} tokens, completions of {mean['completion']:.0f} on average):"
    ]
    if e["does_not_fit"]:
        return lines + [f"  no time: {', '.join(e['does_not_fit'])} does not fit"]
    shares = ", ".join(f"{name} {_time(v)}" for name, v in e["parts"].items())
    worst = f"; {_time(step['seconds_from_parts'])} in the worst case" if step["seconds_from_parts"] else ""
    lines += [
        f"  one step: {_time(e['seconds'])} modelled ({_time(e['seconds_5_95'][0])} to {_time(e['seconds_5_95'][1])} for nine in ten"
        f"{worst}), {e['chip_hours']:.3g} chip-hours; 100 steps: {e['hundred_steps_hours']:.3g} h, "
        f"{e['hundred_steps_chip_hours']:.3g} chip-hours",
        f"  its parts, compiled separately: {shares}",
    ]
    if e["occupancy"] is not None:
        together = f" of a rollout of {e['batches_per_rollout']} batches" if e["batches_per_rollout"] > 1 else ""
        lines.append(
            f"  sampling{together}: {e['decode_steps']:.0f} decode steps for each batch, {_percent(e['occupancy'])} of the slots busy, "
            f"{_percent(e['cache_read'])} of the cache read"
        )
    lines.append(
        f"  learning: {tokens['padded'] / 1e3:.0f}k tokens, of which {tokens['real'] / 1e3:.0f}k are real: "
        f"{e['padded_over_real']:.2f} for each; student MFU {_percent(e['student_mfu']['padded'])} with padding, "
        f"{_percent(e['student_mfu']['real'])} on real tokens"
    )
    return lines


def print_report(console: Console, data: dict[str, Any]) -> None:
    """Prints the result of `as_json`: table, verdict, step, and how far to trust them."""
    s, mesh = data["lengths"], ", ".join(f"{k}={v}" for k, v in data["mesh"].items())
    console.print(
        f"{data['model']} ({data['parameters'] / 1e9:.2f} B parameters, "
        f"{'LoRA rank %d' % data['lora_rank'] if data['lora_rank'] else 'full fine-tuning'}) on {data['topology']}: "
        f"{data['chips']} chips, mesh {mesh}; batch {s['batch']} in {s['microbatches']}, prompts {s['student_prompt']} and "
        f"{s['teacher_prompt']}, completion {s['completion']}",
    )
    console.print(_table(data))
    for line in _verdict(data):
        console.print(line)
    if "expected" in data:
        for line in _expected(data["expected"], data["step"]):
            console.print(line)
    console.print()
    for line in data["how_far_to_trust_it"]:
        console.print(line, style="dim")


def _table(data: dict[str, Any]) -> rich.table.Table:
    programs = data["programs"]
    table = rich.table.Table(title="One run of each program, on one chip", box=rich.box.SIMPLE_HEAD)
    table.add_column("")
    for name in programs:
        table.add_column(name, justify="right")

    def row(label: str, value: Callable[[dict[str, Any]], str]) -> None:
        cells = [value(p) for p in programs.values()]
        if any(cells):
            table.add_row(label, *(cell or "" for cell in cells))

    def gib(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda p: f"{p['hbm'][key] / GIB:.2f}" if p["hbm"].get(key) is not None else ""

    def seconds(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda p: _time(p["modelled_seconds"][key]) if p["modelled_seconds"]["total"] else ""

    def sent(kind: str) -> Callable[[dict[str, Any]], str]:
        return lambda p: f"{p['ici'][kind]['bytes'] / 1e9:.3g}" if kind in p["ici"] else ""

    row("runs a step", lambda p: f"{p['runs_per_step']:g}")
    row("HBM, GiB: allocated", gib("needed"))
    row("  of capacity", gib("capacity"))
    row("  arguments", gib("arguments"))
    row("  temporaries", gib("temporaries"))
    row("  peak in use", gib("peak"))
    row("matrix TFLOP", lambda p: f"{p['flops'] / 1e12:.3g}" if p["flops"] else "")
    row("  in kernels (modelled)", lambda p: f"{p['kernel_flops'] / 1e12:.3g}" if p["kernel_flops"] else "")
    row("HBM traffic, GB", lambda p: f"{p['hbm_bytes'] / 1e9:.3g}" if p["hbm_bytes"] else "")
    row("modelled time", seconds("total"))
    row("  compiler's cycles", seconds("compiler_cycles"))
    row("  kernels (modelled)", seconds("kernels"))
    row("  waiting for HBM (modelled)", seconds("hbm_wait"))
    row("  collectives (modelled)", seconds("collectives"))
    row("MFU", lambda p: _percent(p["mfu"]))
    row("matrix units in use", lambda p: _percent(p["hardware_utilisation"]))
    row("share of HBM-bandwidth bound", lambda p: _percent(p["share_of_bandwidth_bound"]))
    for kind in sorted({k for p in programs.values() for k in p["ici"]}):
        row(f"ICI, GB sent: {kind}", sent(kind))
    return table


def _verdict(data: dict[str, Any]) -> list[str]:
    lines, programs = [], data["programs"]
    for name, p in programs.items():
        if not p["fits"]:
            needed = f"needs {p['hbm']['needed'] / GIB:.2f} GiB" if p["hbm"]["needed"] else p["refused"]
            lines.append(f"{name}: {needed} of {p['hbm']['capacity'] / GIB:.2f} GiB")
        elif (p["hbm"]["needed"] or 0) > p["hbm"]["capacity"]:
            lines.append(
                f"{name}: the compiler accepts it, but its arguments, results and temporaries come to "
                f"{p['hbm']['needed'] / GIB:.2f} of {p['hbm']['capacity'] / GIB:.2f} GiB: do not count on it"
            )
        for loop in p["windowed_products"]:
            lines.append(f"{name}: a product is computed in a loop of partial ones (windowed dot general) in {loop}")
        unknown = [loop["name"] for loop in p["loops"] if not loop["known"]]
        if unknown:
            lines.append(
                f"{name}: counted once, because the text does not say how often they run: {', '.join(unknown)}"
            )
    whole = "train step" in programs or {"rollout", "learning"} <= set(programs)
    most = max((p["hbm"]["needed"] or 0) for p in programs.values())
    if data["fits"]:
        which = "fits" if whole else "these programs fit"
        if most > data["chip"]["capacity"]:
            which = "may not fit"
        lines.append(f"verdict: {which}, {most / GIB:.2f} of {data['chip']['capacity'] / GIB:.2f} GiB a chip")
    else:
        lines.append(
            "verdict: does not fit; raise train.microbatches or the slice, or lower the batch or sampling.max_new_tokens"
        )
    if data.get("largest"):
        found = data["largest"]
        lines.append(
            f"largest that fits: batch {found['batch']} at completion {data['lengths']['completion']}; completion "
            f"{found['completion']} at batch {data['lengths']['batch']} (of those tried)"
        )
    s = data["step"]
    if s["seconds"]:
        lines.append(
            f"one step: {_time(s['seconds'])} modelled, {s['chip_hours']:.3g} chip-hours; 100 steps: "
            f"{s['hundred_steps_hours']:.3g} h, {s['hundred_steps_chip_hours']:.3g} chip-hours"
        )
    if s["seconds_from_parts"]:
        shares = ", ".join(f"{k} {_time(v)}" for k, v in s["parts"].items())
        lines.append(f"its parts, compiled separately: {shares}; together {_time(s['seconds_from_parts'])}")
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 0.1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 or not seconds else f"{1e6 * seconds:.0f} us"
