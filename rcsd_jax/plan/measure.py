"""Compiles the programs of a plan and measures them: memory, FLOPs, modelled time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.models.kernels import splash
from rcsd_jax.plan import hlo, model_flops
from rcsd_jax.plan.chips import VMEM_OVER_HBM, Chip, Interconnect
from rcsd_jax.plan.compiler import Compilation, Memory, ask
from rcsd_jax.plan.cost import Cost
from rcsd_jax.plan.planned import Plan, Program
from rcsd_jax.plan.pricing import cost_of
from rcsd_jax.plan.rates import Rates

KERNEL_EFFICIENCY = 0.5
"""The assumed share of the peak that Pallas kernels reach; published attention kernels reach 40 to 60%."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled program.

    Attributes:
      program: the compiled program.
      memory: None if the compiler refused it.
      refused: the compiler's reason, that it does not fit into HBM; else empty.
      needed: bytes of HBM; None if the reason names none.
      cost: of one run on one chip.
      model_flops: of one run on all chips, for MFU; None if MFU is meaningless.
      bandwidth_bound: seconds to read weights and cache at HBM's bandwidth; only for decoding.
      compile_seconds: the time to compile, on the machine that compiled it.
    """

    program: Program
    memory: Memory | None
    refused: str
    needed: float | None
    cost: Cost
    model_flops: float | None
    bandwidth_bound: float | None
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler allocated it. (It may accept a little more than the chip has.)"""
        return not self.refused


def rates(chip: Chip, plan: Plan) -> Rates:
    """The rates that turn a chip's counts into seconds."""
    network = Interconnect(chip, list(plan.mesh.devices.flat))
    return Rates(chip.clock, chip.hbm, VMEM_OVER_HBM * chip.hbm, KERNEL_EFFICIENCY * chip.bf16, network.seconds)


def attention_share(chip: Chip, row: int, attended: float) -> float:
    """The time of attention over rows of which it computes a part, over that of rows that are one sequence without windows.

    Of a pair of blocks that is left out, the keys and values are fetched all the same. With b queries, b keys and heads of width d,
    these are 4 b d bytes, instead of 4 b b d FLOPs.

    Args:
      chip: that runs it.
      row: places of a row.
      attended: the pairs of blocks that are computed, over those of such rows.
    """
    block = splash.block(row + splash.padding(row))
    fetched = min(KERNEL_EFFICIENCY * chip.bf16 / (chip.hbm * block), 1.0)
    return attended + (1 - attended) * fetched


_ATTENTION = ("splash", "paged_attention", "attend_few_queries")


def attention_seconds(cost: Cost) -> float:
    """Seconds of attention's kernels, over whole rows or over a cache."""
    return sum(kernel.seconds for name, kernel in cost.kernels.items() if name.startswith(_ATTENTION))


def _only(cost: Cost, share: float) -> None:
    """Leaves this share of the time of attention's kernels."""
    cost.kernel -= (1 - share) * attention_seconds(cost)
    for name, kernel in cost.kernels.items():
        if name.startswith(_ATTENTION):
            cost.kernels[name] = dataclasses.replace(kernel, seconds=share * kernel.seconds)


def measure(
    plan: Plan,
    chip: Chip,
    names: Sequence[str],
    *,
    decode_steps: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    folder: Path | None = None,
) -> dict[str, Measured]:
    """Compiles the named programs, several at once, and measures each.

    Args:
      plan: the result of `programs.plan`.
      chip: the slice's chip.
      names: the programs to compile.
      decode_steps: tokens of a batch's longest completion; None: the limit.
      report: called with a line for every finished program.
      folder: keeps the compiler's answers for later plans.

    Raises:
      UserError: a kernel or the compiler refuses a program for another reason than its memory.
    """
    lowered = {name: _lowered(plan, name) for name in names}  # one by one, because a thread has one mesh
    done: dict[str, Measured] = {}
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        waiting = {pool.submit(_answer, plan, name, lowered[name], folder): name for name in names}
        for future in concurrent.futures.as_completed(waiting):
            name = waiting[future]
            answer = future.result()
            done[name] = measured(plan, chip, plan.programs[name], answer, decode_steps)
            verb = "does not fit" if answer.refused else "compiled"
            report(f"{name}: {verb} after {answer.seconds:.0f} s{', by an earlier plan' if answer.kept else ''}")
    return {name: done[name] for name in names}


def compile_one(plan: Plan, name: str, folder: Path | None = None) -> tuple[Memory | None, str]:
    """Memory of a program, or the compiler's reason to refuse it; UserError as in `measure`."""
    answer = _answer(plan, name, _lowered(plan, name), folder)
    return answer.memory, answer.refused


def _answer(plan: Plan, name: str, lowered: jax.stages.Lowered, folder: Path | None) -> Compilation:
    try:
        return ask(lowered, list(plan.mesh.devices.flat), folder)
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(name, error) from error


def _lowered(plan: Plan, name: str) -> jax.stages.Lowered:
    try:
        return plan.programs[name].lower()
    except (ValueError, NotImplementedError) as error:  # as Pallas refuses shapes
        raise _refusal(name, error) from error


def _refusal(name: str, error: Exception) -> UserError:
    remedy = "try --config.model.kernels=xla; if that plans, a Pallas kernel does not take this model's shapes"
    return UserError(f"the program {name!r} cannot be compiled for this slice ({first_line(error)})", remedy=remedy)


def measured(
    plan: Plan, chip: Chip, program: Program, answer: Compilation, decode_steps: int | None = None
) -> Measured:
    """What a program that was compiled costs on a chip; arguments as in `measure`."""
    spent = Cost()
    if answer.text:
        trips = decode_steps if program.trips is None else program.trips
        spent = cost_of(hlo.parse(answer.text), rates(chip, plan), dynamic_trips=trips)
        attended = program.attended
        _only(spent, attention_share(chip, program.row, attended) if program.row else attended)
    if decode_steps is not None and program.name == "decode":
        program = program._replace(runs=program.runs / plan.lengths.completion * decode_steps)
    bound = (plan.weight_bytes + plan.read_bytes) / chip.hbm if program.name == "decode" else None
    needed = answer.memory.needed if answer.memory else needed_bytes(answer.refused)
    flops = _model_flops(plan, program)
    return Measured(program, answer.memory, answer.refused, needed, spent, flops, bound, answer.seconds)


def _model_flops(plan: Plan, program: Program) -> float | None:
    s = plan.lengths
    if program.name == "teacher scoring":
        return model_flops.scoring(plan.teacher, program.rows, s.teacher_prompt + s.completion)
    if program.name == "student forward+backward":
        return model_flops.student(
            plan.decoder, program.rows, s.student_prompt, s.completion, lora_rank=plan.lora_rank,
            targets=plan.lora_targets, teacher=plan.teacher,
        )  # fmt: skip
    return None


def needed_bytes(reason: str) -> float | None:
    """What the compiler's refusal says that the program needs: "Used 20.53G of 15.75G hbm", "temporaries (1.00T)"."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", reason) or re.search(r"\(([\d.]+)([KMGT])\) exceeds", reason)
    return float(found.group(1)) * 2.0 ** (10 * (1 + "KMGT".index(found.group(2)))) if found else None
