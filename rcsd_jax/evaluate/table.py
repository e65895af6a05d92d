"""Roles × splits × sampling modes: complete every question, grade every text, average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rcsd_jax.completions import Completion
from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.graders import Grade


def evaluate(
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    *,
    complete: Callable,
    decode: Callable[[np.ndarray], str],
    grade: Grade,
) -> tuple[dict[str, float], list[dict]]:
    """Mean scores with their standard error, and one record per question.

    Args:
      examples: the questions.
      prompts: each one's encoded prompt for the role that is evaluated.
      complete: (prompts, seeds) -> batches of (indexes, completions).
      decode: token ids to text.
      grade: the grader.

    Returns:
      (summary, records): the summary has each score's mean, `<score>_stderr`, `length` in tokens and `share_cut`.
    """
    completions: dict[int, Completion] = {}
    for chosen, batch in complete(prompts, range(len(prompts))):
        completions.update(zip(chosen, batch, strict=True))
    records = []
    for i, example in enumerate(examples):
        text = decode(completions[i].tokens)
        scores = grade(example, text)
        length, cut = len(completions[i].tokens), completions[i].cut
        records.append({"id": example.id, "text": text, "length": length, "cut": cut, **scores})
    summary = {"questions": len(records)}
    for name in [k for k in records[0] if k not in ("id", "text", "length", "cut")]:
        values = np.array([r[name] for r in records])
        summary[name] = float(values.mean())
        summary[f"{name}_stderr"] = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    summary["length"] = float(np.mean([r["length"] for r in records]))
    summary["share_cut"] = float(np.mean([r["cut"] for r in records]))
    return summary, records
