"""Graders: from an example and a text that a model wrote to named numbers in [0, 1]. A new one is a line in `GRADERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.evaluate import answers
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics.parsing import drop_thinking, parse
from rcsd_jax.rubrics.scoring import f1

Grade = Callable[[Example, str], dict[str, float]]
GradeAll = Callable[[Sequence[Example], Sequence[str]], list[dict[str, float]]]
"""Examples and a text for each -> scores; NaN for a missing score."""


class Grader(NamedTuple):
    """How texts are graded.

    Attributes:
      grade: None for a judge, which grades all together.
      needs: the fields of an example without which it cannot be graded.
      feedback: the message to the writer; it returns None if nothing is wrong.
      of_own_rows: whether a user may choose it for rows of his own: not where it reads what a benchmark adds to them.
      source: the only data source whose rows it can grade; "" for any.
      criteria: for each criterion of the example's rubric whether the text meets it, of a Pitfall whether the fault is there.
      answer: for a grader that compares the completions of a question with each other: the answer that a text gives, or None. It
        cannot grade single texts.
      same: whether two such answers are the same; None if that cannot be said.
      check: for a grader that reads other columns than `needs`; it raises a UserError for a row that the grader cannot read.
    """

    grade: Grade | None
    needs: tuple[str, ...]
    feedback: Callable[[Example, str], str | None] | None = None
    of_own_rows: bool = True
    source: str = ""
    criteria: Callable[[Example, str], Sequence[float]] | None = None
    answer: Callable[[str], str | None] | None = None
    same: Callable[[str, str], bool | None] = str.__eq__
    check: Callable[[Example], object] | None = None


def grade_rubric(example: Example, text: str) -> dict[str, float]:
    """Is the text a rubric, and how well do its criteria agree with the example's own (F1 by description)?"""
    parsed = parse(text, min_criteria=1, max_criteria=10**6)
    scores = {"valid": float(parsed.status == "strict"), "salvaged": float(parsed.status == "salvaged")}
    return scores | {"criterion_f1": f1(parsed.rubric, rubric_of(example))}


def grade_boxed(example: Example, text: str) -> dict[str, float]:
    """Does the last \\boxed{} hold what the reference has in its box, or an expression that is equal to it?

    Without a box there, it must hold the whole of the reference, or the example's answer. Of several accepted answers it may hold
    any.

    Raises:
      UserError: the example has neither.

    Examples:
      >>> example = Example("1", "Half of one?", r"It is \\boxed{1/2}.", None, None, "rows.jsonl:1")
      >>> grade_boxed(example, r"So \\boxed{0.5}."), grade_boxed(example, "So 0.5.")
      ({'accuracy': 1.0, 'parsed': 1.0}, {'accuracy': 0.0, 'parsed': 0.0})
    """
    found, boxed = answers.last_boxed(text), answers.last_boxed(example.reference or "")
    known = (example.reference, example.answer) if boxed is None else (boxed,)
    truths = [truth for truth in (*known, *map(_in_box, example.accepted)) if truth]
    if not truths:
        remedy = "give the row one of them"
        raise UserError("neither a reference nor an answer", file=example.origin, field="reference", remedy=remedy)
    correct = found is not None and _equals_one(found, truths)
    return {"accuracy": float(correct), "parsed": float(found is not None)}


def grade_option(example: Example, text: str) -> dict[str, float]:
    """Does the text choose the right one of the options in `extra`?"""
    chosen = answers.option(text, example.extra["options"]).value
    return {"accuracy": float(chosen == example.extra["correct"]), "parsed": float(chosen is not None)}


def grade_number(example: Example, text: str) -> dict[str, float]:
    """Is the text's number the example's answer or any accepted one, within SciBench's five percent, in the unit in `extra` or another?

    Raises:
      UserError: the example's answer is no number.
    """
    unit = example.extra.get("unit", "")
    known = example.accepted or (example.answer or "",)
    truths = [answers.number(f"{one} {unit}").value or answers.number(one).value for one in known]
    if None in truths:
        raise UserError(
            "not a number",
            file=example.origin,
            field="answer",
            value=known[truths.index(None)],
            remedy="correct it, or grade the set with another grader",
        )
    found = answers.number(text).value
    agree = found is not None and any(answers.numbers_agree(found, truth) for truth in truths if truth is not None)
    return {"accuracy": float(agree), "parsed": float(found is not None)}


def rubric_feedback(example: Example, text: str) -> str | None:
    """What a parser objects to."""
    parsed = parse(text, min_criteria=1, max_criteria=10**6)
    return None if parsed.status == "strict" else parsed.reason


def boxed_feedback(example: Example, text: str) -> str | None:
    """That the final answer is wrong, or that there is none."""
    if grade_boxed(example, text)["accuracy"]:
        return None
    found = answers.last_boxed(text)
    return "There is no final answer in \\boxed{}." if found is None else f"The final answer {found} is wrong."


def grade_all(
    grader: str, examples: Sequence[Example], texts: Sequence[str], *, judge: GradeAll | None = None
) -> list[dict[str, float]]:
    """Scores of a text for each example, by a grader of `GRADERS`; "judge" asks the judge that is given.

    What stands in thinking blocks is not graded; of one that was cut, nothing is left.

    Raises:
      ValueError: there is no judge to ask.
    """
    texts = [drop_thinking(text) for text in texts]
    grade = GRADERS[grader].grade
    if grade is None:
        if judge is None:
            raise ValueError("grading by a judge needs one")
        return judge(examples, texts)
    return [grade(example, text) for example, text in zip(examples, texts, strict=True)]


def check_rows(grader: str, examples: Sequence[Example]) -> None:
    """Ends a run before it begins if its grader cannot read a row.

    Raises:
      UserError: the grader cannot read a row.
    """
    if grader and (check := GRADERS[grader].check):
        for example in examples:
            check(example)


GRADERS: dict[str, Grader] = {
    "rubric": Grader(grade_rubric, ("rubric",), rubric_feedback),
    "boxed": Grader(grade_boxed, ("reference",), boxed_feedback),
    "option": Grader(grade_option, (), of_own_rows=False),
    "number": Grader(grade_number, ("answer",), of_own_rows=False),
    "judge": Grader(None, ("rubric",)),
    "majority": Grader(None, (), answer=answers.last_boxed, same=answers.same_expression),
}


def choices() -> tuple[str, ...]:
    """What a user may choose for rows of his own: a grader, or "" for none."""
    return ("", *(name for name, grader in GRADERS.items() if grader.of_own_rows))


def choices_of_evaluation() -> tuple[str, ...]:
    """Those of `choices` that grade single texts."""
    return tuple(name for name in choices() if not name or GRADERS[name].answer is None)


def _in_box(truth: str) -> str:
    boxed = answers.last_boxed(truth)
    return truth if boxed is None else boxed


def _equals_one(found: str, truths: Sequence[str]) -> bool:
    return any(answers.same_expression(found, truth) for truth in truths)
