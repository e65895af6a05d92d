"""One role's answers to all questions: sampled, graded, averaged, written down."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rcsd_jax import preparation, processes
from rcsd_jax.completions import Completion
from rcsd_jax.evaluate.graders import grade_all
from rcsd_jax.evaluate.kept import Complete, resumable
from rcsd_jax.evaluate.table import evaluate
from rcsd_jax.files import AnyPath, write_json, write_text
from rcsd_jax.run import Model, Run, completer, sampling_of
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.workdir import from_main_if_written


def evaluate_role(
    label: str, questions: Mapping[str, preparation.Questions], model: Model, variables: Any, run: Run
) -> dict[str, Any]:
    """Split -> mode -> scores, kept in `evaluation_<label>.json`; texts go to `completions_<label>.jsonl`.

    What was sampled when a run was stopped waits in `unfinished_<label>.jsonl`.
    """
    config, workdir = run.config, run.workdir
    unfinished = workdir / f"unfinished_{label}.jsonl"
    path = workdir / f"evaluation_{label}.json"
    if (written := from_main_if_written(path)) is not None:
        return written
    results: dict[str, Any] = {}
    lines = []
    for split, asked in questions.items():
        for greedy in config.eval.greedy:
            mode = "greedy" if greedy else "sampled"
            told = f"{len(asked.examples)} questions of {split.replace('_', ' ')}, {mode}"
            run.console.print(f"{run.name}: evaluating {label.replace('_', ' ')} on {told}", soft_wrap=True)
            temperature = 0.0 if greedy else config.eval.temperature
            sampling = sampling_of(config.sampling, model, temperature=temperature)
            sampling = dataclasses.replace(sampling, int8_cache=False, merged_adapters=False)
            scores, records = evaluate(
                asked.examples,
                _after_analyses(asked, model, variables, sampling, run, unfinished),
                complete=_resumable_completer(model, variables, sampling, run, unfinished),
                decode=model.decode,
                grade_all=functools.partial(grade_all, asked.grader, judge=run.judge),
                samples=1 if greedy else config.eval.samples,
            )
            results.setdefault(split, {})[mode] = scores
            lines += [json.dumps({"split": split, "mode": mode, **r}, ensure_ascii=False) for r in records]
    if processes.is_main():
        write_text(workdir / f"completions_{label}.jsonl", "\n".join(lines) + "\n")
        write_json(path, results)
        unfinished.unlink(missing_ok=True)
    return results


def _resumable_completer(
    model: Model, variables: Any, sampling: SamplingConfig, run: Run, unfinished: AnyPath
) -> Complete:
    return resumable(completer(model, variables, sampling, run.config.eval.batch_size, run), unfinished, sampling)


def _after_analyses(
    asked: preparation.Questions,
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
