"""From a workdir, also of an older run, to what the page shows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rcsd_jax.checkpoints.directory import resolve
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data.examples import Example, asked_text
from rcsd_jax.evaluate.questions import evaluation_questions
from rcsd_jax.evaluate.table import NOT_SCORES
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, read_json, write_json
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.report.scored_completions import ROLES, has_weights, scored_completions
from rcsd_jax.report.summary import SCORE_NAMES
from rcsd_jax.rubrics import parsing
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.run import provenance
from rcsd_jax.settings import keys
from rcsd_jax.settings.stage import Settings
from rcsd_jax.settings.unpack import settings_of

EXAMPLES = 24  # questions that are shown
RUBRICS = 100
_FORMAT = 3  # of `report_tokens.json`; the second had the target in the place of the teacher


def collect(workdir: AnyPath, *, tokens: bool = True, console: Console | None = None) -> dict[str, Any]:
    """What `page.render` takes, from a workdir of one stage or of several.

    Args:
      workdir: a run's folder.
      tokens: score the shown completions token by token, which loads weights; the scores are kept with the run.
      console: where to say what takes its time, or None.

    Raises:
      UserError: there is no run in it, or a file of it cannot be read.
    """
    folders = stage_folders(workdir)
    stages = [_stage(folder, name, tokens, console) for name, folder in folders]
    starts = [start for _, folder in folders for start in provenance.starts(folder)]
    return {
        "title": workdir.name,
        "commands": list(dict.fromkeys(start["command"] for start in starts)),
        "made": starts[-1]["at"] if starts else datetime.datetime.now().isoformat(" ", "minutes"),
        "versions": starts[-1]["versions"] if starts else {},
        "stages": stages,
    }


def stage_folders(workdir: AnyPath) -> list[tuple[str, AnyPath]]:
    """Name and folder of every stage, in the order in which they ran."""
    if (workdir / "config.json").exists():
        return [("", workdir)]
    below = [path for path in workdir.iterdir() if (path / "config.json").exists()] if workdir.exists() else []
    if not below:
        remedy = "name the --workdir of a run"
        raise UserError("no run in it: there is no config.json, nor one in a folder below", file=workdir, remedy=remedy)
    return [(path.name, path) for path in sorted(below, key=lambda path: path.name)]


def _stage(folder: AnyPath, name: str, tokens: bool, console: Console | None) -> dict[str, Any]:
    keyed = keys.with_defaults(read_json(folder / "config.json"))
    config = settings_of(keyed)
    rows = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    columns = dict.fromkeys(key for row in rows for key in row)
    records = {role: _completions(folder, role) for role in ROLES}
    asked = _asked(config) if any(records.values()) else {}
    flat, standard = keys.flat(keyed), keys.flat(keys.stage())
    return {
        "name": name,
        "task": config.task,
        "config": flat,
        "config_changed": [key for key in flat if flat[key] != standard.get(key)],
        "evaluation": {
            path.stem.removeprefix("evaluation_"): read_json(path) for path in sorted(folder.glob("evaluation_*.json"))
        },
        "metrics": {column: [row.get(column) for row in rows] for column in columns},
        "lengths": {role: [r["length"] for r in found if r["mode"] == _mode(found)] for role, found in records.items()},
        "examples": _examples(config, folder, records, asked, tokens, console),
        "rubrics": _rubrics(config, records["trained"], asked),
    }


def _examples(
    config: Settings,
    folder: AnyPath,
    records: Mapping[str, list[dict]],
    asked: Mapping[tuple[str, str], Example],
    tokens: bool,
    console: Console | None,
) -> list[dict[str, Any]]:
    written: dict[tuple[str, str], dict[str, dict]] = {}
    for role, found in records.items():
        for record in found:
            if record["mode"] == _mode(found) and record.get("sample", 0) == 0:
                written.setdefault((record["split"], record["id"]), {})[role] = record
    # Of every split as many, from its beginning, but only what is still where the run read it.
    splits = list(dict.fromkeys(split for split, _ in written))
    share = -(-EXAMPLES // max(len(splits), 1))
    chosen = [
        key
        for split in splits
        for key in _chosen({k: written[k] for k in written if k[0] == split and k in asked}, share)
    ]
    texts = [{role: (r["text"], r["cut"]) for role, r in written[key].items()} for key in chosen]
    scored = _scored(config, folder, chosen, [asked[key] for key in chosen], texts, console) if tokens else None
    return [
        {
            "id": example.id,
            "split": split,
            "question": asked_text(example),
            "brief": example.question,  # of a conversation, in which rows may begin alike, the last turn
            "reference": example.reference,
            "rubric": _criteria(example.rubric),
            "completions": [
                {"role": role, "text": r["text"], "cut": r["cut"], "scores": _scores(r)}
                | (scored[i].get(role, {}) if scored else {})
                for role, r in written[split, id].items()
            ],
        }
        for i, ((split, id), example) in enumerate(zip(chosen, [asked[key] for key in chosen], strict=True))
    ]


def _chosen(written: Mapping[tuple[str, str], Mapping[str, dict]], count: int) -> list[tuple[str, str]]:
    """The first `count`. If none of these has a wrong base and a right trained student, one that has replaces the last."""
    first = list(written)[:count]
    gained = [key for key, of_roles in written.items() if _score(of_roles, "base") < 1 <= _score(of_roles, "trained")]
    return first if not gained or gained[0] in first else [*first[:-1], gained[0]]


def _score(of_roles: Mapping[str, dict], role: str) -> float:
    """The main score of a role's completion, NaN where it has none."""
    scores = _scores(of_roles.get(role, {}))
    return next((scores[name] for name in ("accuracy", *SCORE_NAMES) if scores.get(name) is not None), math.nan)


