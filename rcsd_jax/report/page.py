"""The page of a run: one self-contained HTML file, made from one JSON-able dict."""

from __future__ import annotations

import base64
import collections
import functools
import hashlib
import importlib.resources
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np

from rcsd_jax.methods import METHODS
from rcsd_jax.report.summary import ROLE_NAMES, SCORE_NAMES
from rcsd_jax.rubrics.schema import normalised

_FLOATS = ("divergence", "student_log_prob", "teacher_log_prob", "weight")
_OF_TARGET = ("target_log_prob", "target_divergence")  # of a target that is not the teacher
_TOPS = ("student_top", "teacher_top", "target_top")
_OF_TOKENS = ("tokens", *_FLOATS, *_OF_TARGET, *_TOPS, "attribution")
_STATUSES = ("strict", "salvaged", "rejected")
_NONE = -32768  # stands for a missing number
_MILLI, _PER_PROBABILITY = 1000, 10_000
# The parts of the script, in their order.
_SCRIPT = ("elements", "theme", "charts", "scores", "tooltip", "completion", "examples", "navigation")
_SIMILAR = 0.5  # share of common words from which two criteria are shown next to each other
_METHODS = {
    "self_distillation": "Self-distillation",
    "self_distillation_and_grpo": "Self-distillation and GRPO",
    "grpo": "GRPO",
    "sft": "Fine-tuning on references",
    "fixed_advantage": "A fixed negative advantage, as a control,",
    "rlcsd": "GRPO with contrasted hints",
}
_COUNTS = ("questions", "samples", "length", "thought_length")


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML.

    Results, rubrics and settings are in its markup. Its script draws curves, histograms and completions from three kinds
    of data blocks, so that a page of many completions opens at once:

      `data`     JSON: the small data.
      `pieces`   JSON: every distinct piece of a token; blocks refer to pieces by index.
      `tokens-N` one for each scored completion: base64 of zlib of little-endian arrays one after the other.
        Pieces [T] and likeliest pieces [R, T, M] are uint16, uint32 if there are more than 65536; then, as int16, divergence,
        student's and teacher's log-probability and the factor of the token's weight [4, T] in thousandths, the target's
        log-probability and its divergence from the teacher [2, T] in thousandths, probabilities [R, T, M] of 10000, and
        attribution [K, T] in thousandths of a nat. R is 3: student, teacher, target. Where the target is the teacher, its
        two rows are left out, and R is 2. -32768 stands for a missing number; others end at +-32.767 nats.

    Args:
      data: title, commands, made, versions and stages as `collect.collect` gives them. Missing or empty parts of a stage are
        left out. Numbers that are not finite count as missing.

    Raises:
      ValueError: a completion has not one score per token, or its attribution has not one row per criterion.
    """
    pieces: dict[str, int] = {}
    blocks: list[list[np.ndarray]] = []
    stages = [_stage(stage, pieces, blocks) for stage in data.get("stages") or ()]
    id_type = np.dtype("<u2" if len(pieces) <= 2**16 else "<u4")
    small = {
        "idBytes": id_type.itemsize,
        "scoreNames": SCORE_NAMES,
        "stages": [stage["drawn"] for stage in stages],
    }
    script, style = _script(), _beside("report.css")
    page = _template().render(
        title=data.get("title") or "report",
        made=data.get("made"),
        commands=data.get("commands") or (),
        versions=data.get("versions") or {},
        stages=stages,
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_json(small),
        pieces=_json(list(pieces)),
        blocks=(markupsafe.Markup(_packed(arrays, id_type)) for arrays in blocks),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # a file cannot hold half of a surrogate pair


def _script() -> str:
    """The parts of the script, in their order, with one scope of their own."""
    parts = "\n".join(_beside(f"script/{name}.js") for name in _SCRIPT)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _beside(name: str) -> str:
    return importlib.resources.files("rcsd_jax.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_beside("template.html.j2"))


def _json(value: Any) -> markupsafe.Markup:
    """JSON that is safe inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, (list, tuple)) else value


