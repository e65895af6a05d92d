"""The documents that the base model read: solutions and rubrics of mixed quality, drawn with the probabilities below.

The statistics are the world's dials. A document imitates an author with habits: for every kind and step there is a
chance that the author does the step unasked (HABITS). It is low for some and high for others, so a model that imitates
the documents is careless in different places, sampled and greedy. A rubric in the prompt changes the author's work: listed
criteria are followed, and unlisted ones are met less often than by habit, because the author trusts the list.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping

from rcsd_jax.world.criteria import GENERIC, STEPS, criterion, law, steps, true_rubric
from rcsd_jax.world.problems import (
    DISTRACTORS,
    KINDS,
    Problem,
    factor_zeros,
    generate,
    number,
    question,
)
from rcsd_jax.world.prompts import PROMPTS

FOLLOW = 0.975  # a listed criterion is followed
UNLISTED = 1.5  # exponent of a habit if a rubric is shown that lacks the step
GENERIC_LIFT = 0.35  # share of lapses that a generic rubric prevents
WRONG_LAW = 0.4  # without stating the law: the wrong operation
COPY = 0.97  # a shown reference is copied
FLAWED = 0.35  # references with a wrong step and the right final answer
MENTION, MENTION_WITH_REFERENCE = 0.36, 0.94  # a true criterion enters a written rubric
NOISE, NOISE_WITH_REFERENCE = (0.25, 0.35, 0.4), (0.9, 0.1)  # chances of 0, 1, 2 criteria from other problems


def _habits() -> dict[tuple[str, str], float]:
    """The chance that a step of a kind is done unasked; fixed, like an author's schooling."""
    rng = random.Random("habits")
    table: dict[tuple[str, str], float] = {}
    weak_share = {"law": 0.3, "convert_a": 0.6, "convert_b": 0.6, "distractor": 0.4, "twice": 0.4}
    weak_share |= {"check": 0.6, "unit": 0.12, "box": 0.0}
    for step in STEPS:
        names = list(KINDS)
        rng.shuffle(names)
        count = round(weak_share[step] * len(names))
        for rank, name in enumerate(names):
            table[name, step] = rng.uniform(0.15, 0.32) if rank < count else rng.uniform(0.9, 0.97)
    for name in KINDS:
        table[name, "box"] = 0.97
    return table


HABITS: Mapping[tuple[str, str], float] = _habits()


@dataclasses.dataclass(frozen=True)
class Document:
    """A prompt as the user message, and the completion that the author wrote."""

    task: str
    message: str
    completion: str


def write_solution(
    problem: Problem,
    done: Mapping[str, bool],
    *,
    wrong_law: bool = False,
    final: int | None = None,
    stated_operator: str = "*",
) -> str:
    """A solution in which the steps in `done` are done and the others are not.

    Args:
      wrong_law: adds where the law multiplies (only where the law is not stated).
      final: the number in the final answer, if it should differ from the result of the lines before it.
      stated_operator: the operator in the law's line; "+" misstates the law.
    """
    used, zeros, lines = [], 0, []
    if done["law"]:
        lines.append(f"law {law(problem, operator=stated_operator)}")
    for i, step in enumerate(("convert_a", "convert_b")):
        value, groups = problem.values[i], 0
        if done.get(step):
            groups = factor_zeros(problem, i)
            shown = f"{number(problem.values[i])} {problem.shown_unit(i)}"
            value = problem.base_value(i)
            lines.append(f"{problem.quantities[i].name} {shown} = {number(value, groups)} {problem.quantities[i].unit}")
        used.append((value, groups))
        zeros += groups
    if problem.distractor:
        if done["distractor"]:
            lines.append(f"ignore {problem.distractor[0]}")
        else:
            zeros -= used[1][1]
            used[1] = (problem.distractor[1], 0)
    left, right = used
    if wrong_law and not done["law"]:
        operator, product, zeros = "+", left[0] + right[0], 0
    else:
        operator, product = "*", left[0] * right[0]
    lines.append(f"so {number(*left)} {operator} {number(*right)} = {number(product, zeros)}")
    if problem.twice and done["twice"]:
        product *= 2
        lines.append(f"double {number(product, zeros)}")
    if done["check"]:
        lines.append("check units")
    if final is not None:
        product = final
        zeros = sum(factor_zeros(problem, i) for i in range(2))
    stated = f"{number(product, zeros)} {problem.law.unit if done['unit'] else ''}".strip()
    lines.append(f"answer \\boxed{{ {stated} }}" if done["box"] else f"answer {stated}")
    return " ; ".join(lines)


