"""The step on rows of real lengths: what padding costs, and how time grows with real tokens.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 taskset -c 0,1 python -m experiments.bench.lengths [--quick] [--json] [--figure=FILE.svg]

The workload is that of `workload.py` at 1/16 of its lengths, on the model of `setting.py`, with 32 rows a batch. The steps of
`STEPS` take turns on the same batches; each turn has some batches of its own, as many as the largest rollout samples. Seconds are
those of one batch. Every completion ends at a length that is given, and there is no end token, so all steps do the same work. The
first pass compiles and compares each step's loss with PyTorch's.

The bound is the time of the real tokens' FLOPs at the best measured rate of a matrix product: drawing and scoring by the
student, its backward pass, and scoring by the teacher.

Memory is what XLA's analysis of the compiled program says of learning from one batch.

`--json` prints one object instead of the tables. `--quick` runs small batches of much shorter rows once: it only shows that
everything works. `--figure` also draws how the step's time grows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch

from experiments import svg
from experiments.bench import flops, torch_step
from experiments.bench.lengths_steps import BEFORE, OURS, ROLLOUT, STEPS, TORCH, Runner, Setup, Step
from experiments.bench.setting import decoder_config, forward_flops, seconds
from experiments.bench.workload import Rows, Tokens, Workload, decode_steps, real, with_tokens
from experiments.statistics import Estimate
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.plan.lengths import Drawn

VOCABULARY = decoder_config().vocab_size


class Turn(NamedTuple):
    """Wall seconds of every step for a batch of one turn, and the best rate of a matrix product, FLOP/s."""

    sampling: dict[str, float]
    whole: dict[str, float]
    rate: float


class Grown(NamedTuple):
    """Median seconds of whole steps of one size."""

    rows: int
    median: int  # of the completions' real lengths
    tokens: int  # real ones of a batch, in learning
    seconds: dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="rows, at least 4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX uses the cores that it is given")
    parser.add_argument("--quick", action="store_true", help="once, 8 rows, 1/64 of the lengths")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--figure", type=pathlib.Path, metavar="FILE.svg", help="draw how time grows with real tokens")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.repeats = 8, 1
    if args.batch < 4 or args.repeats < 1:
        parser.error("--batch must be at least 4, and --repeats at least 1")
    workload = Workload(shrink=64 if args.quick else 16)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        torch_step.write_model(pathlib.Path(scratch))
        setup = Setup(pathlib.Path(scratch), workload)
        drawn = [with_tokens(x, VOCABULARY) for x in workload.batches(args.batch, args.repeats * ROLLOUT)]
        batches = [drawn[i : i + ROLLOUT] for i in range(0, len(drawn), ROLLOUT)]
        steps = {name: step.make(setup, args.batch) for name, step in STEPS.items()}
        turns = take_turns(setup, steps, batches)
        growth = grow(setup, steps, args.batch, args.repeats, parts=(2,) if args.quick else (2, 4))
        memory = {name: step.learning_bytes(batches[0]) for name, step in steps.items()}
    found = results(setup, [[rows.lengths for rows in some] for some in batches], turns, growth, memory)
    if args.figure:
        svg.save(figure(found), args.figure)
    print(json.dumps(found) if args.json else tables(found))


def take_turns(setup: Setup, steps: dict[str, Runner], batches: Sequence[Sequence[Rows]]) -> list[Turn]:
    """The seconds of every step on the batches of every turn."""
    _check_losses(setup, steps, batches[0])
    for name, step in steps.items():
        for some in _new_shapes(setup.workload, STEPS[name].batches, batches):
            step.sample(some)
            step.whole(some)
    products = {size: flops.product(size) for size in flops.SIZES}
    for product in products.values():
        product()
    turns = []
    for some in batches:
        rate = max(2.0 * size**3 / _wall(product) for size, product in products.items())
        sampling = {name: _wall(step.sample, some) / len(some) for name, step in steps.items()}
        whole = {name: _wall(step.whole, some) / len(some) for name, step in steps.items()}
        turns.append(Turn(sampling, whole, rate))
    return turns


def grow(setup: Setup, steps: dict[str, Runner], size: int, repeats: int, *, parts: Sequence[int]) -> list[Grown]:
    """Whole steps of fewer rows, and of as many rows with shorter completions; all take turns, each on one rollout.

    `steps` are those of `size` rows. `parts` divide the rows, and then the lengths: ascending. All that is as it was is in the middle.
    """
    fewer = [size // part for part in reversed(parts)]
    settings = [(rows, 1) for rows in (*fewer, size)] + [(size, part) for part in parts]
    names = [name for name, step in STEPS.items() if step.grows]
    smaller = {(name, rows): STEPS[name].make(setup, rows) for name in names for rows in fewer}
    made = smaller | {(name, size): steps[name] for name in names}
    median = setup.workload.median
    workloads = [dataclasses.replace(setup.workload, median=median // part) for _, part in settings]
    lengths = [workload.batches(rows, ROLLOUT) for workload, (rows, _) in zip(workloads, settings, strict=True)]
    batches = [[with_tokens(x, VOCABULARY) for x in some] for some in lengths]
    times: dict[tuple[str, int], list[float]] = {}
    for repeat in range(repeats + 1):
        for i, (rows, _) in enumerate(settings):
            for name in names:
                took = _wall(made[name, rows].whole, batches[i]) / ROLLOUT
                if repeat:  # the first pass compiles
                    times.setdefault((name, i), []).append(took)
    return [
        Grown(
            rows,
            median // part,
            round(float(np.mean([real(x).learning for x in some]))),
            {n: float(np.median(times[n, i])) for n in names},
        )
        for i, ((rows, part), some) in enumerate(zip(settings, lengths, strict=True))
    ]


def _varied(growth: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Those of all lengths, by rows, and those of all rows, by lengths; what has all of both is in both."""
    middle = len(growth) // 2
    return growth[: middle + 1], growth[middle:]


