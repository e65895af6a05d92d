"""Complete every question, grade every text, average: the numbers of one split in one mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rcsd_jax.data.examples import Example
from rcsd_jax.sampling.sampler import Batches, Completion

Complete = Callable[[Sequence[np.ndarray], Sequence[int]], Batches]
"""Prompts and their seeds -> completions, as `Sampler.generate` with its settings bound."""

NOT_SCORES = ("id", "sample", "text", "length", "cut", "thought_length", "unended_thought", "verdicts", "tag_scores")
"""What a record holds besides scores."""
_RESAMPLED = 1000


def evaluate(
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    *,
    complete: Complete,
    decode: Callable[[np.ndarray], str],
    grade_all: Callable[[Sequence[Example], Sequence[str]], Sequence[Mapping[str, Any]]],
    answer: Callable[[np.ndarray], np.ndarray | None] | None = None,
    samples: int = 1,
) -> tuple[dict[str, Any], list[dict]]:
    """Mean scores with their standard error and interval, and one record per completion.

    Args:
      examples: the questions, N of them.
      prompts: each one's encoded prompt for the role that is evaluated.
      complete: samples a completion of every prompt.
      decode: token ids to text.
      grade_all: the grader: examples and a text for each -> scores, NaN for a missing one, and what else is recorded.
      answer: a completion's tokens to those that follow its thinking block, None if the block does not end; only they are graded.
        None if completions have no such block.
      samples: completions of each question, G.

    Returns:
      (summary, records): the summary has each score's mean over questions of the mean over samples, `<score>_stderr`,
      `<score>_interval` (95%, bootstrap over questions), with several samples `pass@k` for powers of two and G, `length` in
      tokens, `share_cut`, with `answer` also `thought_length` and `share_unended_thoughts`, and `ungraded` where some scores are
      NaN: they are in no mean, which is None if all are. Records come question by question.
    """
    count = len(prompts)
    asked = [i for i in range(count) for _ in range(samples)]
    # A question's first completion has the same seed for any number of completions.
    seeds = [g * count + i for i in range(count) for g in range(samples)]
    completions: dict[int, Completion] = {}
    for chosen, batch in complete([prompts[i] for i in asked], seeds):
        completions.update(zip(chosen, batch, strict=True))
    written = [completions[n].tokens for n in range(len(asked))]
    texts = to_grade = [decode(tokens) for tokens in written]
    thoughts: list[dict[str, Any]] = [{} for _ in asked]
    if answer is not None:
        answers = [answer(tokens) for tokens in written]
        to_grade = ["" if tokens is None else decode(tokens) for tokens in answers]
        thoughts = [
            {"thought_length": len(whole) - (0 if rest is None else len(rest)), "unended_thought": rest is None}
            for whole, rest in zip(written, answers, strict=True)
        ]
    graded = grade_all([examples[i] for i in asked], to_grade)
    records = [
        {"id": examples[i].id, "sample": n % samples, "text": texts[n], "length": len(written[n]), "cut": completions[n].cut,
         **thoughts[n], **graded[n]}
        for n, i in enumerate(asked)
    ]  # fmt: skip
    return summarise(records, samples=samples), records


def summarise(records: Sequence[dict], *, samples: int = 1) -> dict[str, Any]:
    """The summary of records, which come question by question, `samples` each; see `evaluate`.

    Examples:
      >>> right, wrong = dict(accuracy=1.0, length=3, cut=False), dict(accuracy=0.0, length=5, cut=True)
      >>> summary = summarise([right, wrong, right, right], samples=2)  # two questions
      >>> summary["questions"], summary["accuracy"], summary["pass@2"], summary["share_cut"]
      (2, 0.75, 1.0, 0.25)
    """
    summary: dict[str, Any] = {"questions": len(records) // samples}
    if samples > 1:
        summary["samples"] = samples
    for name in [k for k in records[0] if k not in NOT_SCORES]:
        values = np.array([r[name] for r in records], np.float64).reshape(-1, samples)  # [N, G]
        known = ~np.isnan(values)
        kept = known.any(axis=1)
        means = np.where(known, values, 0.0).sum(axis=1)[kept] / known.sum(axis=1)[kept]  # [questions with a score]
        n = len(means)
        summary[name] = float(means.mean()) if n else None
        summary[f"{name}_stderr"] = float(means.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
        summary[f"{name}_interval"] = _bootstrap(means) if n else None
        if not known.all():
            summary["ungraded"] = float(1 - known.mean())
        if name == "accuracy" and samples > 1:
            ks = sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
            right = (values >= 1.0).sum(axis=1)
            summary |= {f"pass@{k}": float(np.mean([pass_at_k(samples, c, k) for c in right])) for k in ks if k > 1}
    summary["length"] = float(np.mean([r["length"] for r in records]))
    summary["share_cut"] = float(np.mean([r["cut"] for r in records]))
    if "unended_thought" in records[0]:
        summary["thought_length"] = float(np.mean([r["thought_length"] for r in records]))
        summary["share_unended_thoughts"] = float(np.mean([r["unended_thought"] for r in records]))
    return summary


def pass_at_k(count: int, right: int, k: int) -> float:
    """The chance that at least one of k completions is right, drawn from `count` with `right` right ones (arXiv 2107.03374).

    Examples:
      >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
      (0.25, 0.5, 1.0)
    """
    if count - right < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(count - right + 1, count + 1)))


def _bootstrap(means: np.ndarray) -> list[float]:
    """The 95% percentile interval of the mean over questions that are drawn again."""
    drawn = np.random.default_rng(0).integers(len(means), size=(_RESAMPLED, len(means)))
    return [float(x) for x in np.percentile(means[drawn].mean(axis=1), [2.5, 97.5])]
