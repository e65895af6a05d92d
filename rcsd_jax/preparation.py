"""From a config's data to what a run needs: examples, their rubrics, and both roles' token ids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rcsd_jax import config as configs
from rcsd_jax import contexts, processes
from rcsd_jax.contexts import Role
from rcsd_jax.data import sources
from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.errors import UserError
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.evaluate.benchmarks import questions as benchmark_questions
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.rubrics import variants
from rcsd_jax.rubrics.schema import Rubric, to_json


class Questions(NamedTuple):
    """Questions to be answered in one role, and the prompts that the role sees, as token ids."""

    examples: list[Example]
    prompts: list[np.ndarray]  # [P] int32 each
    transition: np.ndarray  # [U] int32, what follows the analysis of a teacher that reasons first; else empty
    grader: str  # of `GRADERS`


class Without(NamedTuple):
    """The teacher's prompts of an example, each without one criterion, and that criterion's weight, 1 on average."""

    prompts: list[np.ndarray]  # [Q] int32, of each criterion; none unless guidance is by criteria
    weights: np.ndarray  # [K] float32


class Encoded(NamedTuple):
    """The examples of a run and the prompts of both roles, as token ids; `skipped` did not fit.

    `references` are empty where a role writes the completions.
    """

    examples: list[Example]
    student: list[np.ndarray]  # [P] int32 each
    teacher: list[np.ndarray]  # [Q] int32 each
    transition: np.ndarray  # [U] int32
    skipped: int
    references: list[np.ndarray]  # [n] int32 each
    without: list[Without]


def read_examples(config: ConfigDict, path: str, *, require: Sequence[str], count: int | None = None) -> list[Example]:
    """The examples at `path` of the config's data source; of the world's, `count` (default: `data.count`).

    Raises:
      UserError: unreadable data or a row that lacks a required field.
    """
    data = config.data
    if data.source == "world" and sources.split_source(path, "world")[0] == "world":
        from rcsd_jax import world

        try:
            flawed = {} if data.flawed is None else {"flawed": data.flawed}
            return world.examples(path, data.count if count is None else count, seed=config.seed, **flawed)
        except ValueError as error:
            raise UserError(str(error), field="data.path", value=path, remedy="name a split of the world") from error
    return _read(config, path, require=require, fields={name: column for name, column in data.fields.items() if column})


def _read(config: ConfigDict, path: str, *, require: Sequence[str], fields: Mapping[str, str]) -> list[Example]:
    data = config.data
    return sources.read(
        path,
        source="jsonl" if data.source == "world" else data.source,
        split=data.split,
        data_dir=data.tfds_dir or None,
        fields=fields,
        require=require,
        min_criteria=config.rubric.min_criteria,
        max_criteria=config.rubric.max_criteria,
    )


def required_fields(config: ConfigDict) -> tuple[str, ...]:
    """Fields that every row must have: what the roles see, less the rubric where it does not come from the row."""
    from_row = config.rubric.source in ("data", "noisy", "reduced")
    seen = dict.fromkeys(name for role in roles(config) for name in role.fields)
    if config.sampling.source == "reference":
        seen |= dict.fromkeys(["rubric" if config.task == "write_rubric" else "reference"])
    if config.reward.grader:
        seen |= dict.fromkeys(GRADERS[config.reward.grader].needs)
    if config.rubric.source == "written" and "rubric" in seen:
        seen |= dict.fromkeys(config.rubric.writer_fields)
    rows = [name for name in seen if name not in contexts.ATTEMPT_FIELDS]
    return tuple(name for name in rows if name != "rubric" or from_row or config.reward.grader)


def fallback_rubric(config: ConfigDict) -> Rubric:
    """The rubric that fits any question; the embedded world has one in its own words."""
    if config.data.source == "world":
        from rcsd_jax import world

        return world.generic_rubric()
    return variants.generic_rubric()


def with_rubric_variant(examples: Sequence[Example], config: ConfigDict) -> list[Example]:
    """The examples with the rubrics that `config.rubric.source` names, where these need no model."""
    source, seed = config.rubric.source, config.seed
    pool = [(e.id, e.rubric) for e in examples if e.rubric is not None]
    table = {
        "generic": lambda e: fallback_rubric(config),
        "noisy": lambda e: variants.noisy(e.rubric, pool, seed=seed, id=e.id, fraction=config.rubric.noisy_fraction),
        "random": lambda e: variants.random_rubric(pool, seed=seed, id=e.id),
        "reduced": lambda e: variants.reduced(e.rubric, seed=seed, id=e.id, keep=config.rubric.reduced_fraction),
    }
    if source not in table:
        return list(examples)

    def varied(example: Example) -> Example:
        try:
            return dataclasses.replace(example, rubric=table[source](example))
        except ValueError as error:
            raise UserError(
                str(error),
                file=example.origin,
                field="rubric.source",
                value=source,
                remedy="give more rows with rubrics, or choose another rubric.source",
            ) from error

    return [varied(example) for example in examples]


def roles(config: ConfigDict) -> tuple[Role, Role]:
    """Student and teacher of a config; where the method has no teacher, the student twice."""
    student = Role(tuple(config.student.fields), config.student.thinking)
    if configs.teacher_weights(config) == "none":
        return student, student
    return student, Role(tuple(config.teacher.fields), config.teacher.thinking)


def prompts_of(config: ConfigDict) -> Mapping[str, Any]:
    """The config's prompt texts as a plain dict."""
    return config.prompts.to_dict() | {"rubric_style": config.rubric.style}


