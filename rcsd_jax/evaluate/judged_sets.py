"""Sets that a judge grades criterion by criterion: scores of answers by the set's rule, and what the verdicts say of the set.

A graded answer holds, besides its scores, `verdicts`, one record per criterion, and `tag_scores`. With a second judge, both judge
everything; scores are the first's, and the set's summary says how far the two agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcsd_jax.data.examples import Example, rubric_of
from rcsd_jax.evaluate import agreement
from rcsd_jax.judge.judging import Judgement
from rcsd_jax.judge.prompts import EXTENTS
from rcsd_jax.rubrics.aggregation import AGGREGATIONS, Aggregation
from rcsd_jax.rubrics.parsing import drop_thinking
from rcsd_jax.rubrics.schema import KINDS, Criterion

AskJudge = Callable[[Sequence[Example], Sequence[str], str], list[Judgement]]
"""Examples, a text for each, and the verdict that is asked for -> the judgement of each text."""

OWN_ROWS = ("points",)
"""How rows are scored that belong to no benchmark."""

_CATEGORIES = {"met": (0.0, 1.0), "extent": tuple(EXTENTS.values())}


class Judges(NamedTuple):
    """The judge, and another one to compare it with, or None."""

    first: AskJudge
    second: AskJudge | None = None


def rewards(examples: Sequence[Example], judgements: Sequence[Judgement]) -> list[dict[str, float]]:
    """Scores of judged texts as rewards: "rubric_score", not clipped, and "judged", as in `graded`."""
    return [_scores(e, one, OWN_ROWS) for e, one in zip(examples, judgements, strict=True)]


def graded(
    judges: Judges, aggregations: Sequence[str], examples: Sequence[Example], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """What is recorded of each text; what stands in thinking blocks is not judged.

    Args:
      judges: who decides.
      aggregations: rules of `AGGREGATIONS` that ask for the same verdict. The first gives "rubric_score", others "<rule>_score".
      examples: each with a rubric.
      texts: one for each example.

    Returns:
      "rubric_score", and the other rules' scores: NaN where a rule gives none. "judged": the share of criteria with a verdict.
      "verdicts": for each criterion its text, class and weight, the verdict ("met", None if there is none) and the reason; with a
      second judge also its "second_met". "tag_scores": the first rule's score under the criteria of each tag, and of the example's
      own tags, if there are tags. With a second judge also "second_score".
    """
    rule = AGGREGATIONS[aggregations[0]]
    texts = [drop_thinking(text) for text in texts]
    judgements = judges.first(examples, texts, rule.verdict)
    others = [None] * len(texts) if judges.second is None else judges.second(examples, texts, rule.verdict)
    records = []
    for example, one, other in zip(examples, judgements, others, strict=True):
        record: dict[str, Any] = dict(_scores(example, one, aggregations))
        if other is not None:
            record["second_score"] = _number(rule.score(rubric_of(example).criteria, other.met))
        record["verdicts"] = _verdicts(example, one, other)
        if tags := _tag_scores(example, one.met, rule):
            record["tag_scores"] = tags
        records.append(record)
    return records


def summary(
    scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]], aggregations: Sequence[str]
) -> dict[str, Any]:
    """A set's summary with what its verdicts say.

    Args:
      scores: the set's summary, of `table.summarise`.
      records: of `graded`, each with the "id" of its question, whose records follow each other.
      aggregations: as in `graded`.

    Returns:
      The summary, its rubric score clipped where the rule clips means, and
        "classes": class -> its number of judged criteria, and the mean of their verdicts; of a Pitfall the share of faults made;
        "tags": tag -> the mean of its scores and their number, if there are tags;
        "agreement", if a second judge was asked: the number of criteria that both judged, the share with the same verdict, Cohen's
          kappa, and its 95% interval over questions.
    """
    rule = AGGREGATIONS[aggregations[0]]
    clip = (lambda value: min(max(value, 0.0), 1.0)) if rule.clips_mean else (lambda value: value)
    found = dict(scores)
    if found.get("rubric_score") is not None:
        found["rubric_score"] = clip(found["rubric_score"])
        found["rubric_score_interval"] = [clip(end) for end in found["rubric_score_interval"]]
    found["classes"] = _classes([verdict for record in records for verdict in record["verdicts"]])
    if tags := _tags(records):
        found["tags"] = {
            tag: {"rubric_score": clip(float(np.mean(scores))), "answers": len(scores)} for tag, scores in tags.items()
        }
    if any("second_score" in record for record in records):
        found["agreement"] = _agreement(records, _CATEGORIES[rule.verdict])
    return found


def _scores(example: Example, judgement: Judgement, aggregations: Sequence[str]) -> dict[str, float]:
    criteria = rubric_of(example).criteria
    names = ("rubric_score", *(f"{name}_score" for name in aggregations[1:]))
    scores = {
        name: _number(AGGREGATIONS[rule].score(criteria, judgement.met))
        for name, rule in zip(names, aggregations, strict=True)
    }
    return scores | {"judged": 1.0 - judgement.unjudged / max(len(judgement.met), 1)}


def _number(score: float | None) -> float:
    return float("nan") if score is None else score


def _verdicts(example: Example, judgement: Judgement, other: Judgement | None) -> list[dict[str, Any]]:
    criteria = rubric_of(example).criteria
    records = [
        {"criterion": c.description, "class": c.kind, "weight": c.weight, "met": _plain(met), "reason": reason}
        for c, met, reason in zip(criteria, judgement.met, judgement.reasons, strict=True)
    ]
    if other is None:
        return records
    return [one | {"second_met": _plain(met)} for one, met in zip(records, other.met, strict=True)]


def _plain(met: float | None) -> float | None:
    return None if met is None else float(met)


def _tag_scores(example: Example, met: Sequence[float | None], rule: Aggregation) -> dict[str, float]:
    """The score under the criteria of each tag; an example's own tags have the score under all, as in HealthBench."""
    criteria = rubric_of(example).criteria
    tagged: dict[str, list[int]] = {tag: list(range(len(criteria))) for tag in _names(example.extra, "example_tags")}
    for i, criterion in enumerate(criteria):
        for tag in _tags_of(criterion):
            tagged.setdefault(tag, []).append(i)
    scores = {tag: rule.score([criteria[i] for i in at], [met[i] for i in at]) for tag, at in tagged.items()}
    return {tag: score for tag, score in scores.items() if score is not None}


