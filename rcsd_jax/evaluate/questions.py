"""The questions of an evaluation: read, encoded for the role that is asked, and left out where they are too long."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.data import sources
from rcsd_jax.data.account import ignored
from rcsd_jax.data.examples import Example
from rcsd_jax.data.sources import Reading
from rcsd_jax.evaluate import benchmarks
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.evaluate.graders import GRADERS, check_rows
from rcsd_jax.evaluate.judged_sets import OWN_ROWS
from rcsd_jax.evaluate.settings import EvaluationSettings
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import contexts
from rcsd_jax.roles.encode import Encoding, say_where_system_turns_go, transition_of
from rcsd_jax.roles.limits import Limits

_ANY_NUMBER = 10**6


class Questions(NamedTuple):
    """Questions to be answered in one role, and the prompts that the role sees, as token ids."""

    examples: list[Example]
    prompts: list[np.ndarray]  # [P] int32 each
    transition: np.ndarray  # [U] int32, what follows the analysis of a teacher that reasons first; else empty
    grader: str  # of `GRADERS`
    thinking: bool = False  # the thinking switch with which the answers are asked for
    aggregations: tuple[str, ...] = ()  # of `rubrics.aggregation`, if a judge grades


def evaluation_questions(
    settings: EvaluationSettings,
    reading: Reading,
    encoding: Encoding,
    limits: Limits,
    tokenizer: Any,
    *,
    say: Callable[[str], Any] = warnings.warn,
) -> dict[str, dict[str, Questions]]:
    """Role of `eval.roles` -> split -> its questions, of every row that will be graded; empty where nothing is.

    Splits are those of `eval.path` or `eval.splits`, graded by `eval.grader`, and the benchmarks, of which the teacher, who has
    nothing to see there, is not asked.

    Args:
      settings: which sets, whom and who grades.
      reading: how rows are read; its seed also orders the options of a benchmark's questions.
      encoding: what both roles see.
      limits: how long their prompts may be.
      tokenizer: of the model.
      say: called with columns that look like a field and are not read, and with questions that are too long.

    Raises:
      UserError: unreadable data, or a row that lacks what a role must see or the grader needs.
    """
    # Scores are of whole sets, so a row that cannot be asked or graded is an error.
    reading = dataclasses.replace(reading, count=settings.count, incomplete="fail", say=say)
    of_benchmarks = {name: _benchmark(name, path, reading) for name, path in settings.asked.items()}
    read: dict[tuple[str, tuple[str, ...]], list[Example]] = {}  # base and trained model see the same
    encode = _Encode(encoding, limits, tokenizer, settings.count, say)
    found: dict[str, dict[str, Questions]] = {}
    for name in settings.roles:
        role = encoding.teacher if name == "teacher" else encoding.student
        asked: dict[str, Questions] = {}
        for split, path in settings.own.items():
            needs = GRADERS[settings.grader].needs
            require = (*role.fields, *needs)
            try:
                if (path, require) not in read:
                    read[path, require] = sources.read_as(path, dataclasses.replace(reading, require=require))
                    check_rows(settings.grader, read[path, require])
            except UserError as error:
                if name != "teacher" or error.field not in role.fields or error.field in needs:
                    raise
                raise error.with_remedy("or leave 'teacher' out of eval.roles") from error
            asked[split] = encode.questions(split, read[path, require], settings.grader, name)._replace(
                aggregations=OWN_ROWS
            )
        for split, examples in of_benchmarks.items() if name != "teacher" else ():
            asked[split] = encode.questions(split, examples, BENCHMARKS[split].grader, name)._replace(
                aggregations=BENCHMARKS[split].aggregations
            )
        if asked:
            found[name] = asked
    return found


def _benchmark(name: str, path: str, reading: Reading) -> list[Example]:
    benchmark = BENCHMARKS[name]
    made = sources.SOURCES[reading.source].makes_rows
    reading = dataclasses.replace(
        reading,
        source="jsonl" if made else reading.source,
        fields=benchmark.fields,
        require=benchmark.requires(),
        min_criteria=1,
        max_criteria=_ANY_NUMBER,  # a judge decides each
        tell=ignored,
        say=lambda line: None,  # which columns a benchmark reads was decided when it was added
    )
    examples = sources.read_as(path or benchmark.path, reading)
    return benchmarks.questions(benchmark, examples[: reading.count], seed=reading.seed)


class _Encode(NamedTuple):
    """What is the same for all sets."""

    encoding: Encoding
    limits: Limits
    tokenizer: Any
    most: int
    say: Callable[[str], Any]

    def questions(self, split: str, examples: Sequence[Example], grader: str, name: str) -> Questions:
        """The first examples as the role `name` is asked, less those that are too long."""
        examples, encoding = examples[: self.most], self.encoding
        is_teacher = name == "teacher"
        role = encoding.teacher_before if is_teacher else encoding.student
        request = encoding.teacher_request if is_teacher else None
        say_where_system_turns_go(examples, self.tokenizer, encoding, self.say)

        def encode_all(mine: Sequence[Example]) -> list[np.ndarray]:
            shown = [
                contexts.role_text(self.tokenizer, e, role, encoding.texts, encoding.task, request=request)
                for e in mine
            ]
            return contexts.encode_texts(self.tokenizer, shown)

        prompts = multihost.shared_list(encode_all, examples)
        kept = [(e, p) for e, p in zip(examples, prompts, strict=True) if self.limits.prompt_fits(e, p, role=name)]
        if not kept:
            raise self.limits.nothing_fits(len(examples))
        if len(kept) < len(examples):
            left, who = len(examples) - len(kept), "teacher" if is_teacher else "student"
            self.say(f"{split}: {left} of {len(examples)} questions are too long for the {who}, and not asked")
        nothing = np.zeros((0,), np.int32)
        transition = transition_of(examples[0], self.tokenizer, encoding) if is_teacher else nothing
        thinking = encoding.teacher.thinking if is_teacher else encoding.student.thinking
        return Questions([e for e, _ in kept], [p for _, p in kept], transition, grader, thinking)