def _asked(config: Settings) -> dict[tuple[str, str], Example]:
    """(split, id) -> example, as far as the data can still be read."""
    tokenizer = load_tokenizer(resolve(config.model.path))
    roles = tuple(role for role in config.eval.roles if role != "teacher") or ("base",)
    wanted = dataclasses.replace(config.eval, roles=roles)
    try:
        questions = evaluation_questions(
            wanted, config.reading(), config.evaluation_encoding, config.limits, tokenizer, say=lambda line: None
        )  # the run said it
    except UserError:
        return {}
    return {(split, e.id): e for splits in questions.values() for split, q in splits.items() for e in q.examples}


def _scored(
    config: Settings,
    folder: AnyPath,
    chosen: Sequence[tuple[str, str]],
    examples: Sequence[Example],
    texts: Sequence[Mapping[str, tuple[str, bool]]],
    console: Console | None,
) -> list[dict[str, Any]] | None:
    """Kept in `report_tokens.json`: weights are read once."""
    kept = folder / "report_tokens.json"
    made_for = {"format": _FORMAT, "examples": [list(key) for key in chosen]}
    if kept.exists() and (found := read_json(kept)).items() >= made_for.items():
        return found["completions"]
    if config.teacher.attempts or not chosen:
        return None  # this teacher's context is known only during training
    lacking = [name for name in config.encoding.teacher.fields if any(getattr(e, name) is None for e in examples)]
    if lacking or not has_weights(config, folder):
        return None
    if console is not None:
        console.print(f"report: scoring {sum(map(len, texts))} completions of {folder}", soft_wrap=True)
    found = scored_completions(config, folder, list(zip(examples, texts, strict=True)))
    write_json(kept, made_for | {"completions": found})
    return found


def _rubrics(
    config: Settings, records: Sequence[Mapping[str, Any]], asked: Mapping[tuple[str, str], Example]
) -> list[dict[str, Any]]:
    """For a run that learns to write rubrics: its rubrics in evaluation, next to the true ones."""
    if config.task != "write_rubric":
        return []
    bounds = dict(min_criteria=1, max_criteria=10**6)  # as the grader reads them
    found = []
    for record in records:
        if record["mode"] != "sampled" or record.get("sample", 0) or (record["split"], record["id"]) not in asked:
            continue
        example, parsed = asked[record["split"], record["id"]], parsing.parse(record["text"], **bounds)
        found.append(
            {
                "id": example.id,
                "question": asked_text(example),
                "brief": example.question,
                "truth": _criteria(example.rubric),
                "written": None if parsed.rubric is None else _criteria(parsed.rubric),
                "status": parsed.status,
                "text": record["text"],
            }
        )
    return found[:RUBRICS]


def _completions(folder: AnyPath, role: str) -> list[dict[str, Any]]:
    path = folder / f"completions_{role}.jsonl"
    lines = (
        path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    )  # a text may hold what `splitlines` breaks at
    return [json.loads(line) for line in lines if line]


def _mode(records: Sequence[Mapping[str, Any]]) -> str:
    return "sampled" if any(r["mode"] == "sampled" for r in records) else "greedy"


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    apart = ("split", "mode", *NOT_SCORES)
    return {name: value for name, value in record.items() if name not in apart}


def _criteria(rubric: Rubric | None) -> list[dict[str, Any]]:
    if rubric is None:
        return []
    return [
        {"title": c.title, "description": c.description, "weight": c.weight, "kind": c.kind} for c in rubric.criteria
    ]
