"""Long solutions: what privileged teachers do to checks and repairs, on chains of 8 to 16 steps (`rcsd_jax.world.chains`).

    python -m experiments.chains [--seeds=5] [--workdir=runs/experiments] [--only=ARM,ARM] [--rates=RATE,RATE] [--quick]

The base is made first if it is missing, in about 45 minutes on two cores; a cell, one arm with one seed, takes about three. Every arm has
the same number of steps and of completions a step. With `--rates`, each arm is tried with each learning rate, with a seed that the table
does not use, and only accuracies are printed; `RATES` holds what was chosen.

The columns, of sampled completions unless they say otherwise, in and out of distribution (13 to 16 steps, where training has 8 to 12):

- accuracy, greedy: does the method help, on the chains that were trained on and on longer ones?
- pass@16: does it keep what the base could do with more tries, or does it only narrow the answers?
- length, tokens: does a teacher that sees a reference shorten what the student writes?
- steps: is it shorter because steps are missing, or because checks are?
- checks: does the student still look at what it wrote?
- wrong turns: does the student make fewer mistakes to begin with?
- repaired: of the wrong turns, does it still notice and repair them? References are short and have no repair to copy, and "OPSD,
  thorough references" sees ones that have: so is it the reference that stops repairs, or its form?
- left: how many completions have a wrong turn that stayed: does a lower share of repairs matter, or are there so few wrong turns left?
- unfounded: how often is the answer right although the steps do not lead to it, as those of a flawed reference do?
- criterion score: does the student do what the rubric asks for?

Differences to the true rubric are taken seed by seed, so they say whether a rubric does less harm than a reference; "no checks asked" has
the same rubric without what it says of checks. "fixed advantage" is the control: it has neither a teacher nor a reward.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import chains as chains_config
from experiments import arms, bases, cells, learning_rates, tables
from experiments.workers import Task
from rcsd_jax.host.console import Console
from rcsd_jax.world.chains import reading, rows
from rcsd_jax.world.chains.problems import Problem
from rcsd_jax.world.registered import CHAINS


class Arm(NamedTuple):
    """A variant of `configs/chains.py`, the kind of its rows, of `rows.KINDS`, and changes to it."""

    label: str
    variant: str
    kind: str = ""
    changes: Mapping[str, Any] = {}


ARMS: dict[str, Arm] = {
    "true": Arm("true rubric", "ground_truth"),
    "unasked": Arm("true rubric, no checks asked", "ground_truth", rows.UNASKED),
    "opsd": Arm("OPSD", "reference"),
    "opsd_authors": Arm("OPSD, authors' loss", "opsd"),
    "opsd_thorough": Arm("OPSD, thorough references", "reference", rows.THOROUGH),
    "purified": Arm("Purified OPSD", "purified"),
    "contrastive": Arm("right against wrong, no clip", "contrastive", changes=arms.NO_CLIP),
    "pw_opsd": Arm("PW-OPSD, no clip", "pw_opsd", changes=arms.NO_CLIP),
    "grpo": Arm("GRPO", "grpo"),
    "fixed_advantage": Arm("fixed advantage", "fixed_advantage"),
}
SELF = "true"
"""The arm with which all others are compared."""
QUICK = (SELF, "opsd")
WITH_TEACHER = (SELF, "opsd", "opsd_thorough")
"""Arms whose teacher is evaluated too, with the arm's kind of rows. All others are evaluated, and scored, on rows without a kind."""

STEPS, QUESTIONS, SAMPLES = 40, 64, 16
RATES = {"opsd_authors": 5e-5, "purified": 4.5e-4, "pw_opsd": 4.5e-4, "fixed_advantage": 5e-5}
"""Arm -> its learning rate, where another than that of `configs/world.py` was found better."""
RATES_SEED = 90

PERCENT = {"accuracy": "accuracy", "unfounded": "unfounded", "criterion score": "rubric_score"}
"""Column -> the score of an evaluation."""


def config(name: str, seed: int, base: Path, *, quick: bool) -> ConfigDict:
    """The configuration of an arm's run with a seed."""
    arm = ARMS[name]
    found = chains_config.get_config(arm.variant)
    found.seed = 400 + seed
    found.model.path = str(base)
    found.data.path += of_kind(name)
    found.update(arm.changes)
    found.train.steps = STEPS
    if name in RATES:
        found.optimizer.learning_rate = RATES[name]
    shown = of_kind(name) if name in WITH_TEACHER else ""
    found.eval.splits = {split: of_world + shown for split, of_world in cells.SPLITS.items()}
    found.eval.update(count=QUESTIONS, samples=SAMPLES, roles=roles(name))
    if quick:
        found.data.count = 32
        found.train.update(steps=2, batch_size=8)
        found.eval.update(count=4, batch_size=16, samples=2)
    return found


def of_kind(name: str) -> str:
    """What an arm's kind of rows adds to the name of a split."""
    return f":{ARMS[name].kind}" if ARMS[name].kind else ""


def roles(name: str) -> tuple[str, ...]:
    """The roles that an arm's runs evaluate."""
    others = ("base",) * (name == SELF) + ("teacher",) * (name in WITH_TEACHER)
    return (*others, "trained")


