"""What an update is expected to take on lengths drawn from a histogram: its programs compiled at some of the lengths that it fills."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.host.errors import UserError
from rcsd_jax.losses import emphasis
from rcsd_jax.models import sharding
from rcsd_jax.plan import lengths, measure, model_flops, planned, programs, windows, work
from rcsd_jax.plan.chips import Chip
from rcsd_jax.plan.lengths import Drawn, Histogram
from rcsd_jax.plan.measure import Measured
from rcsd_jax.plan.planned import Plan
from rcsd_jax.plan.report import chips_of
from rcsd_jax.plan.work import How, Run, Work
from rcsd_jax.settings.stage import Settings

BATCHES = 512
"""Drawn: enough to know the mean update to a percent."""

COMPILED = 3
"""Lengths at which a program is compiled; its time at others lies on the lines between them."""

SEED = 0


class Price(NamedTuple):
    """What one run of a program costs.

    Attributes:
      seconds: of one run, when decoding has a full cache, and packed rows are one sequence without windows.
      attention_seconds: those of attention's kernels.
      model_flops: of all chips, for MFU.
      fits: the compiler allocated it.
    """

    seconds: float
    attention_seconds: float
    model_flops: float
    fits: bool


def check(config: Settings, histogram: Histogram) -> None:
    """Refuses, before anything is compiled, what has no expected update.

    Raises:
      UserError: a setting of which a histogram does not say all lengths, or no row is within the config's limits.
    """
    _kept(config, histogram)
    teacher, sampling = config.teacher, config.sampling
    for key, value, unknown in (
        ("teacher.reason_tokens", teacher.reason_tokens, teacher.reason_tokens > 0),
        ("teacher.guidance_by", teacher.guidance_by, bool(teacher.further)),
        ("loss.emphasis", config.loss.emphasis, config.loss.emphasis in emphasis.OF_CONTEXTS),
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
    """The expected update, as plain data: see `summary`.

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
    drawn = drawn_batches(config, histogram)
    works = works_of(drawn, config.train.batches_per_rollout, how(config, plan, histogram))
    prices = _prices(config, devices, chip, drawn, mean_runs(works), progress, folder)
    return summary(plan, chip, histogram, drawn, works, prices)


def _kept(config: Settings, histogram: Histogram) -> Histogram:
    data = config.data
    return lengths.within(histogram, student=data.max_student_prompt, teacher=data.max_teacher_prompt)


def how(config: Settings, plan: Plan, histogram: Histogram) -> How:
    """What a run of this config on these rows does with lengths."""
    completion = config.sampling.max_new_tokens
    return How(
        work.Prompts(
            config.data.pad_to,
            (int(histogram.student.max()), config.data.max_student_prompt),
            (int(histogram.teacher.max()), config.data.max_teacher_prompt),
        ),
        work.Sampling(plan.queue, completion, windows.windows_of(plan.decoder)) if "decode" in plan.programs else None,
        work.Learning(
            completion,
            config.train.microbatches,
            scores="teacher scoring" in plan.programs,
            guided=bool(config.teacher.guidance),
            shards=sharding.row_shards(plan.layout, plan.mesh),
            row_lengths=config.train.row_lengths,
            parts=sharding.parts_of_a_row(plan.layout, plan.mesh),
            windows=windows.windows_of(plan.decoder),
            teacher_windows=windows.windows_of(plan.teacher),
        ),
        config.train.passes_per_rollout,
    )