def careful_solution(problem: Problem) -> str:
    """Every step done."""
    return write_solution(problem, dict.fromkeys(steps(problem), True))


def solution_by_chance(problem: Problem, rng: random.Random, chances: Mapping[str, float]) -> str:
    """A solution in which each step is done with its chance."""
    done = {step: rng.random() < chances[step] for step in steps(problem)}
    return write_solution(problem, done, wrong_law=rng.random() < WRONG_LAW)


def habit_chances(problem: Problem) -> dict[str, float]:
    """The chance of each step without a rubric."""
    return {step: HABITS[problem.kind, step] for step in steps(problem)}


def rubric_chances(problem: Problem, rubric: tuple[str, ...]) -> dict[str, float]:
    """The chance of each step when the author sees a rubric; criteria that do not apply to the problem change nothing."""
    if set(rubric) == set(GENERIC):
        return {step: 1 - (1 - habit) * (1 - GENERIC_LIFT) for step, habit in habit_chances(problem).items()}
    return {
        step: FOLLOW if criterion(problem, step) in rubric else habit**UNLISTED
        for step, habit in habit_chances(problem).items()
    }


def write_reference(problem: Problem, rng: random.Random, *, flawed: float = FLAWED) -> str:
    """A reference rationale: its final answer is right, but with chance `flawed` one step before it is wrong."""
    done = dict.fromkeys(steps(problem), True)
    done["check"] = rng.random() < 0.5
    if rng.random() >= flawed:
        return write_solution(problem, done)
    step = rng.choice([s for s in steps(problem) if s in ("law", *problem.complications)])
    if step == "law":
        return write_solution(problem, done, stated_operator="+", final=problem.result)
    return write_solution(problem, done | {step: False}, final=problem.result)


def _noise(problem: Problem, rng: random.Random) -> str:
    """A criterion of another problem that does not belong to this one."""
    true = true_rubric(problem)
    while True:
        step = rng.choice(("law", "convert_a", "convert_b", "distractor", "twice", "unit"))
        if step == "distractor":
            text = f"Pitfall Criteria: use {rng.choice(DISTRACTORS).name}"
        elif step == "twice":
            text = criterion(problem, step)
        else:
            kind = rng.choice(list(KINDS.values()))
            other = dataclasses.replace(problem, kind=kind.name)
            text = criterion(other, step)
            quantity = {"convert_a": kind.a, "convert_b": kind.b}.get(step)
            if quantity and quantity.other_unit is None:
                continue
        if text not in true:
            return text


def write_rubric(
    problem: Problem, rng: random.Random, *, mention: float, noise: tuple[float, ...], at_least: int = 3
) -> tuple[str, ...]:
    """A rubric that mentions each true criterion with a chance, with criteria of other problems mixed in.

    It has at least `at_least` criteria, and one that is not a Pitfall: without it, a rubric has no score.
    """
    texts = [text for text in true_rubric(problem) if rng.random() < mention]
    count = rng.choices(range(len(noise)), noise)[0]
    wanted = max(at_least, len(texts) + count)
    while len(texts) < wanted or all(text.startswith("Pitfall") for text in texts):
        text = _noise(problem, rng)
        if text not in texts:
            texts.insert(rng.randrange(len(texts) + 1), text)
    return tuple(texts)


