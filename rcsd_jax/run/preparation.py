"""From a config's data to what a run needs: examples, their rubrics, and both roles' token ids."""

from __future__ import annotations

import dataclasses
import math
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rcsd_jax.data import sources
from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.evaluate.benchmarks import questions as benchmark_questions
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts
from rcsd_jax.roles.contexts import Role
from rcsd_jax.rubrics import variants
from rcsd_jax.rubrics.schema import Rubric, to_json
from rcsd_jax.settings import config as configs


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


class Row(NamedTuple):
    """An example and what it is to each role, as token ids: a function of the example and the config alone."""

    example: Example
    student: np.ndarray  # [P] int32
    teacher: np.ndarray  # [Q] int32
    reference: np.ndarray  # [n] int32; empty where a role writes the completions
    without: Without


class Longest(NamedTuple):
    """What a run's static shapes are made for; see `batch.padded_length`."""

    student: int  # tokens
    teacher: int  # tokens
    criteria: int  # of a rubric that is left one criterion at a time; 0 unless guidance is by criteria


class Encoded(NamedTuple):
    """Examples and the prompts of both roles, as token ids; `skipped` did not fit.

    `references` are empty where a role writes the completions.
    """

    examples: list[Example]
    student: list[np.ndarray]  # [P] int32 each
    teacher: list[np.ndarray]  # [Q] int32 each
    transition: np.ndarray  # [U] int32
    skipped: int
    references: list[np.ndarray]  # [n] int32 each
    without: list[Without]
    longest: Longest


Say = Callable[[str], Any]
"""What is called with a line that the user should know of."""