def _tags_of(criterion: Criterion) -> list[str]:
    return _names(criterion.extra, "tags")


def _names(extra: Mapping[str, Any], key: str) -> list[str]:
    """The texts in a list; other data have something else under such keys."""
    value = extra.get(key)
    return list(dict.fromkeys(tag for tag in value if isinstance(tag, str))) if isinstance(value, (list, tuple)) else []


def _classes(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found = {
        kind: [one["met"] for one in verdicts if one["class"] == kind and one["met"] is not None] for kind in KINDS
    }
    return {kind: {"criteria": len(met), "met": float(np.mean(met))} for kind, met in found.items() if met}


def _tags(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        for tag, score in record.get("tag_scores", {}).items():
            found.setdefault(tag, []).append(score)
    return dict(sorted(found.items()))


def _agreement(records: Sequence[Mapping[str, Any]], categories: Sequence[float]) -> dict[str, Any]:
    tables = []
    for _, answers in itertools.groupby(records, key=lambda record: record["id"]):
        verdicts = [(v["met"], v["second_met"]) for record in answers for v in record["verdicts"]]
        pairs = [(categories.index(a), categories.index(b)) for a, b in verdicts if a is not None and b is not None]
        tables.append(agreement.table_of(pairs, len(categories)))
    of_questions = np.stack(tables)
    table = of_questions.sum(axis=0)
    return {
        "criteria": int(table.sum()),
        "same": agreement.agreement(table),
        "kappa": agreement.kappa(table),
        "kappa_interval": agreement.kappa_interval(of_questions),
    }
