"""The embedded world: problems of quantitative science with programs as graders, and a small base model that read them."""

from rcsd_jax.world.examples import (
    QUESTION_TOKENS,
    RUBRIC_TOKENS,
    SOLUTION_TOKENS,
    TEACHER_TOKENS,
    SolutionGrade,
    base_directory,
    examples,
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
    "generic_rubric",
    "grade_rubric",
    "grade_solution",
]