def counts(problems: Mapping[str, Problem], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What completions wrote: means over completions, but "repaired", which is the percent of all their wrong turns, NaN if there are none.

    Args:
      problems: of each id.
      records: completions, with "id" and "text".
    """
    read = [reading.read(problems[one["id"]], one["text"]) for one in records]
    wrong = sum(map(reading.wrong_turns, read))
    return {
        "steps": float(np.mean([len(steps) for steps in read])),
        "checks": float(np.mean([reading.checks(steps) for steps in read])),
        "wrong turns": wrong / len(read),
        "repaired": 100 * sum(map(reading.repairs, read)) / wrong if wrong else float("nan"),
        "left": 100 * float(np.mean([reading.unrepaired(steps) for steps in read])),
    }


def values(task: Task, role: str, split: str) -> dict[str, float]:
    """The columns of a role of one finished run."""
    cell = cells.read(task, role)
    scores = cell.scores[role][split]["sampled"]
    found = {column: cell.score(role, split, "sampled", score) for column, score in PERCENT.items()}
    found["greedy"] = cell.score(role, split, "greedy")
    most = f"pass@{task.config.eval.samples}"
    found |= {most: 100 * scores[most], "length": scores["length"]}
    examples = rows.examples(cells.SPLITS[split], task.config.eval.count, seed=cell.seed)
    problems = {example.id: example.extra["problem"] for example in examples}
    return found | counts(problems, [r for r in cell.records if (r["split"], r["mode"]) == (split, "sampled")])


def of_split(split: str, tasks: Mapping[tuple[str, int], Task], seeds: int) -> tables.Rows:
    """The rows of a split: the base, the teachers, and the trained students with their differences to `SELF`."""
    names = list(dict.fromkeys(name for name, _ in tasks))
    labels = {"base": "(base)", "teacher": "(teacher: {})", "trained": "{}"}
    found = {
        label.format(ARMS[name].label): [values(tasks[name, seed], role, split) for seed in range(seeds)]
        for role, label in labels.items()
        for name in names
        if role in roles(name)
    }
    compared = [ARMS[name].label for name in names if name != SELF and SELF in names]
    return tables.of_seeds(found, ARMS[SELF].label, compared)


def try_rates(names: Sequence[str], flags: argparse.Namespace, folder: Path, base: Path) -> dict[str, dict[str, str]]:
    """Runs each arm with each of `flags.rates`; arm -> rate -> accuracies."""
    tasks = {}
    for name in names:
        for rate in flags.rates:
            tried = config(name, RATES_SEED, base, quick=flags.quick)
            tried.optimizer.learning_rate = rate
            tried.eval.update(roles=("trained",), samples=4)
            tasks[name, rate] = Task(tried, folder / "chains_rates" / name / f"{rate:g}", f"{name}/{rate:g}")
    cells.run_tasks(list(tasks.values()), flags)
    found: dict[str, dict[str, str]] = {}
    for (name, rate), task in tasks.items():
        found.setdefault(ARMS[name].label, {})[f"{rate:g}"] = learning_rates.accuracies(task)
    return found


def main() -> None:
    """Makes the base if it is missing, runs the missing cells, then prints and writes the tables."""
    flags = tables.arguments(__doc__, _add_flags)
    names = flags.only or list(QUICK if flags.quick else ARMS)
    folder = cells.folder(flags)
    base = flags.workdir / ("quick_chains_base" if flags.quick else Path(chains_config.BASE).name)
    bases.make(base, CHAINS, quick=flags.quick)
    console = Console(width=190)
    if flags.rates:
        tried = try_rates(names, flags, folder, base)
        tables.show(console, "accuracy in and out of distribution, percent, sampled / greedy", tried)
        return
    tasks = cells.tasks_of(names, flags, functools.partial(config, base=base, quick=flags.quick), "chains_")
    cells.run_tasks(list(tasks.values()), flags)
    found = {split.replace("_", " "): of_split(split, tasks, flags.seeds) for split in cells.SPLITS}
    for split, rows_of_split in found.items():
        title = f"{split}: percent, or a completion's mean; ± 95% interval of {flags.seeds} seeds"
        tables.show_compared(console, title, rows_of_split, ARMS[SELF].label)
    budget = {
        ARMS[name].label: tables.budget_of([cells.read(tasks[name, seed]) for seed in range(flags.seeds)])
        for name in names
    }
    tables.say_budget(console, budget)
    place = tables.write(console, flags, "chains", tables.joined(found), budget=budget)
    for column, title in (("accuracy", "Chains: accuracy"), ("repaired", "Chains: wrong turns that were repaired")):
        tables.bars(place / f"chains_{column}.png", title, tables.of_column(found, column), list(found))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    tables.add_only(parser, ARMS)
    parser.add_argument("--rates", type=_rates, default=[], help="learning rates to try instead, such as 5e-5,1.5e-4")


def _rates(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of learning rates, such as 5e-5,1.5e-4") from None


if __name__ == "__main__":
    main()
