"""What a step is expected to take on lengths drawn from a histogram: its programs compiled at the lengths that batches are padded to."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcsd_jax.host.errors import UserError
from rcsd_jax.plan import lengths, measure, model_flops, programs
from rcsd_jax.plan.chips import Chip
from rcsd_jax.plan.lengths import Drawn, Histogram
from rcsd_jax.plan.measure import Measured
from rcsd_jax.plan.programs import Plan
from rcsd_jax.plan.report import chips_of
from rcsd_jax.plan.work import Padding, Run, Work, padded_step
from rcsd_jax.settings.stage import Settings

BATCHES = 512
"""Drawn: enough to know the mean step to a percent."""

SEED = 0


def check(config: Settings, histogram: Histogram) -> None:
    """Refuses, before anything is compiled, what has no expected step.

    Raises:
      UserError: a setting of which a histogram does not say all lengths, or no row is within the config's limits.
    """
    _kept(config, histogram)
    teacher, sampling = config.teacher, config.sampling
    for key, value, unknown in (
        ("teacher.reason_tokens", teacher.reason_tokens, teacher.reason_tokens > 0),
        ("teacher.guidance_by", teacher.guidance_by, teacher.guided_by_criteria),
        ("sampling.source", sampling.source, sampling.source == "teacher"),
    ):
        if unknown:
            remedy = "plan without --lengths"
            raise UserError("the planner knows only the worst case of it", field=key, value=value, remedy=remedy)


def expected(
    config: Settings,
    devices: Sequence[Any],
    chip: Chip,
    histogram: Histogram,
    *,
    progress: Callable[[str], None] = lambda line: None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The expected step, as plain data: see `summary`.

    Args:
      config: of a stage.
      devices: of the slice.
      chip: its chip.
      histogram: of prompts and completions.
      progress: is given lines to show meanwhile.
      folder: keeps the compiler's answers.

    Raises:
      UserError: no row of the histogram is within the config's limits.
    """
    histogram = _kept(config, histogram)
    plan = programs.plan(config, devices)
    how = padding(config, plan, histogram)
    batches = lengths.draw(
        histogram,
        questions=config.questions_per_step,
        group=config.sampling.group,
        longest=config.sampling.max_new_tokens,
        seed=SEED,
    )
    drawn = list(itertools.islice(batches, BATCHES))
    works = [padded_step(batch, how) for batch in drawn]
    measured = _measured(config, devices, chip, {run for work in works for run in work.runs}, progress, folder)
    return summary(plan, chip, histogram, drawn, works, measured)


def _kept(config: Settings, histogram: Histogram) -> Histogram:
    data = config.data
    return lengths.within(histogram, student=data.max_student_prompt, teacher=data.max_teacher_prompt)


def padding(config: Settings, plan: Plan, histogram: Histogram) -> Padding:
    """How a run of this config on these rows pads."""
    return Padding(
        config.data.pad_to,
        (int(histogram.student.max()), config.data.max_student_prompt),
        (int(histogram.teacher.max()), config.data.max_teacher_prompt),
        config.sampling.max_new_tokens,
        config.train.microbatches,
        samples="decode" in plan.programs,
        queue=plan.queue,
        scores="teacher scoring" in plan.programs,
        guided=bool(config.teacher.guidance),
    )


def _measured(
    config: Settings,
    devices: Sequence[Any],
    chip: Chip,
    runs: set[Run],
    progress: Callable[[str], None],
    folder: Path | None,
) -> dict[Run, Measured]:
    """Each program at each of its lengths, compiled."""
    by_lengths: dict[tuple[int | None, int | None], list[str]] = defaultdict(list)
    for program, student, teacher in sorted(runs, key=lambda run: (run.student_prompt or 0, run.teacher_prompt or 0)):
        by_lengths[student, teacher].append(program)
    found: dict[Run, Measured] = {}
    for (student, teacher), names in by_lengths.items():
        # A role's prompts that these programs do not depend on keep their limit.
        limits = {"max_student_prompt": student, "max_teacher_prompt": teacher}
        given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
        shorter = dataclasses.replace(config.data, **given)
        plan = programs.plan(dataclasses.replace(config, data=shorter), devices)
        prompts = " and ".join(str(length) for length in (student, teacher) if length is not None)
        progress(f"{', '.join(names)}" + (f", prompts of {prompts} tokens:" if prompts else ":"))
        measured = measure.measure(plan, chip, names, report=progress, folder=folder)
        found |= {Run(name, student, teacher): one for name, one in measured.items()}
    return found


