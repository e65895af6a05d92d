"""The files of an evaluation: `evaluation_<label>.json` with scores, `completions_<label>.jsonl` with the graded texts.

A label is a role, or `step_<n>` for the student after n steps. Scores are stored by set and mode ("sampled", "greedy").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rcsd_jax.host.files import AnyPath, read_json, write_json, write_text

KINDS = ("evaluation_", "completions_", "unfinished_")
"""The prefixes of these files' names; the last is for the completions of an unfinished evaluation."""


def write(workdir: AnyPath, label: str, scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Adds `scores`, set -> mode -> scores, and their graded texts to the files, which keep other sets and modes."""
    path, texts = _paths(workdir, label)
    held = read_json(path) if path.exists() else {}
    kept = [record for record in (_records(texts) if held else []) if record["mode"] in held.get(record["split"], {})]
    # The scores come last: after a kill, texts without scores belong to no set in `held`.
    write_text(texts, _lines([*kept, *records]))
    write_json(path, {split: held.get(split, {}) | scores.get(split, {}) for split in dict.fromkeys([*held, *scores])})


def labels(workdir: AnyPath, stale: Callable[[str, str], bool]) -> list[str]:
    """The labels with scores for which `stale(set, mode)` is true."""
    found = sorted(path.stem.removeprefix("evaluation_") for path in workdir.glob("evaluation_*.json"))
    return [label for label in found if any(stale(*unit) for unit in _units(read_json(_paths(workdir, label)[0])))]


def set_aside(workdir: AnyPath, stale: Callable[[str, str], bool]) -> AnyPath:
    """Copies the files with scores for which `stale(set, mode)` is true, and the config, to a new folder `earlier_<n>`.

    Then removes those scores and their graded texts from the workdir. Returns the folder.
    """
    number = 1
    while (earlier := workdir / f"earlier_{number}").exists():
        number += 1
    earlier.mkdir(parents=True)
    write_text(earlier / "config.json", (workdir / "config.json").read_text(encoding="utf-8"))
    for label in labels(workdir, stale):
        path, texts = _paths(workdir, label)
        for file in (path, texts):
            if file.exists():
                write_text(earlier / file.name, file.read_text(encoding="utf-8"))
        held = read_json(path)
        left: dict[str, Any] = {}
        for split, mode in _units(held):
            if not stale(split, mode):
                left.setdefault(split, {})[mode] = held[split][mode]
        kept = [record for record in _records(texts) if record["mode"] in left.get(record["split"], {})]
        if left:
            write_json(path, left)
            write_text(texts, _lines(kept))
        else:
            path.unlink()
            texts.unlink(missing_ok=True)
    return earlier


def of_last_step(workdir: AnyPath, step: int) -> None:
    """Renames the last step's files to those of `step`, because the run continues beyond it."""
    for before, after in zip(_paths(workdir, "trained"), _paths(workdir, f"step_{step}"), strict=True):
        if before.exists():
            before.replace(after)
    (workdir / "unfinished_trained.jsonl").unlink(missing_ok=True)


def _paths(workdir: AnyPath, label: str) -> tuple[AnyPath, AnyPath]:
    return workdir / f"evaluation_{label}.json", workdir / f"completions_{label}.jsonl"


def _units(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    return ((split, mode) for split, modes in scores.items() for mode in modes)


def _records(path: AnyPath) -> list[dict[str, Any]]:
    """Not by `splitlines`, which also breaks at other characters that a text may hold."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line]


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"