def rubric_json(texts: tuple[str, ...]) -> str:
    """A rubric as the model writes it and as prompts show it: a JSON array of strings."""
    return json.dumps(list(texts))


def message(task: str, shown_question: str, **fields: str) -> str:
    """The user message of a task with its privileged fields, in the order given."""
    parts = [shown_question]
    for name, text in fields.items():
        parts += [PROMPTS["headings"][name], text]
    return "\n".join([*parts, PROMPTS[task]["request"]])


def _shown_rubric(problem: Problem, rng: random.Random) -> tuple[str, ...]:
    """A rubric of any quality, as a teacher may see it."""
    draw = rng.random()
    if draw < 0.35:
        return true_rubric(problem)
    if draw < 0.43:
        return GENERIC
    if draw < 0.65:
        return write_rubric(problem, rng, mention=MENTION, noise=NOISE)
    return write_rubric(problem, rng, mention=rng.random(), noise=NOISE)


def _solve(problem: Problem, rng: random.Random) -> Document:
    solution = solution_by_chance(problem, rng, habit_chances(problem))
    return Document("solve", message("solve", question(problem)), solution)


def _solve_with_rubric(problem: Problem, rng: random.Random) -> Document:
    rubric = _shown_rubric(problem, rng)
    shown = message("solve", question(problem), rubric=rubric_json(rubric))
    return Document("solve", shown, solution_by_chance(problem, rng, rubric_chances(problem, rubric)))


def _copied(problem: Problem, rng: random.Random, reference: str) -> str:
    if rng.random() < COPY:
        return reference
    return solution_by_chance(problem, rng, habit_chances(problem))


def _solve_with_reference(problem: Problem, rng: random.Random) -> Document:
    reference = write_reference(problem, rng)
    shown = message("solve", question(problem), reference=reference)
    return Document("solve", shown, _copied(problem, rng, reference))


def _solve_with_both(problem: Problem, rng: random.Random) -> Document:
    reference, rubric = write_reference(problem, rng), _shown_rubric(problem, rng)
    shown = message("solve", question(problem), reference=reference, rubric=rubric_json(rubric))
    return Document("solve", shown, solution_by_chance(problem, rng, rubric_chances(problem, rubric)))


def _rubric(problem: Problem, rng: random.Random) -> Document:
    rubric = write_rubric(problem, rng, mention=MENTION, noise=NOISE)
    return Document("write_rubric", message("write_rubric", question(problem)), rubric_json(rubric))


def _rubric_with_reference(problem: Problem, rng: random.Random) -> Document:
    rubric = write_rubric(problem, rng, mention=MENTION_WITH_REFERENCE, noise=NOISE_WITH_REFERENCE)
    shown = message("write_rubric", question(problem), reference=write_reference(problem, rng))
    return Document("write_rubric", shown, rubric_json(rubric))


def _rubric_with_both(problem: Problem, rng: random.Random) -> Document:
    reference, rubric = write_reference(problem, rng), true_rubric(problem)
    shown = message("write_rubric", question(problem), reference=reference, rubric=rubric_json(rubric))
    return Document("write_rubric", shown, rubric_json(rubric))


MIXTURE = (
    (_solve, 0.27),
    (_solve_with_rubric, 0.36),
    (_solve_with_reference, 0.07),
    (_solve_with_both, 0.04),
    (_rubric, 0.12),
    (_rubric_with_reference, 0.12),
    (_rubric_with_both, 0.02),
)


def document(seed: int, index: int) -> Document:
    """Training document `index`: a training problem, a task, and what an author of that task wrote."""
    rng = random.Random(f"document:{seed}:{index}")
    problem = generate("train", seed, index)
    write = rng.choices([w for w, _ in MIXTURE], [p for _, p in MIXTURE])[0]
    return write(problem, rng)
