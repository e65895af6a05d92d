"""The world's interface to the rest of the package: examples, graders, and the folder of the base model."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
import random

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.rubrics.schema import Rubric, from_records
from rcsd_jax.rubrics.scoring import f1, score, unmet
from rcsd_jax.world import criteria
from rcsd_jax.world.documents import FLAWED, write_reference
from rcsd_jax.world.problems import SPLITS, Problem, answer, generate, question

SOLUTION_TOKENS, RUBRIC_TOKENS = 72, 80
"""Enough for the longest completions: a careful solution takes at most 64, a true rubric 58, including the end."""
QUESTION_TOKENS, TEACHER_TOKENS = 36, 160
"""Enough for the longest prompts: only the question, and the question with reference and rubric."""


@dataclasses.dataclass(frozen=True)
class SolutionGrade:
    """`criteria_met` follows the order of the example's rubric; a Pitfall is met when the fault is present.

    `rubric_score` is `rubrics.scoring.score` of that rubric: 1 for a careful solution.
    """

    correct: bool
    criteria_met: tuple[bool, ...]
    rubric_score: float


def rubric_from_strings(texts: tuple[str, ...]) -> Rubric:
    """A rubric from criteria with their class prefix."""
    return from_records(list(texts), min_criteria=1)


def example(
    problem: Problem, *, id: str, origin: str, rng: random.Random, flawed: float = FLAWED, derived: bool = False
) -> Example:
    """One problem as an example; its reference is flawed with the chance given. Its rubric is the true one, or derived from that."""
    reference = write_reference(problem, rng, flawed=flawed)
    texts = criteria.derived_rubric(problem, reference) if derived else criteria.true_rubric(problem)
    return Example(
        id=id,
        question=question(problem),
        reference=reference,
        rubric=rubric_from_strings(texts),
        answer=answer(problem),
        origin=origin,
        extra={"kind": problem.kind, "complications": problem.complications, "problem": problem},
    )


def examples(split: str, count: int, seed: int = 0, flawed: float = FLAWED, *, derived: bool = False) -> list[Example]:
    """The first `count` examples of a split, no question twice.

    Args:
      split: "stage1", "stage2" (training pools), "eval" (numbers that their kind never showed in training) or "ood"
        (new templates, or three and four complications).
      count: how many.
      seed: another seed draws other questions of the same split.
      flawed: share of references with a wrong step and the right final answer.
      derived: whether rubrics are drawn from the references and inherit their flaws: `criteria.derived_rubric`.

    Raises:
      ValueError: an unknown split.

    Examples:
      >>> first, second = examples("stage2", 2, seed=0)
      >>> first.id, first.origin, len(first.rubric) >= 3, first == examples("stage2", 1, seed=0)[0]
      ('stage2-0-0', 'world:stage2:0', True, True)
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {SPLITS}")
    found: dict[str, Example] = {}
    index = 0
    while len(found) < count:
        problem = generate(split, seed, index)
        if question(problem) not in found:
            origin = f"world:{split}:{index}"
            rng = random.Random(f"reference:{split}:{seed}:{index}")
            id = f"{split}-{seed}-{index}"
            one = example(problem, id=id, origin=origin, rng=rng, flawed=flawed, derived=derived)
            found[one.question] = one
        index += 1
    return list(found.values())


def grade_solution(example: Example, text: str) -> SolutionGrade:
    """Grades a solution by programs: the final answer, and every criterion of the example's rubric, which is the true one or a part."""
    problem = example.extra["problem"]
    of_true = criteria.grade(problem, text)
    met = tuple(of_true[criterion.description] for criterion in rubric_of(example).criteria)
    return SolutionGrade(criteria.answer_correct(problem, text), met, score(rubric_of(example), met))


def failed_criteria(example: Example, text: str) -> Rubric | None:
    """The criteria of the example's rubric that a solution fails (for a Pitfall: commits), or None."""
    return unmet(rubric_of(example), grade_solution(example, text).criteria_met)


def grade_rubric(example: Example, rubric: Rubric | None) -> float:
    """F1 of a written rubric's criteria against the true ones; 0 for a rubric that could not be parsed."""
    return f1(rubric, rubric_of(example))


def generic_rubric() -> Rubric:
    """A rubric that fits any of the problems, in the world's vocabulary."""
    return rubric_from_strings(criteria.GENERIC)


def base_directory() -> pathlib.Path:
    """The base model's Hugging Face directory inside the package."""
    return pathlib.Path(str(importlib.resources.files("rcsd_jax.world"))) / "base"
