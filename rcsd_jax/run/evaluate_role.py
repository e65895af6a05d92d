"""One role's answers to all questions: sampled, graded, averaged, written down."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from rcsd_jax.evaluate import results
from rcsd_jax.evaluate.graders import grade_all
from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.evaluate.table import evaluate
from rcsd_jax.host import multihost
from rcsd_jax.host.files import AnyPath
from rcsd_jax.run.resumable import Complete, resumable
from rcsd_jax.run.running import Model, Run, completer, sampling_of
from rcsd_jax.run.workdir import from_main_if_written
from rcsd_jax.sampling.decoding import SamplingConfig
from rcsd_jax.sampling.many import Completion


def evaluate_role(
    label: str, questions: Mapping[str, Questions], model: Model, variables: Any, run: Run
) -> dict[str, Any]:
    """Split -> mode -> scores of what the config asks for, kept in the files of `evaluate.results`: what is there is not made again.

    What was sampled when a run was stopped waits in `unfinished_<label>.jsonl`.
    """
    config, workdir = run.config, run.workdir
    unfinished = workdir / f"unfinished_{label}.jsonl"
    scores: dict[str, Any] = from_main_if_written(workdir / f"evaluation_{label}.json") or {}
    made: dict[str, Any] = {}
    records: list[dict] = []
    modes = {"greedy" if greedy else "sampled": greedy for greedy in config.eval.greedy}
    for split, asked in questions.items():
        for mode in [mode for mode in modes if mode not in scores.get(split, {})]:
            greedy = modes[mode]
            told = f"{len(asked.examples)} questions of {split.replace('_', ' ')}, {mode}"
            run.console.print(f"{run.name}: evaluating {label.replace('_', ' ')} on {told}", soft_wrap=True)
            temperature = 0.0 if greedy else config.eval.temperature
            sampling = sampling_of(config.sampling, model, temperature=temperature)
            sampling = dataclasses.replace(sampling, int8_cache=False, merged_adapters=False)
            made.setdefault(split, {})[mode], graded = evaluate(
                asked.examples,
                _after_analyses(asked, model, variables, sampling, run, unfinished),
                complete=_resumable_completer(model, variables, sampling, run, unfinished),
                decode=model.decode,
                grade_all=functools.partial(grade_all, asked.grader, judge=run.judge),
                samples=1 if greedy else config.eval.samples,
            )
            records += [{"split": split, "mode": mode, **record} for record in graded]
    if made and multihost.is_main():
        results.write(workdir, label, made, records)
        unfinished.unlink(missing_ok=True)
    asked_for = {split: scores.get(split, {}) | made.get(split, {}) for split in questions}
    return {split: {mode: held[mode] for mode in modes} for split, held in asked_for.items()}


def _resumable_completer(
    model: Model, variables: Any, sampling: SamplingConfig, run: Run, unfinished: AnyPath
) -> Complete:
    return resumable(completer(model, variables, sampling, run.config.eval.batch_size, run), unfinished, sampling)


def _after_analyses(
    asked: Questions,
    model: Model,
    variables: Any,
    sampling: SamplingConfig,
    run: Run,
    unfinished: AnyPath,
) -> list[np.ndarray]:
    """The prompts after which the answers follow: of a teacher that reasons first, with the analyses that it writes."""
    if not len(asked.transition):
        return asked.prompts
    count, config = len(asked.prompts), run.config
    sampling = dataclasses.replace(sampling, max_new_tokens=config.teacher.reason_tokens)
    complete = _resumable_completer(model, variables, sampling, run, unfinished)
    written: dict[int, Completion] = {}
    for chosen, completions in complete(asked.prompts, range(count, 2 * count)):  # seeds apart from the answers'
        written.update(zip(chosen, completions, strict=True))
    return [np.concatenate([p, written[i].tokens, asked.transition]) for i, p in enumerate(asked.prompts)]
