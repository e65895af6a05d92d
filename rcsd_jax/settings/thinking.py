"""Who thinks: parts of a variant that change the thinking switches, as in `configs/stage2.py:release,non_thinking`.

Without one, student, teacher and evaluation think, as in the paper's runs.
"""

from typing import Any

from ml_collections import ConfigDict

VARIANTS: dict[str, dict[str, Any]] = {
    # Nobody thinks.
    "non_thinking": dict(
        student=dict(thinking=False),
        teacher=dict(thinking=False, reason_thinking=False),
        rubric=dict(writer_thinking=False, max_new_tokens=1024),
    ),
    # The student learns from completions without a thought; the teacher and everybody in evaluation think.
    "student_non_thinking": dict(student=dict(thinking=False), eval=dict(thinking=True)),
}


EVALUATION_TOKENS = 32768
"""Of an evaluation with thoughts: many on hard questions are longer than training's completions."""


def split(parts: list[str]) -> tuple[str, list[str]]:
    """The part of a variant that says who thinks ("" if there is none), and the other parts.

    Raises:
      ValueError: two such parts.

    Examples:
      >>> split(["qwen3_8b", "non_thinking"])
      ('non_thinking', ['qwen3_8b'])
    """
    chosen = [part for part in parts if part in VARIANTS]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are two variants: choose one")
    return "".join(chosen), [part for part in parts if part not in VARIANTS]


def apply(config: ConfigDict, chosen: str) -> None:
    """Sets the switches of `chosen`, if there is one."""
    config.update(VARIANTS.get(chosen, {}))


def give_evaluation_room(config: ConfigDict) -> None:
    """Sets `eval.max_new_tokens` for thoughts, where there may be some."""
    if config.student.thinking or config.eval.thinking:
        config.eval.max_new_tokens = EVALUATION_TOKENS