def encode(examples: Sequence[Example], tokenizer: Any, config: ConfigDict) -> Encoded:
    """Both roles' prompts of every example, before the run starts: a row that cannot be used is known at once.

    Raises:
      UserError: an example lacks a field, or is too long and `data.too_long` is "fail", or none is left.
    """
    student_role, teacher_role = roles(config)
    known = tuple(name for name in teacher_role.fields if name not in contexts.ATTEMPT_FIELDS)
    teacher_role = dataclasses.replace(teacher_role, fields=known)  # the rest comes while it trains

    def all_of(example: Example) -> tuple[Any, ...]:
        return (
            _encode(tokenizer, example, student_role, config, reasons=False)[0],
            *_encode(tokenizer, example, teacher_role, config, reasons=config.teacher.reason_tokens > 0),
            _encode_reference(tokenizer, example, config),
            _encode_without(tokenizer, example, teacher_role, config),
        )

    encoded = processes.shared(all_of, examples)
    fitting = [
        fits(e, s, config, role="student") and fits(e, t, config, role="teacher") and reference_fits(e, r, config)
        for e, (s, t, _, r, _) in zip(examples, encoded, strict=True)
    ]
    if not any(fitting):
        raise _nothing_fits(len(examples), config)
    kept = [i for i, fit in enumerate(fitting) if fit]
    student, teacher, transitions, *rest = map(list, zip(*(encoded[i] for i in kept), strict=True))
    skipped = len(examples) - len(kept)
    return Encoded([examples[i] for i in kept], student, teacher, transitions[0], skipped, *rest)


def teacher_prompt(tokenizer: Any, example: Example, config: ConfigDict) -> np.ndarray:
    """What the teacher sees of an example that has all of its fields, also those of attempts; [Q] int32."""
    return _encode(tokenizer, example, roles(config)[1], config, reasons=False)[0]


def _encode_without(tokenizer: Any, example: Example, role: Role, config: ConfigDict) -> Without:
    """The teacher's prompts without each criterion. Of a rubric of one criterion there are none: nothing is pushed along."""
    criteria = example.rubric.criteria if example.rubric else ()
    if not configs.guided_by_criteria(config) or len(criteria) < 2:
        return Without([], np.zeros(0, np.float32))
    shown = [dataclasses.replace(example, rubric=rubric) for rubric in variants.leave_one_out(rubric_of(example))]
    weights = np.abs([criterion.weight for criterion in criteria]).astype(np.float32)
    prompts = [_encode(tokenizer, one, role, config, reasons=False)[0] for one in shown]
    return Without(prompts, weights / weights.mean())


def _encode_reference(tokenizer: Any, example: Example, config: ConfigDict) -> np.ndarray:
    """The completion that the data holds, with its end; empty where a role writes completions."""
    if config.sampling.source != "reference":
        return np.zeros((0,), np.int32)
    text = example.reference if config.task == "solve" else to_json(rubric_of(example), style=config.rubric.style)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.asarray([*tokens, tokenizer.eos_token_id], np.int32)


def reference_fits(example: Example, tokens: np.ndarray, config: ConfigDict) -> bool:
    """Whether a completion from the data is within `sampling.max_new_tokens`; it is never cut.

    Raises:
      UserError: it is not, and `data.too_long` is "fail".
    """
    limit = config.sampling.max_new_tokens
    return _within(limit, "sampling.max_new_tokens", "reference", "the reference", example, tokens, config)