def results(
    setup: Setup,
    of_turns: Sequence[Sequence[Drawn]],
    turns: Sequence[Turn],
    growth: Sequence[Grown],
    memory: dict[str, int | None],
) -> dict[str, Any]:
    """All that is printed, as JSON's types. Seconds are medians, and ratios are medians of the turns' ratios."""
    batches = [x for some in of_turns for x in some]
    size = len(batches[0].student)
    flops_of = lambda some: float(np.mean([real_flops(decoder_config(), x) for x in some]))
    bounds = [flops_of(some) / turn.rate for some, turn in zip(of_turns, turns, strict=True)]
    steps = {}
    for name, step in STEPS.items():
        steps[name] = {
            "seconds": _median([turn.whole[name] for turn in turns]),
            "sampling_seconds": _median([turn.sampling[name] for turn in turns]),
            "times_ours": _median([turn.whole[name] / turn.whole[OURS] for turn in turns]),
            "padded_over_real": padded_over_real(step, setup.workload, batches),
            "occupancy": occupancy(batches, step.slots(size), step.batches),
            "learning_bytes": memory[name],
        }
        if step.grows:
            rows_vary, lengths_vary = _varied(growth)
            steps[name]["growth"] = {
                key: exponent([g.tokens for g in part], [g.seconds[name] for g in part])
                for key, part in (("rows", rows_vary), ("completions", lengths_vary))
            }
    many = setup.workload.batches(size, 200)
    return {
        "padded_over_real": steps[OURS]["padded_over_real"]["learning"],
        "occupancy": steps[OURS]["occupancy"],
        "times_before": steps[BEFORE]["times_ours"],
        "times_torch": steps[TORCH]["times_ours"],
        "ours": OURS,
        "before": BEFORE,
        "rows": size,
        "turns": len(turns),
        "real_tokens": _median([real(x).learning for x in batches]),
        "bound_seconds": _median(bounds),
        "times_bound": _median([turn.whole[OURS] / bound for turn, bound in zip(turns, bounds, strict=True)]),
        "gflops": _median([turn.rate for turn in turns]) / 1e9,
        "steps": steps,
        "growth": [g._asdict() for g in growth],
        "of_200_batches": {
            "padded_over_real": padded_over_real(STEPS[OURS], setup.workload, many)["learning"],
            "occupancy": occupancy(many, STEPS[OURS].slots(size), STEPS[OURS].batches),
        },
    }


def padded_over_real(step: Step, workload: Workload, batches: Sequence[Drawn]) -> dict[str, float]:
    """Tokens that a step computes over real ones, of all batches together: of both prompts, and in learning."""
    computed = np.sum([step.tokens(workload, x) for x in batches], axis=0)
    ratios = computed / np.sum([real(x) for x in batches], axis=0)
    return dict(zip(Tokens._fields, ratios.tolist(), strict=True))


def occupancy(batches: Sequence[Drawn], slots: int, together: int = 1) -> float:
    """The share of slots that decode a completion's token, over the decode steps of all batches, so many in a rollout."""
    live = sum(int(x.completion.sum()) for x in batches)
    lengths = [x.completion.tolist() for x in batches]
    rollouts = [sum(lengths[i : i + together], []) for i in range(0, len(lengths), together)]
    return live / (slots * sum(decode_steps(x, slots) for x in rollouts))


