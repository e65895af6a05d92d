"""The embedded world: quantitative problems, programs that grade answers, and a small base model."""

from rcsd_jax.world import registered  # noqa: F401  # its source, generic rubric and graders
from rcsd_jax.world.examples import (
    QUESTION_TOKENS,
    RUBRIC_TOKENS,
    SOLUTION_TOKENS,
    TEACHER_TOKENS,
    SolutionGrade,
    base_directory,
    examples,
    failed_criteria,
    generic_rubric,
    grade_rubric,
    grade_solution,
)
from rcsd_jax.world.prompts import PROMPTS

__all__ = [
    "PROMPTS",
    "QUESTION_TOKENS",
    "RUBRIC_TOKENS",
    "SOLUTION_TOKENS",
    "TEACHER_TOKENS",
    "SolutionGrade",
    "base_directory",
    "examples",
    "failed_criteria",
    "generic_rubric",
    "grade_rubric",
    "grade_solution",
]
