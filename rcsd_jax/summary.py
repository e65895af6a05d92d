"""The table that a run ends with: every role on every split, sampled and greedy."""

from __future__ import annotations

from typing import Any

import rich.console
import rich.table

ROLE_NAMES = {"base": "base student", "teacher": "teacher ({})", "trained": "trained student"}
SCORE_NAMES = {
    "criterion_f1": "criterion F1",
    "accuracy": "accuracy",
    "rubric_score": "rubric score",
    "valid": "valid",
}


def print_summary(
    console: rich.console.Console, results: dict[str, dict[str, Any]], teacher_fields: dict[str, tuple[str, ...]]
) -> None:
    """Prints one table of all stages' evaluations (percent ± standard error), and the paths that were written.

    Args:
      console: where to.
      results: stage name -> its summary.
      teacher_fields: stage name -> what its teacher sees beside the question.
    """
    splits = list(dict.fromkeys(s for r in results.values() for e in r["evaluation"].values() for s in e))
    modes = [
        m
        for m in ("sampled", "greedy")
        if any(m in e[s] for r in results.values() for e in r["evaluation"].values() for s in e)
    ]
    if splits:
        table = rich.table.Table(title="Evaluation, percent ± standard error")
        for column in ("stage", "score", "role"):
            table.add_column(column)
        for split in splits:
            for mode in modes:
                table.add_column(f"{split.replace('_', ' ')}\n{mode}", justify="right")
        for stage, result in results.items():
            _add_rows(table, stage, result["evaluation"], " + ".join(teacher_fields[stage]), splits, modes)
            table.add_section()
        console.print(table)
    for stage, result in results.items():
        for what, path in result["paths"].items():
            console.print(f"{stage + ' ' if stage else ''}{what}: {path}", soft_wrap=True, highlight=False)


def _add_rows(table, stage: str, evaluation: dict[str, Any], teacher: str, splits, modes) -> None:
    def cell(role: str, split: str, mode: str, score: str) -> str:
        scores = evaluation[role].get(split, {}).get(mode, {})
        return f"{100 * scores[score]:.1f} ± {100 * scores[f'{score}_stderr']:.1f}" if score in scores else "–"

    first = next(iter(next(iter(evaluation.values()), {}).values()), {})
    present = next(iter(first.values()), {})
    for score in [s for s in SCORE_NAMES if s in present]:
        for role in [r for r in ROLE_NAMES if r in evaluation]:
            cells = [cell(role, split, mode, score) for split in splits for mode in modes]
            table.add_row(stage, SCORE_NAMES[score], ROLE_NAMES[role].format(teacher), *cells)