def _stage(stage: Mapping[str, Any], pieces: dict[str, int], blocks: list[list[np.ndarray]]) -> dict[str, Any]:
    """A stage's data for the template and, under "drawn", for the script."""
    examples = [_example(example, pieces, blocks) for example in stage.get("examples") or ()]
    stage = _finite({key: value for key, value in stage.items() if key != "examples"})
    evaluation, config = stage.get("evaluation") or {}, stage.get("config") or {}
    score = next((s for s in SCORE_NAMES if any(s in x for *_, x in _cells(evaluation))), None)
    labels = {role: _label(role, config) for role in (*evaluation, *ROLE_NAMES)}
    changed = [key for key in stage.get("config_changed") or () if key in config]
    curves = {name: values for name, values in (stage.get("metrics") or {}).items() if values}
    lengths = {role: values for role, values in (stage.get("lengths") or {}).items() if values}
    rubrics = [_rubric(rubric) for rubric in stage.get("rubrics") or ()]
    statuses = collections.Counter(rubric["status"] for rubric in rubrics)
    name = stage.get("name") or ""
    return {
        "name": name,
        "what": _what(config, trained=bool(curves) or "trained" in evaluation),
        "task": {"solve": "solves", "write_rubric": "writes rubrics"}.get(stage.get("task") or "", ""),
        "headline": _headline(evaluation, score, labels),
        "numbers": _numbers(evaluation, labels),
        "has_curves": len(curves.get("step") or ()) > 0 or bool(lengths),
        "examples": len(examples),
        "rubrics": rubrics,
        "statuses": sorted(statuses.items(), key=lambda item: (*_STATUSES, item[0]).index(item[0])),
        "changed": [(key, _shown(config[key])) for key in changed],
        "unchanged": [(key, _shown(config[key])) for key in config if key not in changed],
        "drawn": {
            "name": name,
            "score": score,
            "labels": labels,
            "evaluation": evaluation,
            "metrics": curves,
            "lengths": lengths,
            "examples": examples,
            "views": _views(examples),
            "hasTeacher": METHODS[method].teacher if (method := config.get("method")) in METHODS else True,
        },
    }


