"""Rows for training and evaluation, as they stand in the JSONL files of `python -m rcsd_jax.world`, and their grader."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import from_records, to_json
from rcsd_jax.rubrics.scoring import score, unmet
from rcsd_jax.world.english import criteria, problems, references
from rcsd_jax.world.english.problems import Problem
from rcsd_jax.world.english.prompts import PROMPTS

GIVING = 0.5
"""The share of rubrics that give the answer away."""

REMEDY = "grade rows that python -m rcsd_jax.world wrote, or use 'boxed'"
"""What to do with a row that `grade` cannot read."""

SYSTEM = "Answer in one line that ends in a box."
PLAIN_EXAMPLE = (
    "A pump has a flow of 3 L/s and a time of 2 min. Find the volume.",
    r"2 min = 120 s. volume = flow × time = 3 L/s × 120 s = 360 L. \boxed{360 L}",
)
GUIDED_EXAMPLE = (
    "A box has a weight of 30 N, a height of 40 cm and an area of 5 m2. Find the pressure.",
    (
        "Essential Criteria: States pressure = weight / area.",
        "Essential Criteria: Shows 30 N / 5 m2.",
        "Important Criteria: Gives the unit Pa.",
        "Pitfall Criteria: Uses the height of 40 cm.",
        "Important Criteria: Ends in a box.",
    ),
    r"pressure = weight / area = 30 N / 5 m2 = 6 Pa. \boxed{6 Pa}",
)
"""The worked examples before every question, of which the second has a rubric. Their laws are those of no question."""


def turns(problem: Problem) -> list[dict[str, str]]:
    """The conversation up to the question: a system turn, the worked examples, and the question."""
    question, listed, answered = GUIDED_EXAMPLE
    shown = to_json(from_records(list(listed)), style=PROMPTS["rubric_style"])
    asked = [PLAIN_EXAMPLE, ("\n".join([question, PROMPTS["headings"]["rubric"], shown]), answered)]
    found = [{"role": "system", "content": SYSTEM}]
    for user, assistant in asked:
        found += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*found, {"role": "user", "content": problems.question(problem)}]


def records(
    split: str, count: int, *, seed: int = 0, flawed: float = references.FLAWED, giving: float = GIVING
) -> Iterator[dict[str, Any]]:
    """The first `count` rows of a split, no question twice: conversation, reference, answer, rubric, and what the grader reads.

    Args:
      split: of `problems.SPLITS`.
      count: how many.
      seed: another seed draws other questions of the same split.
      flawed: the share of references with a wrong step.
      giving: the share of rubrics that give the answer away.
    """
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        problem = problems.generate(split, seed, index)
        question = problems.question(problem)
        if question not in seen:
            seen.add(question)
            rng = random.Random(f"english row:{split}:{seed}:{index}")
            reference = references.reference(problem, rng, flawed=flawed)
            gives = rng.random() < giving
            yield {
                "id": f"{split}-{seed}-{index}",
                "prompt": turns(problem),
                "reference": reference,
                "answer": problems.answer(problem),
                "rubric": list(criteria.rubric(problem, gives=gives)),
                "gives": gives,
                "facts": dataclasses.asdict(problem),
            }
        index += 1


def grade(example: Example, text: str) -> dict[str, float]:
    """By programs: is the final answer right, with its unit? The score under the row's rubric, whether there is a box, and leaks.

    Raises:
      UserError: the row is not one that `records` writes.
    """
    problem, _ = _facts(example)
    return {
        "accuracy": float(criteria.answer_correct(problem, text)),
        "rubric_score": score(rubric_of(example), criteria_met(example, text)),
        "parsed": float(criteria.last_box(criteria.plain(text)) is not None),
        "leak": float(criteria.leaks(problem, text)),
    }


def criteria_met(example: Example, text: str) -> list[bool]:
    """For each criterion of the row's rubric whether the text meets it, of a Pitfall whether the fault is there."""
    problem, gives = _facts(example)
    met = list(criteria.met(problem, text, gives=gives).values())
    if len(met) != (count := len(rubric_of(example).criteria)):
        raise UserError(
            f"has {count} criteria, the one of its facts has {len(met)}",
            file=example.origin,
            field="rubric",
            remedy=REMEDY,
        )
    return met


def check(example: Example) -> None:
    """Refuses a row that `grade` cannot read.

    Raises:
      UserError: the row is not one that `records` writes.
    """
    criteria_met(example, "")


def feedback(example: Example, text: str) -> str | None:
    """The criteria that the text fails, as a rubric; None if it fails none."""
    failed = unmet(rubric_of(example), criteria_met(example, text))
    return None if failed is None else to_json(failed, style=PROMPTS["rubric_style"])


def _facts(example: Example) -> tuple[Problem, bool]:
    """The row's problem, and whether its rubric gives the answer away."""
    for field in ("facts", "gives"):
        if example.extra.get(field) is None:
            raise UserError("is missing, which the grader reads", file=example.origin, field=field, remedy=REMEDY)
    facts = example.extra["facts"]
    try:
        return problems.from_facts(facts), bool(example.extra["gives"])
    except ValueError as error:
        raise UserError(str(error), file=example.origin, field="facts", value=facts, remedy=REMEDY) from error