def drawn_batches(config: Settings, histogram: Histogram) -> list[Drawn]:
    """`BATCHES` batches, or a few fewer, so that they make whole rollouts."""
    batches = lengths.draw(
        histogram,
        questions=config.questions_per_step,
        group=config.sampling.group,
        longest=config.sampling.max_new_tokens,
        seed=SEED,
    )
    each = config.train.batches_per_rollout
    return list(itertools.islice(batches, max(BATCHES // each, 1) * each))


def works_of(drawn: Sequence[Drawn], each: int, how: How) -> list[Work]:
    """The work of an update, for every rollout of `each` batches."""
    return [work.update(drawn[i : i + each], how) for i in range(0, len(drawn), each)]


def mean_runs(works: Sequence[Work]) -> dict[Run, float]:
    """How often each program runs, on average."""
    runs: dict[Run, float] = defaultdict(float)
    for one in works:
        for run, count in one.runs.items():
            runs[run] += count / len(works)
    return dict(runs)


# --- prices ----------------------------------------------------------------------------------------------------------


def _prices(
    config: Settings,
    devices: Sequence[Any],
    chip: Chip,
    drawn: Sequence[Drawn],
    runs: Mapping[Run, float],
    progress: Callable[[str], None],
    folder: Path | None,
) -> dict[Run, Price]:
    """The price of every run; some of them are compiled."""
    found: dict[Run, Price] = {}
    for run in sorted(to_compile(runs), key=lambda run: (planned.NAMES.index(run.program), _length(run))):
        shape = planned.PackedRows(run.row, run.rows) if run.row and run.rows else None
        plan = programs.plan(_at_lengths(config, run, drawn), devices, shape)
        told = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in run._asdict().items() if type(n) is int)
        progress(run.program + (f", {told}:" if told else ":"))
        (measured,) = measure.measure(plan, chip, [run.program], report=progress, folder=folder).values()
        found[run] = price(measured)
    return interpolated(found, runs)


def _at_lengths(config: Settings, run: Run, drawn: Sequence[Drawn]) -> Settings:
    """The config whose program of this name has the lengths of a run."""
    if run.row:
        return _trip(config, run, drawn)
    # A role's prompts that the program does not depend on keep their limit.
    limits = {"max_student_prompt": run.student_prompt, "max_teacher_prompt": run.teacher_prompt}
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **given))


def _trip(config: Settings, run: Run, drawn: Sequence[Drawn]) -> Settings:
    """The config of one trip over packed rows, whose sequences have the mean lengths."""
    role = "teacher" if run.program == "teacher scoring" else "student"
    mean = lambda name: round(float(np.mean([getattr(batch, name).mean() for batch in drawn])))
    given: dict[str, Any] = {f"max_{role}_prompt": mean(role)}
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batches_per_rollout=1, passes_per_rollout=1),
        sampling=dataclasses.replace(config.sampling, max_new_tokens=mean("completion"), slots=0, group=1),
        data=dataclasses.replace(config.data, **given),
    )


def price(m: Measured) -> Price:
    """The price of a compiled program. Kernels of attention are priced as if the cache were full, or rows were whole."""
    return Price(m.cost.seconds, measure.attention_seconds(m.cost), m.model_flops or 0.0, m.fits)


def _length(run: Run) -> int:
    """The sum of its lengths."""
    return (run.student_prompt or 0) + (run.teacher_prompt or 0) + (run.row or 0)


def to_compile(runs: Mapping[Run, float]) -> set[Run]:
    """The runs to compile: of each program the shortest, the longest, and between them the one nearest to the mean token's.

    Args:
      runs: how often each runs.
    """
    chosen = set()
    for own in _alike(runs):
        if len(own) <= COMPILED or any(run.student_prompt and run.teacher_prompt for run in own):
            chosen |= set(own)
            continue
        tokens = {run: runs[run] * _length(run) for run in own}
        mean = sum(tokens[run] * _length(run) for run in own) / sum(tokens.values())
        chosen |= {own[0], own[-1], min(own[1:-1], key=lambda run: abs(_length(run) - mean))}
    return chosen


def interpolated(found: Mapping[Run, Price], runs: Mapping[Run, float]) -> dict[Run, Price]:
    """The prices of all runs: those not found lie on the line between the next shorter and the next longer that are.

    Work grows faster than a row, because attention does: the line lies above it.
    """
    prices = dict(found)
    for own in _alike(found):
        for run in runs:
            if (run.program, run.rows) == (own[0].program, own[0].rows) and run not in prices:
                shorter = max((one for one in own if _length(one) <= _length(run)), key=_length)
                longer = min((one for one in own if _length(one) >= _length(run)), key=_length)
                share = (_length(run) - _length(shorter)) / (_length(longer) - _length(shorter))
                prices[run] = _between(found[shorter], found[longer], share)
    return prices


def _between(shorter: Price, longer: Price, share: float) -> Price:
    """The price on the line between two, at this share of the way."""
    between = lambda a, b: a + share * (b - a)
    return Price(
        between(shorter.seconds, longer.seconds),
        between(shorter.attention_seconds, longer.attention_seconds),
        between(shorter.model_flops, longer.model_flops),
        longer.fits,
    )


