"""The columns of published data by the field that they hold, and the values of columns in a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The first column that holds something wins. `answer` and `reference` may share a column.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid"),
    "question": ("question", "problem", "prompt", "query", "instruction", "input"),
    "reference": ("reference_answer", "reference", "answer", "final_answer", "solution"),
    "rubric": (
        "rubric", "rubrics", "Rubrics", "rubric_list",
        "reward_model.rubrics", "reward_model.rubric", "extra_info.rubrics", "extra_info.rubric",
    ),
    "answer": ("final_answer", "answer"),
    "solution": ("solution",),  # read only if a role sees it
}  # fmt: skip
# Columns that hold the field in some data and something else in other data. They are read after the others, if the value can be
# the field.
ALSO: dict[str, tuple[str, ...]] = {
    "id": (),
    "question": ("messages", "conversations", "conversation"),
    "reference": (
        "answers", "output", "response", "reward_model.ground_truth", "extra_info.answer",
        "ideal_completions_data.ideal_completion",
    ),
    "rubric": ("criteria",),
    "answer": ("answers", "reward_model.ground_truth", "extra_info.answer"),
    "solution": (),
}  # fmt: skip
# Columns that are the second part of a question: "input" in Alpaca's rows, "context" in Dolly's.
SECOND_PARTS = {"instruction": ("input", "context")}
# Columns with turns before the question: a system turn, and earlier questions with their answers.
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
# Columns of turns whose last may be the reference answer to a question that is another column.
REPLIES = ("messages", "conversations", "conversation", "completion", "chosen")
# Columns that hold a part of the question in some data and something else in other data. They are reported, not read.
PERHAPS_QUESTION = ("context", "passage", "options", "choices", "system", "history")

FIELD_OF = {alias: name for name, aliases in reversed(ALIASES.items()) for alias in aliases}
FIELD_OF |= dict.fromkeys(PERHAPS_QUESTION, "question")
ABSENT = object()


def at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or `ABSENT`; a number steps into a list.

    Examples:
      >>> at({"prompt": [{"content": "Why?"}]}, "prompt.0.content"), at({}, "prompt") is ABSENT
      ('Why?', True)
    """
    if path in record:
        return record[path]
    if "." not in path:
        return ABSENT
    value: Any = record
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step, ABSENT)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step in map(str, range(len(value))):
            value = value[int(step)]
        else:
            value = ABSENT
    return value


def parts_of(path: str, name: str) -> list[str]:
    """The columns that a path of `data.fields` joins; a rubric's path is one column."""
    return [path] if name == "rubric" else [part.strip() for part in path.split("+")]


def one_of_several(record: Mapping[str, Any], path: str) -> bool:
    """Whether a path takes one entry of a longer list, such as one turn of a conversation."""
    if path in record or "." not in path:
        return False
    steps = path.split(".")
    for i, step in enumerate(steps):
        above = at(record, ".".join(steps[:i])) if i else record
        if step.isdecimal() and isinstance(above, Sequence) and not isinstance(above, str) and len(above) > 1:
            return True
    return False


def blank(value: Any) -> bool:
    """Whether a value is empty: null, NaN, white space, an empty list or object."""
    if value is None or value == [] or value == {} or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str) and not value.strip()
