r"""The documents that the base model of chains read: solutions with wrong turns, checks and repairs, drawn with the probabilities below.

A solution has a line for each step, 'c 7 take 4 = 3'. An author may check a step: he works it out again, 'check 7 take 4 = 3 ok'. If he
finds another value he writes 'wait' instead of 'ok' and goes on with the new value, so the wrong turn is repaired. A wrong turn without a
check leads to a wrong answer. Habits are low for some steps and high for others, so a model that imitates the documents is careless in
different places, sampled and greedy. A rubric in the prompt changes the author's work: rules that it lists are kept, checks that it asks
for are made, and the rest is done less often than by habit. A reference in the prompt is copied. Most references are short: no checks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rcsd_jax.world.chains.criteria import BOX, CHECK, GENERIC, RULE, Item, criterion, items, true_rubric
from rcsd_jax.world.chains.problems import HARD, KINDS, NUMBERS, Problem, Step, generate, question
from rcsd_jax.world.documents import Document, message, rubric_json

FOLLOW = 0.975  # a listed criterion is followed
UNLISTED = 1.5  # exponent of a habit if a rubric is shown that lacks it
GENERIC_LIFT = 0.35  # share of lapses that a generic rubric prevents
OVERLOOKS = 0.05  # a check repeats the wrong turn
COPY = 0.97  # a shown reference is copied
FLAWED = 0.35  # references with a wrong step and the right final answer
THOROUGH = 0.3  # references of the documents that show checks and repairs
WEAK_NUMBERS = 2  # numbers of each hard kind at which authors mostly take the wrong turn
REPAIRED = 0.3  # hard steps of a thorough reference that show a repaired wrong turn


class Habits(NamedTuple):
    """The chances of an author: that a step is right at once, that a kind of step is checked, that the answer stands in a box."""

    right: Mapping[Step, float]
    check: Mapping[str, float]
    box: float


def _habits() -> Habits:
    """Fixed, like an author's schooling."""
    rng = random.Random("chains habits")
    right: dict[Step, float] = {}
    for name, kind in KINDS.items():
        weak = rng.sample(NUMBERS, WEAK_NUMBERS) if kind.rule else ()
        for number in NUMBERS:
            low, high = (0.25, 0.4) if number in weak else (0.85, 0.93) if kind.rule else (0.985, 0.995)
            right[Step(name, number)] = rng.uniform(low, high)
    check = {"add": 0.02, "take": 0.02, "times": 0.3, "from": 0.6, "twice": 0.4}
    return Habits(right, check, 0.97)


HABITS = _habits()


def under(rubric: Sequence[str]) -> Habits:
    """The habits of an author who sees a rubric; criteria on kinds that a problem lacks change nothing."""
    if set(rubric) == set(GENERIC):

        def lifted(habit: float) -> float:
            return 1 - (1 - habit) * (1 - GENERIC_LIFT)

        right = {step: lifted(habit) for step, habit in HABITS.right.items()}
        return Habits(right, {kind: lifted(habit) for kind, habit in HABITS.check.items()}, lifted(HABITS.box))

    def asked(item: Item, habit: float) -> float:
        return FOLLOW if criterion(item) in rubric else habit**UNLISTED

    return Habits(
        {s: habit if s.kind not in HARD else asked(Item(RULE, s.kind), habit) for s, habit in HABITS.right.items()},
        {kind: asked(Item(CHECK, kind), habit) for kind, habit in HABITS.check.items()},
        asked(Item(BOX), HABITS.box),
    )


class Work(NamedTuple):
    """What an author does at a step: takes the wrong turn, checks the step, and overlooks the wrong turn in the check."""

    wrong: bool = False
    checks: bool = False
    overlooks: bool = False


def write_solution(problem: Problem, work: Sequence[Work], *, box: bool = True, answer: int | None = None) -> str:
    """A solution in which the author does at each step what `work` says, and goes on from what he has written.

    Args:
      problem: the problem.
      work: one for each step.
      box: whether the answer stands in a box.
      answer: the final answer, if it should differ from the last line's value.
    """
    lines, value = [], problem.start
    for label, step, one in zip(problem.labels, problem.steps, work, strict=True):
        before, right = value, step.result(value)
        value = step.slip(value) if one.wrong else right
        lines.append(f"{label} {_line(before, step, value)}")
        if one.checks:
            found = value if one.overlooks else right
            lines.append(f"check {_line(before, step, found)} {'ok' if found == value else 'wait'}")
            value = found
    stated = value if answer is None else answer
    return " ; ".join([*lines, f"answer \\boxed{{ {stated} }}" if box else f"answer {stated}"])