def tables(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"{found['rows']} rows a batch, {found['real_tokens']:.0f} real tokens in learning, medians of {found['turns']}",
        "",
        "| step | seconds | of them sampling | times ours | padded over real: learning | student's prompts "
        "| teacher's prompts | occupancy | memory of learning, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, x in found["steps"].items():
        over = x["padded_over_real"]
        lines.append(
            f"| {name} | {x['seconds']:.2f} | {x['sampling_seconds']:.2f} | {x['times_ours']:.2f} "
            f"| {over['learning']:.2f} | {over['student_prompts']:.2f} | {over['teacher_prompts']:.2f} "
            f"| {x['occupancy']:.0%} | {'' if x['learning_bytes'] is None else round(x['learning_bytes'] / 2**20)} |"
        )
    lines.append(
        f"| bound: real tokens at {found['gflops']:.0f} GFLOP/s | {found['bound_seconds']:.2f} | | "
        f"{1 / found['times_bound']:.2f} | 1 | 1 | 1 | | |"
    )
    many = found["of_200_batches"]
    lines += [
        "",
        f"of 200 batches, {found['ours']}: {many['padded_over_real']:.2f} padded over real tokens in learning, "
        f"occupancy {many['occupancy']:.0%}",
        f"ours ({found['ours']}) against PyTorch by hand: {found['times_torch']:.2f} times as fast",
        f"ours ({found['ours']}) against the step before ({found['before']}): {found['times_before']:.2f} times as fast",
        "",
        "growth with real tokens, whole steps",
        "",
    ]
    names = list(found["growth"][0]["seconds"])
    lines += [
        f"| rows | completions' median | real tokens | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for g in found["growth"]:
        cells = " | ".join(f"{g['seconds'][name]:.2f}" for name in names)
        lines.append(f"| {g['rows']} | {g['median']} | {g['tokens']} | {cells} |")
    for key, what in (("rows", "rows"), ("completions", "lengths of completions")):
        cells = " | ".join(f"{found['steps'][name]['growth'][key]:.2f}" for name in names)
        lines.append(f"| slope of log seconds over log tokens, by {what} | | | {cells} |")
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> str:
    """The seconds of whole steps against their real tokens, as SVG."""
    rows_vary, lengths_vary = _varied(found["growth"])
    series = {"rows": rows_vary, "lengths": sorted(lengths_vary, key=lambda g: g["tokens"])}
    seconds_of = lambda g: Estimate(g["seconds"][found["ours"]], math.nan, 1)
    lines = {
        f"by {name}": ([g["tokens"] for g in some], [seconds_of(g) for g in some]) for name, some in series.items()
    }
    return svg.curves(
        "A step's time by its real tokens", lines, "real tokens of a batch", "seconds", bounds=(0, math.inf)
    )


def real_flops(config: DecoderConfig, lengths: Drawn) -> float:
    """Model FLOPs of a whole step on real tokens.

    They are one forward pass of the teacher and four of the student: drawing, scoring, and two for backward.
    """
    rows = zip(*(x.tolist() for x in lengths), strict=True)
    return sum(4 * forward_flops(config, s + n, n) + forward_flops(config, t + n, n) for s, t, n in rows)


def exponent(tokens: Sequence[float], times: Sequence[float]) -> float:
    """The slope of log time over log tokens by least squares: 1 if time is in proportion to tokens, 0 if they do not matter.

    Examples:
      >>> round(exponent([1, 2, 4], [3, 6, 12]), 6), abs(round(exponent([1, 2, 4], [5, 5, 5]), 6))
      (1.0, 0.0)
    """
    return float(np.polyfit(np.log(tokens), np.log(times), 1)[0])


def _check_losses(setup: Setup, steps: dict[str, Runner], batches: Sequence[Rows]) -> None:
    """Every step's first loss is that of PyTorch on the same completions and weights; raises if not."""
    hand = torch_step.PaddedHandStep(setup.directory)
    rows = batches[0]
    longest = int(rows.lengths.completion.max())
    for name, step in steps.items():
        ran = step.whole([rows])[0]
        with torch.no_grad():
            expected = hand.loss(rows, torch.tensor(ran.completions[:, :longest]).long()).item()
        np.testing.assert_allclose(ran.loss, expected, rtol=1e-3, err_msg=name)


def _new_shapes(workload: Workload, together: int, batches: Sequence[Sequence[Rows]]) -> list[Sequence[Rows]]:
    """One rollout of each shape that the prompts of rollouts are padded to."""
    rollouts = [some[i : i + together] for some in batches for i in range(0, len(some), together)]
    longest = lambda some: Drawn(*(np.concatenate(x) for x in zip(*(rows.lengths for rows in some), strict=True)))
    return list({workload.padded_prompts(longest(some)): some for some in rollouts}.values())


def _wall(function: Callable, *args: Any) -> float:
    """Wall seconds of one call."""
    return float(seconds(function, *args)[0])


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    main()