def evaluation_questions(config: ConfigDict, tokenizer: Any) -> dict[str, dict[str, Questions]]:
    """Role of `eval.roles` -> split -> its questions, of every row that will be graded; empty where nothing is.

    Splits are those of `eval.path` or `eval.splits`, graded by `eval.grader`, and the benchmarks, of which the teacher, who has
    nothing to see there, is not asked.

    Args:
      config: of the run.
      tokenizer: of the model.

    Raises:
      UserError: unreadable data, or a row that lacks what a role must see or the grader needs.
    """
    student, teacher = roles(config)
    splits = (config.eval.splits.to_dict() or {"eval": config.eval.path}) if config.eval.grader else {}
    found: dict[str, dict[str, Questions]] = {}
    benchmarks = {name: _benchmark(name, path, config) for name, path in configs.benchmarks_of(config).items()}
    for name in config.eval.roles:
        role = teacher if name == "teacher" else student
        asked: dict[str, Questions] = {}
        for split, path in splits.items():
            needs = GRADERS[config.eval.grader].needs
            try:
                examples = read_examples(config, path, require=(*role.fields, *needs), count=config.eval.count)
            except UserError as error:
                if name != "teacher" or error.field not in role.fields or error.field in needs:
                    raise
                raise error.with_remedy("or leave 'teacher' out of eval.roles") from error
            asked[split] = _questions(examples, config.eval.grader, tokenizer, role, name, config)
        for split, examples in benchmarks.items() if name != "teacher" else ():
            asked[split] = _questions(examples, BENCHMARKS[split].grader, tokenizer, role, name, config)
        if asked:
            found[name] = asked
    return found


def _benchmark(name: str, path: str, config: ConfigDict) -> list[Example]:
    benchmark = BENCHMARKS[name]
    place = path or benchmark.path
    examples = _read(config, place, require=benchmark.requires(), fields=benchmark.fields)[: config.eval.count]
    return benchmark_questions(benchmark, examples, seed=config.seed)


def _questions(
    examples: Sequence[Example], grader: str, tokenizer: Any, role: Role, name: str, config: ConfigDict
) -> Questions:
    examples = examples[: config.eval.count]
    reasons = name == "teacher" and config.teacher.reason_tokens > 0
    encode_one = functools.partial(_encode, tokenizer, role=role, config=config, reasons=reasons)
    encoded = processes.shared(encode_one, examples)
    fitting = [fits(e, p, config, role=name) for e, (p, _) in zip(examples, encoded, strict=True)]
    if not any(fitting):
        raise _nothing_fits(len(examples), config)
    kept = [i for i, fit in enumerate(fitting) if fit]
    return Questions([examples[i] for i in kept], [encoded[i][0] for i in kept], encoded[0][1], grader)


def _encode(
    tokenizer: Any, example: Example, role: Role, config: ConfigDict, *, reasons: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A role's prompt, and what follows its analysis: nothing unless it reasons first."""
    if reasons:
        return contexts.encode_reason_first(tokenizer, example, role, prompts_of(config), config.task)
    prompt = contexts.encode_role(tokenizer, example, role, prompts_of(config), config.task)
    return prompt, np.zeros((0,), np.int32)


def _nothing_fits(count: int, config: ConfigDict) -> UserError:
    return UserError(
        f"no example is left: all {count} prompts (or references) are longer than the limits",
        field="data.max_teacher_prompt",
        value=config.data.max_teacher_prompt,
        remedy="raise data.max_student_prompt, data.max_teacher_prompt or, of references, sampling.max_new_tokens",
    )


def fits(example: Example, tokens: np.ndarray, config: ConfigDict, *, role: str) -> bool:
    """Whether a prompt is within its role's limit (a rubric writer's is the teacher's); it is never cut.

    Roles of evaluation count too: "base" and "trained" are the student.

    Raises:
      UserError: it is not, and `data.too_long` is "fail".
    """
    key = "max_student_prompt" if role in ("student", "base", "trained") else "max_teacher_prompt"
    return _within(config.data[key], f"data.{key}", "question", f"the {role}'s prompt", example, tokens, config)


def _within(
    limit: int, key: str, field: str, what: str, example: Example, tokens: np.ndarray, config: ConfigDict
) -> bool:
    if len(tokens) <= limit:
        return True
    if config.data.too_long == "fail":
        raise UserError(
            f"{what} has {len(tokens)} tokens, more than {key} = {limit}",
            file=example.origin,
            field=field,
            value=getattr(example, field),
            remedy="raise the limit, or set data.too_long=skip",
        )
    return False
