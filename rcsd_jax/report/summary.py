"""The table that a run ends with: every role on every split, sampled and greedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from rcsd_jax.host.console import Console
from rcsd_jax.rubrics.schema import KINDS

ROLE_NAMES = {"base": "base student", "teacher": "teacher ({})", "trained": "trained student"}
SCORE_NAMES = {
    "criterion_f1": "criterion F1",
    "accuracy": "accuracy",
    "rubric_score": "rubric score",
    "valid": "valid",
}
THOUGHTS_CUT = "thoughts cut"
TITLE = "Evaluation, percent ± standard error, [95% interval]"
JUDGED = "Criteria that are met, faults that are made (Pitfall), and agreement of the judges, percent"
_WIDEST = 3  # splits side by side; more are listed one below the other


def print_summary(
    console: Console, results: dict[str, dict[str, Any]], teacher_fields: dict[str, tuple[str, ...]]
) -> None:
    """Prints one table of all stages' evaluations (percent ± standard error), and the paths that were written.

    Args:
      console: where to print.
      results: stage name -> its summary.
      teacher_fields: stage name -> the fields that its teacher sees besides the question.
    """
    splits = list(dict.fromkeys(s for r in results.values() for e in r["evaluation"].values() for s in e))
    modes = [
        m
        for m in ("sampled", "greedy")
        if any(m in e[s] for r in results.values() for e in r["evaluation"].values() for s in e)
    ]
    if len(splits) > _WIDEST:
        for stage, result in results.items():
            print_evaluation(console, result["evaluation"], title=f"{stage}: {TITLE}" if stage else TITLE)
    elif splits:
        table = rich.table.Table(title=TITLE.split(", [")[0])
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
        print_judged(console, result["evaluation"], title=f"{stage}: {JUDGED}" if stage else JUDGED)
    for stage, result in results.items():
        for what, path in result["paths"].items():
            console.print(f"{stage + ' ' if stage else ''}{what}: {path}", soft_wrap=True)


def print_evaluation(
    console: Console,
    evaluation: dict[str, Any],
    *,
    title: str = TITLE,
    names: Mapping[str, str] = ROLE_NAMES,
) -> None:
    """Prints a line for every role, split and mode: scores in percent ± standard error, and the length of completions.

    "thoughts cut" is the share whose thinking block does not end; it stands there only if a role thinks.

    Args:
      console: where to print.
      evaluation: role -> split -> mode -> scores, as `evaluate.table.evaluate` gives them.
      title: over the table.
      names: the roles' printed names.
    """
    table = rich.table.Table(title=title)
    lines = [
        (r, s, m, scores)
        for r, splits in evaluation.items()
        for s, modes in splits.items()
        for m, scores in modes.items()
    ]
    passes = sorted({k for *_, scores in lines for k in scores if k.startswith("pass@")}, key=lambda k: int(k[5:]))
    thought = any("share_unended_thoughts" in scores for *_, scores in lines)
    for column in ("role", "questions of", "", "score"):
        table.add_column(column)
    for column in ("mean", "interval", *passes, "unparsed", "ungraded", "cut", *[THOUGHTS_CUT] * thought, "tokens"):
        table.add_column(column, justify="right")
    for role, split, mode, scores in lines:
        score = next((s for s in SCORE_NAMES if s in scores), "")
        interval = scores.get(f"{score}_interval")
        table.add_row(
            names.get(role, role).split(" (")[0],
            f"{split.replace('_', ' ')} ({scores['questions']})",
            f"{mode}, {scores['samples']} each" if "samples" in scores else mode,
            SCORE_NAMES.get(score, ""),
            _mean(scores, score),
            "–" if interval is None else "[{:.1f}, {:.1f}]".format(*(100 * x for x in interval)),
            *(_percent(scores.get(name)) for name in passes),
            _percent(1 - scores["parsed"] if "parsed" in scores else None),
            _percent(scores.get("ungraded")),
            _percent(scores["share_cut"]),
            *[_percent(scores.get("share_unended_thoughts"))] * thought,
            f"{scores['length']:.0f}",
        )
    console.print(table)


def print_judged(
    console: Console,
    evaluation: Mapping[str, Any],
    *,
    title: str = JUDGED,
    names: Mapping[str, str] = ROLE_NAMES,
) -> None:
    """Prints what verdicts say of judged sets: how many criteria of each class are met, and how far two judges agree.

    Args:
      console, evaluation, names: as of `print_evaluation`; nothing is printed without a judged set.
      title: over the table.
    """
    lines = [
        (role, split, mode, scores)
        for role, splits in evaluation.items()
        for split, modes in splits.items()
        for mode, scores in modes.items()
        if "classes" in scores
    ]
    if not lines:
        return
    kinds = [kind for kind in KINDS if any(kind in scores["classes"] for *_, scores in lines)]
    compared = any("agreement" in scores for *_, scores in lines)
    table = rich.table.Table(title=title)
    for column in ("role", "questions of", ""):
        table.add_column(column)
    for column in (*kinds, "judged", *(("second judge", "same", "kappa", "interval") if compared else ())):
        table.add_column(column, justify="right")
    for role, split, mode, scores in lines:
        agreement = scores.get("agreement", {})
        interval = agreement.get("kappa_interval")
        second = [
            _mean(scores, "second_score"),
            _percent(agreement.get("same")),
            "–" if agreement.get("kappa") is None else f"{agreement['kappa']:.2f}",
            "–" if interval is None else "[{:.2f}, {:.2f}]".format(*interval),
        ]
        table.add_row(
            names.get(role, role).split(" (")[0],
            split.replace("_", " "),
            mode,
            *(_percent(scores["classes"].get(kind, {}).get("met")) for kind in kinds),
            _percent(scores["judged"]),
            *(second if compared else ()),
        )
    console.print(table)


def _mean(scores: dict[str, Any], score: str) -> str:
    return "–" if scores.get(score) is None else f"{100 * scores[score]:.1f} ± {100 * scores[f'{score}_stderr']:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _add_rows(
    table: rich.table.Table,
    stage: str,
    evaluation: dict[str, Any],
    teacher: str,
    splits: Sequence[str],
    modes: Sequence[str],
) -> None:
    def cell(role: str, split: str, mode: str, score: str) -> str:
        return _mean(evaluation[role].get(split, {}).get(mode, {}), score)

    first: dict[str, Any] = next(iter(next(iter(evaluation.values()), {}).values()), {})
    present: dict[str, Any] = next(iter(first.values()), {})
    for score in [s for s in SCORE_NAMES if s in present]:
        for role in [r for r in ROLE_NAMES if r in evaluation]:
            cells = [cell(role, split, mode, score) for split in splits for mode in modes]
            table.add_row(stage, SCORE_NAMES[score], ROLE_NAMES[role].format(teacher), *cells)
    for role in [r for r in ROLE_NAMES if r in evaluation]:
        shares = [evaluation[role].get(s, {}).get(m, {}).get("share_unended_thoughts") for s in splits for m in modes]
        if any(share is not None for share in shares):
            table.add_row(stage, THOUGHTS_CUT, ROLE_NAMES[role].format(teacher), *map(_percent, shares))
