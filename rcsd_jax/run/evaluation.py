"""Evaluates one role on all questions: samples, grades, averages and writes. After a stop, sampled answers are reused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rcsd_jax.evaluate import judged_sets, results
from rcsd_jax.evaluate.graders import GRADERS, grade_all
from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.evaluate.table import evaluate
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.keyed_log import Codec, KeyedLog, key_of
from rcsd_jax.host.shared_log import held_by_all
from rcsd_jax.roles.opened_model import Model, sampling_of
from rcsd_jax.roles.thinking import block_of
from rcsd_jax.run.environment import Run
from rcsd_jax.run.workdir import from_main_if_written
from rcsd_jax.sampling.decoding import SamplingConfig
from rcsd_jax.sampling.sampler import Batches, Completion, Sampler
from rcsd_jax.settings.stage import Settings


def evaluate_role(
    label: str, questions: Mapping[str, Questions], model: Model, sampler: Sampler, run: Run
) -> dict[str, Any]:
    """Split -> mode -> the config's scores. Scores in the files of `evaluate.results` are not made again.

    Answers of an evaluation that was stopped are kept in `unfinished_<label>.jsonl`.
    """
    config, workdir = run.config, run.workdir
    scores: dict[str, Any] = from_main_if_written(workdir / f"evaluation_{label}.json") or {}
    modes = {"greedy" if greedy else "sampled": greedy for greedy in config.eval.greedy}
    missing = [(split, mode) for split in questions for mode in modes if mode not in scores.get(split, {})]
    made: dict[str, Any] = {}
    if missing:
        unfinished = workdir / f"unfinished_{label}.jsonl"
        records: list[dict] = []
        with held_by_all(open_unfinished, unfinished) as log:
            for split, mode in missing:
                told = f"{len(questions[split].examples)} questions of {split.replace('_', ' ')}, {mode}"
                run.console.print(f"{run.name}: evaluating {label.replace('_', ' ')} on {told}", soft_wrap=True)
                made.setdefault(split, {})[mode], graded = _evaluated(
                    questions[split], model, sampler, log, run, greedy=modes[mode]
                )
                records += [{"split": split, "mode": mode, **record} for record in graded]
        if multihost.is_main():
            results.write(workdir, label, made, records)
            unfinished.unlink(missing_ok=True)
    asked_for = {split: scores.get(split, {}) | made.get(split, {}) for split in questions}
    return {split: {mode: held[mode] for mode in modes} for split, held in asked_for.items()}


def _evaluated(
    asked: Questions, model: Model, sampler: Sampler, log: KeyedLog[Completion], run: Run, *, greedy: bool
) -> tuple[dict[str, Any], list[dict]]:
    config = run.config
    sampling = sampling_of(config.sampling, model, temperature=0.0 if greedy else config.eval.temperature)
    plain: dict[str, Any] = dict(int8_cache=False, merged_adapters=False, int8_weights=False, presence_penalty=0.0)
    sampling = dataclasses.replace(sampling, max_new_tokens=config.evaluation_budget, **plain)
    block = block_of(model.tokenizer, config.model, thinking=asked.thinking)
    by_judge = GRADERS[asked.grader].grade is None
    grade: Callable[..., Any] = functools.partial(grade_all, asked.grader)
    if by_judge:
        assert run.judges is not None, "a run with a judged set has judges"
        grade = functools.partial(judged_sets.graded, run.judges, asked.aggregations)
    summary, records = evaluate(
        asked.examples,
        after_analyses(asked, sampler, log, sampling, reason_tokens=config.teacher.reason_tokens),
        complete=functools.partial(resumed, sampler, log, sampling),
        decode=model.decode,
        answer=None if block is None else block.answer,
        grade_all=grade,
        samples=1 if greedy else config.eval.samples,
    )
    return (judged_sets.summary(summary, records, asked.aggregations) if by_judge else summary), records


def check_budget(questions: Mapping[str, Mapping[str, Questions]], model: Model, config: Settings) -> None:
    """Raises UserError if a prompt of role -> split -> questions and its completion take more positions than the model supports."""
    budget, limit = config.evaluation_budget, model.decoder.config.max_position
    asked = [one for splits in questions.values() for one in splits.values()]
    analyses = [config.teacher.reason_tokens + len(one.transition) if len(one.transition) else 0 for one in asked]
    longest = max((max(map(len, q.prompts)) + n for q, n in zip(asked, analyses, strict=True)), default=0)
    if asked and longest + budget > limit:
        raise UserError(
            f"in evaluation, the longest prompt ({longest} tokens) and a completion take more than the model's {limit} positions",
            field="sampling.max_new_tokens" if config.eval.max_new_tokens is None else "eval.max_new_tokens",
            value=budget,
            remedy=f"set at most {limit - longest}"
            if longest < limit
            else "lower data.max_student_prompt or data.max_teacher_prompt",
        )


def after_analyses(
    asked: Questions, sampler: Sampler, log: KeyedLog[Completion], sampling: SamplingConfig, *, reason_tokens: int
) -> list[np.ndarray]:
    """The prompts for the answers: a teacher that reasons first adds its analyses, at most `reason_tokens` each."""
    if not len(asked.transition):
        return asked.prompts
    count = len(asked.prompts)
    sampling = dataclasses.replace(sampling, max_new_tokens=reason_tokens)
    written: dict[int, Completion] = {}
    seeds = range(count, 2 * count)  # apart from the answers'
    for chosen, completions in resumed(sampler, log, sampling, asked.prompts, seeds):
        written.update(zip(chosen, completions, strict=True))
    return [np.concatenate([p, written[i].tokens, asked.transition]) for i, p in enumerate(asked.prompts)]


# --- completions of an unfinished evaluation ---------------------------------------------------------------------


def open_unfinished(path: AnyPath | None) -> KeyedLog[Completion]:
    """The log of completions that are sampled but not graded yet. It serves one model, so keys do not name the model."""
    return KeyedLog(path, _COMPLETIONS)


_COMPLETIONS = Codec[Completion](
    noun="a completion",
    remedy="remove the file, to have these completions sampled again",
    to_record=lambda one: {"tokens": one.tokens.tolist(), "cut": one.cut},
    from_record=lambda record: Completion(np.asarray(record["tokens"], np.int32), bool(record["cut"])),
)


def resumed(
    sampler: Sampler,
    log: KeyedLog[Completion],
    sampling: SamplingConfig,
    prompts: Sequence[np.ndarray],
    seeds: Sequence[int],
) -> Batches:
    """Like `sampler.generate`, but completions in `log` come first, and the others are added to it."""
    settings = sampling.described()
    keys = [key_of("", prompt, settings, 0, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    done = [i for i, key in enumerate(keys) if key in log]
    if done:
        held = [log.get(keys[i]) for i in done]
        yield done, [one for one in held if one is not None]
    missing = [i for i, key in enumerate(keys) if key not in log]
    if not missing:
        return
    for chosen, completions in sampler.generate([prompts[i] for i in missing], [seeds[i] for i in missing], sampling):
        indexes = [missing[i] for i in chosen]
        log.put_batch((keys[i], one) for i, one in zip(indexes, completions, strict=True))
        yield indexes, completions