def summary(
    plan: Plan,
    chip: Chip,
    histogram: Histogram,
    drawn: Sequence[Drawn],
    works: Sequence[Work],
    measured: Mapping[Run, Measured],
) -> dict[str, Any]:
    """Means over the batches, and the time's 5% and 95%; no times if a program does not fit.

    Args:
      plan, chip: the config's and its chip.
      histogram: that batches were drawn from.
      drawn: the lengths of each batch.
      works: the work of each.
      measured: every program of `works` at its lengths.
    """
    mean = lambda values: float(np.mean(list(values)))
    tokens = {name: mean(getattr(work, name) for work in works) for name in ("real", "padded", "decoded", "places")}
    mean_lengths = {
        "student_prompt": mean(x for batch in drawn for x in batch.student),
        "teacher_prompt": mean(x for batch in drawn for x in batch.teacher),
        "completion": mean(x for batch in drawn for x in batch.completion),
    }
    runs: dict[Run, float] = defaultdict(float)
    parts: dict[str, float] = defaultdict(float)
    times = []
    for work in works:
        seconds_of = {run: count * _seconds(measured[run], work) for run, count in work.runs.items()}
        times.append(sum(seconds_of.values()))
        for run, count in work.runs.items():
            runs[run] += count / len(works)
            parts[run.program] += seconds_of[run] / len(works)
    refused = sorted({run.program for run in runs if not measured[run].fits})
    seconds = None if refused else mean(times)
    chip_hours = seconds * chips_of(plan, chip) / 3600 if seconds else None
    return {
        "lengths": histogram.name,
        "source": histogram.source,
        "batches": len(works),
        "mean_lengths": mean_lengths,
        "seconds": seconds,
        "seconds_5_95": None if refused else np.percentile(times, (5, 95)).tolist(),
        "parts": {} if refused else {name: parts[name] for name in programs.NAMES if name in parts},
        "does_not_fit": refused,
        "chip_hours": chip_hours,
        "hundred_steps_hours": seconds * 100 / 3600 if seconds else None,
        "hundred_steps_chip_hours": 100 * chip_hours if chip_hours else None,
        "decode_steps": mean(sum(n for run, n in work.runs.items() if run.program == "decode") for work in works),
        "occupancy": tokens["decoded"] / tokens["places"] if tokens["places"] else None,
        "cache_read": mean(work.cache_read for work in works) if tokens["places"] else None,
        "tokens": tokens,
        "padded_over_real": tokens["padded"] / tokens["real"],
        "student_mfu": None if refused else _student_mfu(plan, chip, drawn, runs, measured),
        "runs": [  # "seconds": of one, with a full cache
            {**run._asdict(), "runs": count, "seconds": measured[run].cost.seconds} for run, count in runs.items()
        ],
    }


def _seconds(m: Measured, work: Work) -> float:
    """Of one run. The kernel that attends to the cache is priced as if it read all of it, but it reads what is in use."""
    whole = sum(
        kernel.seconds
        for name, kernel in m.cost.kernels.items()
        if name.startswith(("paged_attention", "attend_few_queries"))
    )
    return m.cost.seconds - (1 - work.cache_read) * whole


def _student_mfu(
    plan: Plan, chip: Chip, drawn: Sequence[Drawn], runs: Mapping[Run, float], measured: Mapping[Run, Measured]
) -> dict[str, float]:
    """FLOPs of the mathematics over those at peak, of the rows as they are ("real") and as they are padded."""
    adapters: dict[str, Any] = dict(lora_rank=plan.lora_rank, targets=plan.lora_targets)
    real = sum(
        model_flops.student(plan.decoder, 1, int(prompt), int(completion), **adapters)
        for batch in drawn
        for prompt, completion in zip(batch.student, batch.completion, strict=True)
    )
    own = {run: count for run, count in runs.items() if run.program == "student forward+backward"}
    padded = sum(count * (measured[run].model_flops or 0.0) for run, count in own.items())
    peak = sum(count * measured[run].cost.seconds for run, count in own.items()) * chip.bf16 * plan.mesh.size
    return {"real": real / len(drawn) / peak, "padded": padded / peak}
