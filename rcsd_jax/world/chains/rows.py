"""Chains as examples: questions with references and rubrics, and the grader of what a model answers."""

from __future__ import annotations

import random

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.data.sources import Reading
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import Rubric, to_json
from rcsd_jax.rubrics.scoring import score, unmet
from rcsd_jax.world.chains import criteria, reading
from rcsd_jax.world.chains.documents import FLAWED, write_reference
from rcsd_jax.world.chains.problems import generate, question
from rcsd_jax.world.examples import rubric_from_strings
from rcsd_jax.world.prompts import PROMPTS

THOROUGH, UNASKED = KINDS = ("thorough", "unasked")
"""Kinds of rows: with references that show checks and repairs, and with rubrics that ask for no checks."""

SOLUTION_TOKENS = 192
"""Enough for 16 steps of which 8 are checked, which take 181 with the end."""
QUESTION_TOKENS, TEACHER_TOKENS = 64, 320
"""Enough for the longest prompts: only the question, and the question with a thorough reference and a rubric."""


def examples(split: str, count: int, seed: int = 0, flawed: float = FLAWED, *, kind: str = "") -> list[Example]:
    """The first `count` examples of a split, no question twice.

    Args:
      split: of `problems.SPLITS`.
      count: how many.
      seed: another seed draws other questions of the same split.
      flawed: share of references with a wrong step and the right final answer.
      kind: one of `KINDS`. Without one, references are short, and rubrics ask for checks of hard steps.

    Raises:
      ValueError: an unknown split.
    """
    found: dict[str, Example] = {}
    index = 0
    while len(found) < count:
        problem = generate(split, seed, index)
        rng = random.Random(f"chains reference:{split}:{seed}:{index}")
        one = Example(
            id=f"{split}-{seed}-{index}",
            question=question(problem),
            reference=write_reference(problem, rng, flawed=flawed, thorough=kind == THOROUGH),
            rubric=rubric_from_strings(criteria.true_rubric(problem, checks=kind != UNASKED)),
            answer=str(problem.result),
            origin=f"chains:{split}:{index}",
            extra={"steps": len(problem.steps), "problem": problem},
        )
        found.setdefault(one.question, one)
        index += 1
    return list(found.values())


def read(place: str, how: Reading) -> list[Example]:
    """The first `how.count` examples of a split; of "SPLIT:KIND" those of a kind of `KINDS`.

    Raises:
      UserError: an unknown split or kind of rows.
    """
    split, colon, kind = place.partition(":")
    if colon and kind not in KINDS:
        remedy = "name a split of the chains, or " + " or ".join(f"SPLIT:{kind}" for kind in KINDS)
        raise UserError("no such rows", field="data.path", value=place, remedy=remedy)
    flawed = {} if how.flawed is None else {"flawed": how.flawed}
    try:
        return examples(split, how.count, seed=how.seed, kind=kind, **flawed)
    except ValueError as error:
        raise UserError(str(error), field="data.path", value=place, remedy="name a split of the chains") from error


def generic_rubric() -> Rubric:
    """A rubric that fits any chain, in the words of chains."""
    return rubric_from_strings(criteria.GENERIC)


def grade(example: Example, text: str) -> dict[str, float]:
    """By programs: is the answer right, is it right without reason, is every step there and right, is there a box; and the rubric's score."""
    problem = example.extra["problem"]
    return {
        "accuracy": float(reading.correct(problem, text)),
        "rubric_score": score(rubric_of(example), criteria_met(example, text)),
        "sound": float(reading.sound(problem, text)),
        "unfounded": float(reading.unfounded(problem, text)),
        "parsed": float(reading.answer(text) is not None),
    }


def criteria_met(example: Example, text: str) -> list[bool]:
    """For each criterion of the row's rubric, the true one or a part of it, whether the text meets it."""
    of_true = criteria.met(example.extra["problem"], text)
    return [of_true[criterion.description] for criterion in rubric_of(example).criteria]


def feedback(example: Example, text: str) -> str | None:
    """The criteria that the text fails, as a rubric; None if it fails none."""
    failed = unmet(rubric_of(example), criteria_met(example, text))
    return None if failed is None else to_json(failed, style=PROMPTS["rubric_style"])


def stated_answer(text: str) -> str | None:
    """What the last box holds; None if it holds no number."""
    found = reading.answer(text)
    return None if found is None else str(found)
