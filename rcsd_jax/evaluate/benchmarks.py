"""Benchmarks: the place, the columns and the grader of each. A new one is an entry in `BENCHMARKS`."""

from __future__ import annotations

import dataclasses
import string
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.data.texts import check_encodes
from rcsd_jax.host.errors import UserError


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
      path: where it is published, as `data.sources.read` takes it.
      grader: of `evaluate.graders.GRADERS`.
      fields: columns by Example field, in addition to the usual aliases.
      options: the columns of a question's options; they are shuffled by seed and asked for by letter.
      choices: instead of columns, the words that every question offers, in order.
      correct: the column that names the right option, by index from 0 or by its text; empty: the first option is right.
      context: the column of a text to read before the question.
      unit: the column of the answer's unit.
      aggregations: of a judged benchmark, rules of `rubrics.aggregation` that make scores of verdicts; the first is its own.
    """

    path: str
    grader: str
    fields: Mapping[str, str] = {}
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: str = ""
    context: str = ""
    unit: str = ""
    aggregations: tuple[str, ...] = ()

    def requires(self) -> tuple[str, ...]:
        """Fields that every row must have."""
        return {"judge": ("question", "rubric"), "number": ("question", "answer")}.get(self.grader, ("question",))


BENCHMARKS: dict[str, Benchmark] = {
    "gpqa_diamond": Benchmark(
        path="hub:Idavidrein/gpqa:gpqa_diamond#train",
        grader="option",
        fields={"id": "Record ID", "question": "Question"},
        options=("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    ),
    "scibench": Benchmark(
        path="hub:xw27/scibench#train",
        grader="number",
        fields={"question": "problem_text", "answer": "answer_number"},
        unit="unit",
    ),
    "piqa": Benchmark(
        path="tfds:piqa#validation",
        grader="option",
        fields={"question": "goal"},
        options=("sol1", "sol2"),
        correct="label",
    ),
    "medmcqa": Benchmark(
        path="hub:openlifescienceai/medmcqa#validation",
        grader="option",
        options=("opa", "opb", "opc", "opd"),
        correct="cop",
    ),
    "pubmedqa": Benchmark(
        path="hub:qiaojin/PubMedQA:pqa_labeled#train",
        grader="option",
        fields={"id": "pubid", "reference": "long_answer"},
        choices=("yes", "no", "maybe"),
        correct="final_decision",
        context="context.contexts",
    ),
    "rar": Benchmark(
        path="hub:anisha2102/RaR-Science#test", grader="judge", aggregations=("clipped_points", "explicit")
    ),
    "researchqa": Benchmark(path="hub:realliyifei/ResearchQA#test", grader="judge", aggregations=("coverage",)),
    "rubrichub": Benchmark(
        path="hub:sojuL/RubricHub_v1:RuRL/rurbichub_v1_Science.parquet#train",
        grader="judge",
        fields={"question": "prompt.0.content", "rubric": "reward_model.rubrics"},
        aggregations=("clipped_points",),
    ),
    "healthbench": Benchmark(
        path="hub:openai/healthbench:2025-05-07-06-14-12_oss_eval.jsonl#train",
        grader="judge",
        fields={"id": "prompt_id"},
        aggregations=("mean_clipped_points",),
    ),
}


def questions(benchmark: Benchmark, examples: Sequence[Example], *, seed: int) -> list[Example]:
    """The examples as the model sees them: context, options and unit are in the question, the data for grading in `extra`.

    `extra` then holds "options" (as shown) and "correct" (an index into them), or "unit". The order of a question's options
    depends only on the seed and its id.

    Raises:
      UserError: a row lacks a column, or names no option as the right one.
    """
    return [_asked(benchmark, example, seed) for example in examples]


def _asked(benchmark: Benchmark, example: Example, seed: int) -> Example:
    parts, extra = [example.question], dict(example.extra)
    if benchmark.context:
        context = _column(example, benchmark.context)
        texts = context if isinstance(context, (list, tuple)) else [context]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                "neither text nor a list of texts",
                file=example.origin,
                field=benchmark.context,
                value=context,
                remedy="correct it or remove the row",
            )
        parts.insert(0, "\n".join(texts))
    if benchmark.options:
        options = [str(_column(example, name)).strip() for name in benchmark.options]
        right = _right(benchmark, example, options)
        order = np.random.default_rng([seed, zlib.crc32(example.id.encode())]).permutation(len(options))
        extra |= {"options": [options[i] for i in order], "correct": int(np.argmax(order == right))}
        letters = zip(string.ascii_uppercase, extra["options"], strict=False)
        parts += [*(f"{letter}. {option}" for letter, option in letters), "Answer with the letter of the right option."]
    elif benchmark.choices:
        extra |= {"options": list(benchmark.choices), "correct": _right(benchmark, example, benchmark.choices)}
        parts.append(f"Answer with one of: {', '.join(benchmark.choices)}.")
    if benchmark.unit:
        unit = _column(example, benchmark.unit)
        extra["unit"] = "" if unit is None else str(unit).strip()
        if extra["unit"]:
            parts.append(f"Give the answer in units of {extra['unit']}.")
    question = "\n".join(parts)
    check_encodes(question, {"file": example.origin, "field": "question"})
    return dataclasses.replace(example, question=question, extra=extra)


def _right(benchmark: Benchmark, example: Example, options: Sequence[str]) -> int:
    value: Any = _column(example, benchmark.correct) if benchmark.correct else 0
    if isinstance(value, str) and value.strip() in options:
        return options.index(value.strip())
    if isinstance(value, (str, int)) and str(value) in map(str, range(len(options))):
        return int(value)
    raise UserError(
        "says of no option that it is the right one",
        file=example.origin,
        field=benchmark.correct,
        value=value,
        remedy=f"give an index from 0 to {len(options) - 1}, or the option's text",
    )


def _column(example: Example, path: str) -> Any:
    value: Any = example.extra
    for step in path.split("."):
        if not isinstance(value, Mapping) or step not in value:
            remedy = f"take a file that has it; there are {', '.join(map(str, example.extra))}"
            raise UserError("no such column", file=example.origin, field=path, remedy=remedy)
        value = value[step]
    return value
