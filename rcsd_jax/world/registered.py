"""The worlds' places in the tables of other rooms: sources of rows, their generic rubrics, and graders."""

from __future__ import annotations

from rcsd_jax.data.examples import Example
from rcsd_jax.data.sources import SOURCES, Reading, Source
from rcsd_jax.evaluate.graders import GRADERS, Grader
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.schema import to_json
from rcsd_jax.rubrics.sources import GENERIC
from rcsd_jax.world.chains import rows as chains
from rcsd_jax.world.criteria import boxed
from rcsd_jax.world.english import rows as english
from rcsd_jax.world.examples import examples, failed_criteria, generic_rubric, grade_solution

NAME = "world"
CHAINS = "chains"


DERIVED = "derived"


def read_world(place: str, how: Reading) -> list[Example]:
    """The first `how.count` examples of a split; of "SPLIT:derived" with rubrics that are drawn from the references.

    Raises:
      UserError: an unknown split.
    """
    split, colon, rubrics = place.partition(":")
    flawed = {} if how.flawed is None else {"flawed": how.flawed}
    if colon and rubrics != DERIVED:
        remedy = f"name a split of the world, or SPLIT:{DERIVED}"
        raise UserError("no such rubrics", field="data.path", value=place, remedy=remedy)
    try:
        return examples(split, how.count, seed=how.seed, derived=bool(rubrics), **flawed)
    except ValueError as error:
        raise UserError(str(error), field="data.path", value=place, remedy="name a split of the world") from error


def grade_world(example: Example, text: str) -> dict[str, float]:
    """By programs: is the final answer right, and what is the rubric score?"""
    grade = grade_solution(example, text)
    return {"accuracy": float(grade.correct), "rubric_score": grade.rubric_score}


def world_answer(text: str) -> str | None:
    """What the last box holds, number and unit; None if there is no box, or no number in it."""
    found = boxed(text)
    return None if found is None or found.value is None else f"{found.value} {found.unit}"


def world_criteria(example: Example, text: str) -> tuple[float, ...]:
    """By programs: which criteria of the example's rubric the text meets."""
    return tuple(map(float, grade_solution(example, text).criteria_met))


def world_feedback(example: Example, text: str) -> str | None:
    """The criteria of the true rubric that the text fails, as a rubric."""
    failed = failed_criteria(example, text)
    return None if failed is None else to_json(failed, style="strings")


SOURCES[NAME] = Source(read_world, makes_rows=True)
GENERIC[NAME] = generic_rubric
GRADERS[f"{NAME}_majority"] = Grader(None, (), source=NAME, answer=world_answer)
GRADERS[NAME] = Grader(grade_world, ("rubric",), world_feedback, source=NAME, criteria=world_criteria)
GRADERS["english"] = Grader(
    english.grade, ("rubric",), english.feedback, criteria=english.criteria_met, check=english.check
)

SOURCES[CHAINS] = Source(chains.read, makes_rows=True)
GENERIC[CHAINS] = chains.generic_rubric
GRADERS[f"{CHAINS}_majority"] = Grader(None, (), source=CHAINS, answer=chains.stated_answer)
GRADERS[CHAINS] = Grader(chains.grade, ("rubric",), chains.feedback, source=CHAINS, criteria=chains.criteria_met)