def read_examples(
    config: ConfigDict, path: str, *, require: Sequence[str], count: int | None = None, say: Say = warnings.warn
) -> list[Example]:
    """The examples at `path` of the config's data source; of the world's, `count` (default: `data.count`).

    `say` is told of columns that look like a field and are not read.

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
    fields = {name: column for name, column in data.fields.items() if column}
    return _read(config, path, require=require, fields=fields, say=say)


def _read(
    config: ConfigDict, path: str, *, require: Sequence[str], fields: Mapping[str, str], say: Say
) -> list[Example]:
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
        say=say,
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
    """Both roles' prompts of every example.

    Raises:
      UserError: an example lacks a field, or is too long and `data.too_long` is "fail", or none is left.
    """
    rows = multihost.shared_list(lambda mine: encode_rows(mine, tokenizer, config), examples)
    kept = [row for row in rows if row_fits(row, config)]
    if not kept:
        raise nothing_fits(len(examples), config)
    transition = transition_of(kept[0].example, tokenizer, config)
    return collate(kept, transition, longest_of(kept), skipped=len(rows) - len(kept))


def collate(rows: Sequence[Row], transition: np.ndarray, longest: Longest, *, skipped: int = 0) -> Encoded:
    """Rows as columns."""
    return Encoded(
        examples=[row.example for row in rows],
        student=[row.student for row in rows],
        teacher=[row.teacher for row in rows],
        transition=transition,
        skipped=skipped,
        references=[row.reference for row in rows],
        without=[row.without for row in rows],
        longest=longest,
    )


def longest_of(rows: Sequence[Row]) -> Longest:
    """The lengths of the longest among at least one row."""
    return Longest(
        max(len(row.student) for row in rows),
        max(len(row.teacher) for row in rows),
        max(len(row.without.weights) for row in rows),
    )


class _View(NamedTuple):
    """What a config says of prompts, read once: its keys are slow to read for every row."""

    student: Role
    teacher: Role  # without what comes while it trains
    request: str | None  # of the teacher, where it is not the task's
    prompts: Mapping[str, Any]
    task: str
    learns_references: bool
    guided_by_criteria: bool


def _view_of(config: ConfigDict) -> _View:
    student, teacher = roles(config)
    prompts = prompts_of(config)
    request = prompts["reason"]["request"] if config.teacher.reason_tokens else None
    learns_references = config.sampling.source == "reference"
    guided = configs.guided_by_criteria(config)
    return _View(student, _known_before(teacher), request, prompts, config.task, learns_references, guided)


class _Texts(NamedTuple):
    """What `Row` holds, as text."""

    student: str
    teacher: str
    reference: str
    without: list[str]


def _texts_of(example: Example, tokenizer: Any, view: _View) -> _Texts:
    return _Texts(
        contexts.role_text(tokenizer, example, view.student, view.prompts, view.task),
        contexts.role_text(tokenizer, example, view.teacher, view.prompts, view.task, request=view.request),
        _reference_text(example, view),
        _texts_without(tokenizer, example, view),
    )


def encode_rows(examples: Sequence[Example], tokenizer: Any, config: ConfigDict) -> list[Row]:
    """Every example as a `Row`, fitting or not, by one call of the tokenizer.

    Raises:
      UserError: an example lacks a field.
    """
    view = _view_of(config)
    texts = [_texts_of(example, tokenizer, view) for example in examples]
    distinct = list(dict.fromkeys(x for t in texts for x in (t.student, t.teacher, t.reference, *t.without)))
    tokens = dict(zip(distinct, contexts.encode_texts(tokenizer, distinct), strict=True))
    end = [tokenizer.eos_token_id] if view.learns_references else []
    return [
        Row(
            example,
            tokens[text.student],
            tokens[text.teacher],
            np.asarray([*tokens[text.reference], *end], np.int32),
            Without([tokens[x] for x in text.without], _criteria_weights(example, len(text.without))),
        )
        for example, text in zip(examples, texts, strict=True)
    ]


def row_fits(row: Row, config: ConfigDict) -> bool:
    """Whether all of a row is within the limits.

    Raises:
      UserError: it is not, and `data.too_long` is "fail".
    """
    return (
        fits(row.example, row.student, config, role="student")
        and fits(row.example, row.teacher, config, role="teacher")
        and reference_fits(row.example, row.reference, config)
    )


class Limits(NamedTuple):
    """The most tokens of each; None where there is no limit."""

    student: int | None
    teacher: int | None
    reference: int | None


def may_exceed(examples: Sequence[Example], limits: Limits, tokenizer: Any, config: ConfigDict) -> list[int]:
    """The indexes of examples whose prompts or references can have more tokens than the limits.

    Of all others it is certain that they have not, and that costs little: nothing is tokenized.
    """
    view = _view_of(config)

    def can(example: Example) -> bool:
        for role, request, limit in pairs:
            message = contexts.user_message(example, role, view.prompts, view.task, request=request)
            if most_tokens(message) > limit:
                return True
        return limits.reference is not None and most_tokens(_reference_text(example, view)) >= limits.reference

    pairs = [
        (role, request, limit - _most_around(tokenizer, role))
        for role, request, limit in ((view.student, None, limits.student), (view.teacher, view.request, limits.teacher))
        if limit is not None
    ]
    return [i for i, example in enumerate(examples) if can(example)]


def most_tokens(text: str) -> int:
    """How many tokens a text has at most, whatever the tokenizer.

    A token is at least a byte of UTF-8. What is not ASCII may be normalised first, which makes it three times as long at most
    (Unicode's NFC), and there are tokenizers that put something before a text.
    """
    if text.isascii():
        return len(text) + 1
    return 3 * len(text.encode()) - 2 * sum(map(str.isascii, text)) + 1


def _most_around(tokenizer: Any, role: Role) -> float:
    """How many tokens the chat template puts around a message at most."""
    probe = f"x{string.printable}é漢x"
    around = contexts.chat_text(tokenizer, [{"role": "user", "content": probe}], thinking=role.thinking).split(probe)
    # A template that changes messages, or repeats them, says nothing of how long they get: every row has to be looked at.
    return math.inf if len(around) != 2 else most_tokens("".join(around))


def transition_of(example: Example, tokenizer: Any, config: ConfigDict) -> np.ndarray:
    """What follows the analysis of a teacher that reasons first, [U] int32, the same for all examples; else empty."""
    if not config.teacher.reason_tokens:
        return np.zeros((0,), np.int32)
    role = _known_before(roles(config)[1])
    return contexts.encode_reason_first(tokenizer, example, role, prompts_of(config), config.task)[1]


def _known_before(role: Role) -> Role:
    """The role without what comes while it trains."""
    fields = tuple(name for name in role.fields if name not in contexts.ATTEMPT_FIELDS)
    return dataclasses.replace(role, fields=fields)


def teacher_prompt(tokenizer: Any, example: Example, config: ConfigDict) -> np.ndarray:
    """What the teacher sees of an example that has all of its fields, also those of attempts; [Q] int32."""
    return contexts.encode_role(tokenizer, example, roles(config)[1], prompts_of(config), config.task)


def _texts_without(tokenizer: Any, example: Example, view: _View) -> list[str]:
    """The teacher's prompts without each criterion. Of a rubric of one criterion there are none: nothing is pushed along."""
    if not view.guided_by_criteria or example.rubric is None or len(example.rubric.criteria) < 2:
        return []
    shown = [dataclasses.replace(example, rubric=rubric) for rubric in variants.leave_one_out(example.rubric)]
    return [contexts.role_text(tokenizer, one, view.teacher, view.prompts, view.task) for one in shown]


def _criteria_weights(example: Example, count: int) -> np.ndarray:
    """[count] float32: how the criteria weigh, 1 on average."""
    if not count:
        return np.zeros(0, np.float32)
    weights = np.abs([criterion.weight for criterion in rubric_of(example).criteria]).astype(np.float32)
    return weights / weights.mean()


def _reference_text(example: Example, view: _View) -> str:
    """The completion that the data holds, without its end; empty where a role writes completions."""
    if not view.learns_references:
        return ""
    if view.task == "write_rubric":
        return to_json(rubric_of(example), style=view.prompts["rubric_style"])
    return example.reference or ""


def reference_fits(example: Example, tokens: np.ndarray, config: ConfigDict) -> bool:
    """Whether a completion from the data is within `sampling.max_new_tokens`; it is never cut.

    Raises:
      UserError: it is not, and `data.too_long` is "fail".
    """
    limit = config.sampling.max_new_tokens
    return _within(limit, "sampling.max_new_tokens", "reference", "the reference", example, tokens, config)


def evaluation_questions(
    config: ConfigDict, tokenizer: Any, *, say: Say = warnings.warn
) -> dict[str, dict[str, Questions]]:
    """Role of `eval.roles` -> split -> its questions, of every row that will be graded; empty where nothing is.

    Splits are those of `eval.path` or `eval.splits`, graded by `eval.grader`, and the benchmarks, of which the teacher, who has
    nothing to see there, is not asked.

    Args:
      config: of the run.
      tokenizer: of the model.
      say: is told of columns that look like a field and are not read, and of questions that are too long.

    Raises:
      UserError: unreadable data, or a row that lacks what a role must see or the grader needs.
    """
    student, teacher = roles(config)
    splits = (config.eval.splits.to_dict() or {"eval": config.eval.path}) if config.eval.grader else {}
    found: dict[str, dict[str, Questions]] = {}
    benchmarks = {name: _benchmark(name, path, config) for name, path in configs.benchmarks_of(config).items()}
    read: dict[tuple[str, tuple[str, ...]], list[Example]] = {}  # base and trained model see the same
    for name in config.eval.roles:
        role = teacher if name == "teacher" else student
        asked: dict[str, Questions] = {}
        for split, path in splits.items():
            needs = GRADERS[config.eval.grader].needs
            require = (*role.fields, *needs)
            try:
                if (path, require) not in read:
                    read[path, require] = read_examples(config, path, require=require, count=config.eval.count, say=say)
            except UserError as error:
                if name != "teacher" or error.field not in role.fields or error.field in needs:
                    raise
                raise error.with_remedy("or leave 'teacher' out of eval.roles") from error
            asked[split] = _questions(
                split, read[path, require], config.eval.grader, tokenizer, role, name, config, say
            )
        for split, examples in benchmarks.items() if name != "teacher" else ():
            asked[split] = _questions(split, examples, BENCHMARKS[split].grader, tokenizer, role, name, config, say)
        if asked:
            found[name] = asked
    return found


def _benchmark(name: str, path: str, config: ConfigDict) -> list[Example]:
    benchmark = BENCHMARKS[name]
    place = path or benchmark.path
    quietly: Say = lambda line: None  # which columns a benchmark reads was decided when it was added
    examples = _read(config, place, require=benchmark.requires(), fields=benchmark.fields, say=quietly)
    examples = examples[: config.eval.count]
    return benchmark_questions(benchmark, examples, seed=config.seed)


def _questions(
    split: str,
    examples: Sequence[Example],
    grader: str,
    tokenizer: Any,
    role: Role,
    name: str,
    config: ConfigDict,
    say: Say,
) -> Questions:
    examples = examples[: config.eval.count]
    reasons = name == "teacher" and config.teacher.reason_tokens > 0
    texts = prompts_of(config)
    request = texts["reason"]["request"] if reasons else None

    def encode_all(mine: Sequence[Example]) -> list[np.ndarray]:
        shown = [contexts.role_text(tokenizer, e, role, texts, config.task, request=request) for e in mine]
        return contexts.encode_texts(tokenizer, shown)

    prompts = multihost.shared_list(encode_all, examples)
    kept = [(e, p) for e, p in zip(examples, prompts, strict=True) if fits(e, p, config, role=name)]
    if not kept:
        raise nothing_fits(len(examples), config)
    if len(kept) < len(examples):
        left, who = len(examples) - len(kept), "teacher" if name == "teacher" else "student"
        say(f"{split}: {left} of {len(examples)} questions are too long for the {who}, and not asked")
    transition = transition_of(examples[0], tokenizer, config) if reasons else np.zeros((0,), np.int32)
    return Questions([e for e, _ in kept], [p for _, p in kept], transition, grader)


def nothing_fits(count: int, config: ConfigDict) -> UserError:
    """The error of data of which every row is too long."""
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