def _line(value: int, step: Step, result: int) -> str:
    return f"{value} {step.kind} {step.number} = {result}"


def careful_solution(problem: Problem) -> str:
    """No wrong turn, and every step of a hard kind checked."""
    return write_solution(problem, [Work(checks=step.kind in HARD) for step in problem.steps])


def short_solution(problem: Problem) -> str:
    """No wrong turn and no check."""
    return write_solution(problem, [Work()] * len(problem.steps))


def solution_by_chance(problem: Problem, rng: random.Random, habits: Habits) -> str:
    """A solution by an author with these habits."""
    work = [
        Work(
            wrong=rng.random() >= habits.right[step],
            checks=rng.random() < habits.check[step.kind],
            overlooks=rng.random() < OVERLOOKS,
        )
        for step in problem.steps
    ]
    return write_solution(problem, work, box=rng.random() < habits.box)


def write_reference(problem: Problem, rng: random.Random, *, flawed: float = FLAWED, thorough: bool = False) -> str:
    """A reference: its final answer is right, but with chance `flawed` one step is wrong, and the lines after it follow from that.

    Args:
      problem: the problem.
      rng: decides the flaw, and the repairs of a thorough reference.
      flawed: the chance of a flaw.
      thorough: whether it checks the steps of hard kinds and shows repaired wrong turns. Otherwise it has only the lines of the steps.
    """
    work = [
        Work(wrong=rng.random() < REPAIRED, checks=True) if thorough and step.kind in HARD else Work()
        for step in problem.steps
    ]
    if rng.random() >= flawed:
        return write_solution(problem, work)
    before = problem.values[:-1]
    possible = [i for i, step in enumerate(problem.steps) if step.slip(before[i]) != step.result(before[i])]
    chosen = rng.choice([i for i in possible if problem.steps[i].kind in HARD] or possible)
    work[chosen] = Work(wrong=True)
    return write_solution(problem, work, answer=problem.result)


def shown_rubric(problem: Problem, rng: random.Random) -> tuple[str, ...]:
    """A rubric of any quality, as a teacher may see it: true, generic, or with some of the true criteria and some on other kinds."""
    draw = rng.random()
    if draw < 0.45:
        return true_rubric(problem)
    if draw < 0.53:
        return GENERIC
    mention, noise = rng.random(), 0.3 * rng.random()
    true = items(problem)
    every = [*(Item(aspect, kind) for kind in HARD for aspect in (RULE, CHECK)), Item(BOX)]
    kept = [item for item in every if rng.random() < (mention if item in true else noise)]
    return tuple(map(criterion, kept or [Item(BOX)]))


def _solve(problem: Problem, rng: random.Random) -> Document:
    return Document("solve", message("solve", question(problem)), solution_by_chance(problem, rng, HABITS))


def _solve_with_rubric(problem: Problem, rng: random.Random) -> Document:
    rubric = shown_rubric(problem, rng)
    shown = message("solve", question(problem), rubric=rubric_json(rubric))
    return Document("solve", shown, solution_by_chance(problem, rng, under(rubric)))


def _solve_with_reference(problem: Problem, rng: random.Random) -> Document:
    reference = write_reference(problem, rng, thorough=rng.random() < THOROUGH)
    copied = rng.random() < COPY
    written = reference if copied else solution_by_chance(problem, rng, HABITS)
    return Document("solve", message("solve", question(problem), reference=reference), written)


def _solve_with_both(problem: Problem, rng: random.Random) -> Document:
    reference, rubric = write_reference(problem, rng), shown_rubric(problem, rng)
    shown = message("solve", question(problem), reference=reference, rubric=rubric_json(rubric))
    return Document("solve", shown, solution_by_chance(problem, rng, under(rubric)))


MIXTURE = ((_solve, 0.34), (_solve_with_rubric, 0.45), (_solve_with_reference, 0.16), (_solve_with_both, 0.05))


def document(seed: int, index: int) -> Document:
    """Training document `index`: a training problem, what its author sees, and what he wrote."""
    rng = random.Random(f"chains document:{seed}:{index}")
    problem = generate("train", seed, index)
    write = rng.choices([w for w, _ in MIXTURE], [p for _, p in MIXTURE])[0]
    return write(problem, rng)
