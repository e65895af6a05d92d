"""Prompts with the contents of the published runs' own, in our words. `docs/published.md` says which run has which.

Each is `contexts.ENGLISH` with other strings, so that whatever a run does not say is as usual.
"""

from __future__ import annotations

from typing import Any

from rcsd_jax.roles.contexts import ENGLISH

_DESIGN = (
    "You design rubrics: lists of criteria by which an answer to a question is graded. Read the question for all that it asks, "
    "openly or implicitly. Read the reference answer for what an excellent answer shows: its reasoning, its detail, its form. Trust "
    "it, but do not copy its sentences. Then write 3 to 25 criteria. A criterion is a JSON object with three keys: `title`, 2 to 5 "
    "words; `description`, one requirement in at most 40 words or 5 sentences; `weight`, an integer from -1 to 10. A description "
    "opens with its class, as in these two:\n"
    '[{"description": "Essential Criteria: Takes the 40% loss in the turbine into account before it states the power that reaches '
    'the grid.", "title": "Loss in Turbine", "weight": 8},\n'
    '{"description": "Important Criteria: Converts the flow from litres per minute to cubic metres per second.", "title": "Units of '
    'Flow", "weight": 5}]\n'
    "Each criterion is concrete, can be tested, and measures something that no other does. Weigh what is essential 7 to 10, and "
    "what improves an answer 3 to 6. At least one criterion of weight -1 names a serious fault, such as a constraint that is "
    "ignored, a wrong form, an invention, or a contradiction to the reference."
)

RELEASE: dict[str, Any] = ENGLISH | {
    "headings": ENGLISH["headings"] | {"reference": "Reference answer:", "rubric": "Rubric (JSON array):"},
    "solve": {"definition": "", "request": "Please reason step by step, and put your final answer within \\boxed{}."},
    "write_rubric": {
        "definition": _DESIGN,
        "request": (
            "Now write the criteria for this question and its reference answer. Output only a valid JSON array of criterion "
            "objects: no key around it, no code fence, no other text."
        ),
    },
    "reason": {
        "request": (
            "The reference answer and the rubric above are guidance and may have flaws. Explain briefly which requirements, which "
            "constraints and which kind of reasoning they imply. Do not solve the question yet, and do not use <think> tags."
        ),
        "transition": (
            "The reference and the rubric above are private guidance: they help you to find the right way of reasoning. Do not "
            "mention or cite a reference, a rubric, an answer key or any other help in your response, and write no phrase that "
            "implies that you have seen the answer, such as 'according to the rubric' or 'we know that the answer is'. Solve "
            "the problem as if you had only its statement: a natural solution that stands by itself, derived step by step by "
            "your own reasoning, with the final answer only where the reasoning has led to it. Try other ways where that "
            "helps, and go back or think again if one does not work out."
        ),
    },
}
"""RCSD's release: the rubric writer, the student, and the teacher that analyses reference and rubric first."""

RELEASE_STAGE1: dict[str, Any] = RELEASE | {
    "headings": RELEASE["headings"]
    | {"rubric": "The ground-truth rubric (JSON array), which is the authoritative target of what you write:"}
}
"""The same when the writer is trained: its teacher sees the rubric to aim at. The student's prompt is that of `RELEASE`."""

OPSD: dict[str, Any] = ENGLISH | {
    "headings": ENGLISH["headings"]
    | {
        "reference": (
            "A reference solution to this problem follows. Understand it and the reason for each of its steps; then give your own "
            "reasoning, step by step, that leads to the same final answer."
        )
    },
    "solve": RELEASE["solve"],
}
"""OPSD: the teacher is to derive the reference's answer in its own words."""

SDPO: dict[str, Any] = ENGLISH | {
    "headings": ENGLISH["headings"]
    | {
        "success": "A correct solution follows. Solve the question above correctly.",
        "feedback": "Feedback on your earlier attempt, which failed, follows. Solve the question above correctly.",
    }
}
"""SDPO: another of the student's own solutions, or what its own lacked."""

SDFT: dict[str, Any] = ENGLISH | {"headings": ENGLISH["headings"] | {"reference": ""}}
"""TRL's SDFT: the demonstration follows the question without a heading."""