def _alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each program with as many rows, the shortest first."""
    grouped: dict[Any, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=_length):
        grouped[run.program, run.rows].append(run)
    return list(grouped.values())


# --- the sum ---------------------------------------------------------------------------------------------------------


def summary(
    plan: Plan,
    chip: Chip,
    histogram: Histogram,
    drawn: Sequence[Drawn],
    works: Sequence[Work],
    prices: Mapping[Run, Price],
) -> dict[str, Any]:
    """Means over the updates, and the time's 5% and 95%; no times if a program does not fit.

    Args:
      plan, chip: the config's and its chip.
      histogram: that batches were drawn from.
      drawn: the lengths of each batch.
      works: the work of an update, for each rollout.
      prices: of every program in `works` at its lengths.
    """
    mean = lambda values: float(np.mean(list(values)))
    tokens = {name: mean(getattr(one, name) for one in works) for name in ("real", "padded", "decoded", "places")}
    mean_lengths = {
        "student_prompt": mean(x for batch in drawn for x in batch.student),
        "teacher_prompt": mean(x for batch in drawn for x in batch.teacher),
        "completion": mean(x for batch in drawn for x in batch.completion),
    }
    runs = mean_runs(works)
    parts: dict[str, float] = defaultdict(float)
    times = []
    for one in works:
        seconds_of = {run: count * _seconds(prices[run], run, plan, chip, one) for run, count in one.runs.items()}
        times.append(sum(seconds_of.values()))
        for run, spent in seconds_of.items():
            parts[run.program] += spent / len(works)
    refused = sorted({run.program for run in runs if not prices[run].fits})
    seconds = None if refused else mean(times)
    chip_hours = seconds * chips_of(plan, chip) / 3600 if seconds else None
    return {
        "lengths": histogram.name,
        "source": histogram.source,
        "batches": len(drawn),
        "batches_per_rollout": len(drawn) // len(works),
        "mean_lengths": mean_lengths,
        "seconds": seconds,
        "seconds_5_95": None if refused else np.percentile(times, (5, 95)).tolist(),
        "parts": {} if refused else {name: parts[name] for name in planned.NAMES if name in parts},
        "does_not_fit": refused,
        "chip_hours": chip_hours,
        "hundred_steps_hours": seconds * 100 / 3600 if seconds else None,
        "hundred_steps_chip_hours": 100 * chip_hours if chip_hours else None,
        "decode_steps": runs.get(Run("decode"), 0.0),
        "occupancy": tokens["decoded"] / tokens["places"] if tokens["places"] else None,
        "cache_read": sum(one.read for one in works) / sum(one.cache for one in works) if tokens["places"] else None,
        "tokens": tokens,
        "padded_over_real": tokens["padded"] / tokens["real"],
        "student_mfu": None if refused else _student_mfu(plan, chip, drawn, runs, prices, parts),
        "runs": [  # "seconds": of one, with a full cache, and rows that are one sequence
            {**run._asdict(), "runs": count, **prices[run]._asdict()} for run, count in runs.items()
        ],
    }


def _seconds(p: Price, run: Run, plan: Plan, chip: Chip, one: Work) -> float:
    """Of one run. Decoding reads what is in use of the longest cache. Attention of packed rows computes what shares a sequence."""
    share = 1.0
    if run.program == "decode":
        longest = work.cache_places(plan.lengths.student_prompt, plan.lengths.completion)
        share = one.read / (one.places * windows.read_of_a_full_cache(plan.decoder, longest))
    elif run.row:
        share = measure.attention_share(chip, run.row, one.attended[run] / one.runs[run])
    return p.seconds - (1 - share) * p.attention_seconds


def _student_mfu(
    plan: Plan,
    chip: Chip,
    drawn: Sequence[Drawn],
    runs: Mapping[Run, float],
    prices: Mapping[Run, Price],
    parts: Mapping[str, float],
) -> dict[str, float]:
    """FLOPs of the mathematics over those at peak, of the rows as they are ("real") and as they are padded."""
    adapters: dict[str, Any] = dict(lora_rank=plan.lora_rank, targets=plan.lora_targets, teacher=plan.teacher)
    real = sum(
        model_flops.student(plan.decoder, 1, int(prompt), int(completion), **adapters)
        for batch in drawn
        for prompt, completion in zip(batch.student, batch.completion, strict=True)
    )
    name = "student forward+backward"
    padded = sum(count * prices[run].model_flops for run, count in runs.items() if run.program == name)
    peak = parts[name] * chip.bf16 * plan.mesh.size
    return {"real": real / len(drawn) / peak, "padded": padded / peak}
