"""Worked answers: careful ones, and references of which a share is flawed in one step and ends right."""

from __future__ import annotations

import random

from rcsd_jax.world.english.problems import Problem, answer, law_in_words

FLAWED = 0.35
"""The share of references with a wrong step and the right final answer."""


def careful_answer(problem: Problem) -> str:
    r"""'3 km = 3000 m. work = force × distance = 4 N × 3000 m = 12000 J. \boxed{12000 J}'."""
    return _written(problem, law_in_words(problem), [problem.used(i) for i in range(2)], converts=True)


def reference(problem: Problem, rng: random.Random, *, flawed: float = FLAWED) -> str:
    """A careful answer; with chance `flawed` one of its steps is wrong although it ends in the right box."""
    if rng.random() >= flawed:
        return careful_answer(problem)
    return flawed_answer(problem, rng.choice(flaws(problem)))


def flaws(problem: Problem) -> tuple[str, ...]:
    """What can be wrong in the problem's reference: names of steps."""
    return ("law", *(["convert"] if any(problem.converted) else []), *(["distractor"] if problem.distractor else []))


def flawed_answer(problem: Problem, step: str) -> str:
    """The answer with a wrong step: the other operator ("law"), no conversion, or the quantity that is not needed."""
    law, used = law_in_words(problem), [problem.used(i) for i in range(2)]
    if step == "law":
        other = "/" if problem.law.operator == "×" else "×"
        return _written(problem, law_in_words(problem, operator=other), used, converts=True, operator=other)
    if step == "convert":
        return _written(problem, law, [problem.shown(i) for i in range(2)], converts=False)
    assert step == "distractor" and problem.not_needed is not None, "a flaw of this problem"
    name, value = problem.not_needed
    law = f"{problem.law.result} = {problem.law.a.name} {problem.law.operator} {name}"
    return _written(problem, law, [used[0], value], converts=problem.converted[0])


def _written(problem: Problem, law: str, used: list[str], *, converts: bool, operator: str = "") -> str:
    lines = [f"{problem.shown(i)} = {problem.used(i)}." for i in range(2) if converts and problem.converted[i]]
    result = answer(problem)
    lines.append(f"{law} = {used[0]} {operator or problem.law.operator} {used[1]} = {result}. \\boxed{{{result}}}")
    return " ".join(lines)