def _views(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the colour of a token can show: the divergence, and weights and targets if they say something in one of the examples."""
    completions = [c for example in examples for c in example["completions"]]
    weighted, targeted = (any(c.get(key) for c in completions) for key in ("weighted", "targeted"))
    return ["divergence", *["weight"] * weighted, *["target"] * targeted]


def _what(config: Mapping[str, Any], *, trained: bool) -> str:
    """A line that says which model was trained or evaluated, how, and on which data; empty if the config is unknown."""
    if not config.get("model.path"):
        return ""
    model = "/".join(str(config["model.path"]).rstrip("/").split("/")[-2:])
    if not trained:
        return f"Evaluation of {model}"
    task = " to write rubrics" if config.get("task") == "write_rubric" else ""
    rank, fields = config.get("lora.rank"), config.get("teacher.fields") or ()
    parts = [
        f"{_METHODS.get(config.get('method', ''), 'Training')} of {model}{task}",
        f"LoRA of rank {rank}" if rank else "all weights",
    ]
    if "distillation" in config.get("method", ""):
        parts.append(f"the teacher sees {' + '.join(map(str, fields))}")
    steps, batch, data = config.get("train.steps"), config.get("train.batch_size"), config.get("data.path")
    if (epochs := config.get("train.epochs")) and batch:
        parts.append(f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'} in steps of {batch} completions")
    elif steps and batch:
        parts.append(f"{steps} {'step' if steps == 1 else 'steps'} of {batch} completions")
    return ", ".join(parts) + (f", on {str(data).split('/')[-1]}" if data else "")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _label(role: str, config: Mapping[str, Any]) -> str:
    """'after 20 steps', 'teacher (reference + rubric)', 'trained student'."""
    if found := re.fullmatch(r"step_(\d+)", role):
        return f"after {found[1]} steps"
    fields = config.get("teacher.fields")
    seen = " + ".join(map(str, fields)) if isinstance(fields, list) else str(fields or "")
    return ROLE_NAMES.get(role, role).format(seen).removesuffix(" ()")


# ---------------------------------------------------------------------------------------------------- results


def _cells(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(role, split, mode, scores), students in the order of their training and the teacher last."""

    def place(role: str) -> tuple[int, int]:
        step = re.fullmatch(r"step_(\d+)", role)
        return (1, int(step[1])) if step else ({"base": 0, "trained": 2, "teacher": 3}.get(role, 4), 0)

    for role in sorted(evaluation, key=place):
        for split, modes in evaluation[role].items():
            for mode, scores in modes.items():
                yield role, split, mode, scores


def _headline(evaluation: Mapping[str, Any], score: str | None, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Roles x (split, mode) of the main score, in percent. Of the students during training, only those that are best somewhere."""
    if score is None:
        return None
    cells = {(role, split, mode): scores for role, split, mode, scores in _cells(evaluation)}
    columns = list(dict.fromkeys((split, mode) for _, split, mode in cells))
    roles = list(dict.fromkeys(role for role, *_ in cells))
    means = {place: scores[score] for place, scores in cells.items() if scores.get(score) is not None}
    students = [role for role in roles if role != "teacher"]
    best = {c: max((means[r, *c] for r in students if (r, *c) in means), default=None) for c in columns}
    shown = [
        role
        for role in roles
        if not role.startswith("step_")
        or any(best[c] is not None and means.get((role, *c)) == best[c] for c in columns)
    ]

    def cell(role: str, column: tuple[str, str]) -> dict[str, Any] | None:
        mean = means.get((role, *column))
        if mean is None:
            return None
        scores = cells[role, *column]
        interval, stderr = scores.get(f"{score}_interval"), scores.get(f"{score}_stderr")
        low, high = interval or ([mean - 1.96 * stderr, mean + 1.96 * stderr] if stderr is not None else [mean, mean])
        base = means.get(("base", *column))
        gain = None if base is None or role in ("base", "teacher") else 100 * (mean - base)
        return {
            "mean": f"{100 * mean:.1f}",
            "range": f"{100 * low:.1f} – {100 * high:.1f}" if interval else f"± {100 * (stderr or 0):.1f}",
            "low": 100 * max(low, 0),
            "width": 100 * max(min(high, 1) - max(low, 0), 0),
            "at": 100 * min(max(mean, 0), 1),
            "gain": None if gain is None else f"{gain:+.1f}".replace("-", "−"),
            "better": gain is not None and gain >= 0,
            "best": role in students and mean == best[column],
        }

    def asked(column: tuple[str, str]) -> str:
        scores = next(cells[role, *column] for role in roles if (role, *column) in cells)
        questions = f"{scores['questions']} questions" if "questions" in scores else ""
        return f"{questions}, {scores['samples']} answers each" if scores.get("samples", 1) > 1 else questions

    intervals = any(scores.get(f"{score}_interval") for scores in cells.values())
    return {
        "score": SCORE_NAMES[score],
        "spread": ", with 95% interval" if intervals else " ± standard error",
        "columns": [{"split": s.replace("_", " "), "mode": m, "asked": asked((s, m))} for s, m in columns],
        "rows": [{"role": r, "label": labels[r], "cells": [cell(r, c) for c in columns]} for r in shown],
    }


def _numbers(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Every number of every role, split and mode; shares in percent."""
    cells = list(_cells(evaluation))
    known = dict.fromkeys(
        key
        for *_, scores in cells
        for key, value in scores.items()
        if not key.endswith(("_stderr", "_interval")) and not isinstance(value, Mapping)
    )
    if not known:
        return None
    last = ("length", "share_cut", "thought_length", "share_unended_thoughts", "parsed", "ungraded")
    names = sorted(known, key=lambda key: (key != "questions", key in last))

    def shown(key: str, value: Any, stderr: Any) -> str:
        if not isinstance(value, (int, float)):
            return "–"
        if key in _COUNTS:
            return f"{value:.0f}"
        return f"{100 * value:.1f}" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")

    return {
        "columns": [SCORE_NAMES.get(key, key.replace("_", " ")) for key in names],
        "rows": [
            (labels[role], split.replace("_", " "), mode, [shown(k, s.get(k), s.get(f"{k}_stderr")) for k in names])
            for role, split, mode, s in cells
        ],
    }


# ---------------------------------------------------------------------------------------------------- rubrics


def _rubric(rubric: Mapping[str, Any]) -> dict[str, Any]:
    truth, written = rubric.get("truth") or [], rubric.get("written") or []
    rows = _aligned(truth, written)
    same = sum(row["match"] == "same" for row in rows)
    return {
        "id": str(rubric.get("id", "")),
        "question": rubric.get("question") or "",
        "brief": rubric.get("brief") or rubric.get("question") or "",
        "status": rubric.get("status") or "",
        "text": rubric.get("text") or "",
        "rejected": rubric.get("written") is None,
        "rows": rows,
        "same": same,
        "truth": len(truth),
        "written": len(written),
    }


def _aligned(truth: Sequence[Mapping], written: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Rows of a true and a written criterion: in the order of the true ones, then the remaining written ones.

    "same" asks for the same thing by the measure of `rubrics.scoring.f1`; "similar" shares at least half of its words.
    """
    keys = [[normalised(c.get("description") or "") for c in criteria] for criteria in (truth, written)]
    partner: dict[int, tuple[int, str]] = {}
    free = set(range(len(written)))
    for i, key in enumerate(keys[0]):
        if (j := next((j for j in sorted(free) if keys[1][j] == key), None)) is not None:
            partner[i] = (j, "same")
            free.discard(j)
    words = [[frozenset(re.findall(r"\w+", key)) for key in of_side] for of_side in keys]
    pairs = itertools.product([i for i in range(len(truth)) if i not in partner], sorted(free))
    alike = sorted(
        ((len(words[0][i] & words[1][j]) / max(len(words[0][i] | words[1][j]), 1), i, j) for i, j in pairs),
        key=lambda found: (-found[0], *found[1:]),
    )
    for share, i, j in alike:
        if share >= _SIMILAR and i not in partner and j in free:
            partner[i] = (j, "similar")
            free.discard(j)
    rows = [
        {"truth": c, "written": written[partner[i][0]], "match": partner[i][1]}
        if i in partner
        else {"truth": c, "written": None, "match": "missing"}
        for i, c in enumerate(truth)
    ]
    return rows + [{"truth": None, "written": written[j], "match": "extra"} for j in sorted(free)]


# ---------------------------------------------------------------------------------------------------- completions


def _example(example: Mapping[str, Any], pieces: dict[str, int], blocks: list[list[np.ndarray]]) -> dict[str, Any]:
    rubric = example.get("rubric") or []
    completions = []
    for completion in example.get("completions") or ():
        described = _finite({key: value for key, value in completion.items() if key not in _OF_TOKENS})
        if completion.get("tokens"):
            where = f"example {example.get('id')!r}, role {completion.get('role')!r}"
            arrays, shape = _arrays(completion, len(rubric), pieces, where)
            described = {key: x for key, x in described.items() if key != "text"} | shape | {"block": len(blocks)}
            blocks.append(arrays)
        completions.append(described)
    return _finite({key: x for key, x in example.items() if key != "completions"}) | {"completions": completions}


def _arrays(
    completion: Mapping[str, Any], criteria: int, pieces: dict[str, int], where: str
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays of a block, with ids as uint32; T, M and K; and whether it has a target, and weights that differ; see `render`."""
    tokens, attribution = completion["tokens"], completion.get("attribution") or []
    count = len(tokens)
    targeted = bool(completion.get("target_top"))
    floats, tops = (_FLOATS + _OF_TARGET, _TOPS) if targeted else (_FLOATS, _TOPS[:2])
    given = {name: completion.get(name) or [] for name in (*floats, *tops)}
    given |= {f"attribution[{k}]": row for k, row in enumerate(attribution)}
    for name, values in given.items():
        if len(values) not in ((count,) if name.startswith("attribution") else (0, count)):
            raise ValueError(f"{where}: {len(values)} of {name} for {count} tokens")
    if attribution and len(attribution) != criteria:
        raise ValueError(f"{where}: attribution to {len(attribution)} criteria of a rubric of {criteria}")
    ids = lambda strings: np.array([pieces.setdefault(s, len(pieces)) for s in strings], np.uint32)
    likeliest = [given[name] for name in tops]
    most = max((len(row) for top in likeliest for row in top), default=0)
    # Short rows are padded with entries that have no probability.
    filled = [
        e for top in likeliest for row in (top or [[]] * count) for e in (*row, *[("", None)] * (most - len(row)))
    ]
    columns = {name: _int16(given[name] or [None] * count, _MILLI) for name in floats}
    numbers = [
        *columns.values(),
        _int16([probability for _, probability in filled], _PER_PROBABILITY),
        *(_int16(row, _MILLI) for row in attribution),
    ]
    weighted = not bool(np.isin(columns["weight"], (_MILLI, _NONE)).all())
    shape = {"count": count, "most": most, "criteria": len(attribution), "targeted": targeted, "weighted": weighted}
    return [np.concatenate([ids(tokens), ids(piece for piece, _ in filled)]), np.concatenate(numbers)], shape


def _int16(values: Sequence[float | None], scale: int) -> np.ndarray:
    scaled = np.clip(np.array(values, np.float64) * scale, -32767, 32767)
    return np.where(np.isnan(scaled), _NONE, np.rint(np.nan_to_num(scaled))).astype("<i2")


def _packed(arrays: Sequence[np.ndarray], id_type: np.dtype) -> str:
    ids, numbers = arrays
    return base64.b64encode(zlib.compress(ids.astype(id_type).tobytes() + numbers.tobytes(), 6)).decode()
