"""Decides what a later start of a run may change, and which results are then made again.

A workdir belongs to the config in its `config.json`. Another start of the run may have other values for the keys that do not
decide what is learned. `settings.decides` says what depends on each key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcsd_jax.evaluate import results
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path, read_json, write_text
from rcsd_jax.run import checkpoints
from rcsd_jax.settings import keys
from rcsd_jax.settings.decides import at, decides

READ = (("model", "path"), ("data", "path"), ("rubric", "writer"), ("teacher", "path"))
"""Where a stage may name what an earlier one wrote; `teacher.paths` may too."""


def begin(workdir: AnyPath, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Compares the run's config with the workdir's, and replaces the workdir's if this changes no result.

    Returns:
      The changed keys that results depend on. Call `apply` for them once the input is known to be good.

    Raises:
      UserError: the workdir belongs to a run that learns something else; it cannot be made longer or shorter; or what it
        would go on from is gone.
    """
    path = workdir / "config.json"
    if not path.exists() or not _has_results(workdir):
        write_text(path, keys.to_json(config))
        return ()
    ours, theirs = _both(workdir, config)
    changed = keys.differences(ours, theirs)
    others = [key for key in changed if decides(key, ours) == "learning"]
    if others:
        raise UserError(
            f"the workdir belongs to a run with another config; they differ in {', '.join(others[:5])}",
            file=path,
            remedy="choose another --workdir, or delete this one to start anew",
        )
    with_effect = tuple(key for key in changed if decides(key, ours) != "nothing")
    if with_effect:
        _check_steps(workdir, ours, theirs)
    elif changed:
        write_text(path, keys.to_json(config))
    return with_effect


def _check_steps(workdir: AnyPath, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    steps, before = ours["train"]["steps"], theirs["train"]["steps"]
    done = checkpoints.newest_step(workdir / "checkpoints")
    if not done and (workdir / "summary.json").exists() and (workdir / "metrics.jsonl").exists():
        raise UserError(
            "the run is complete and its checkpoints are gone, so it cannot continue from its last step",
            file=workdir / "checkpoints",
            remedy="restore them, choose another --workdir, or give its export to python -m rcsd_jax.evaluate",
        )
    if steps == before or not done:
        return
    where: dict[str, Any] = dict(file=workdir / "config.json", field="train.steps", value=steps)
    if (schedule := ours["optimizer"]["schedule"]) != "constant":
        raise UserError(
            f"the learning rates of the {done} steps already made depend on it: optimizer.schedule={schedule} falls to 0 at the "
            f"last step, which was {before}",
            remedy=f"set it to {before}, or choose another --workdir to start anew",
            **where,
        )
    if steps < done:
        raise UserError(
            f"{done} steps were already made",
            remedy=f"set at least {done}, or choose another --workdir to start anew",
            **where,
        )


def apply(workdir: AnyPath, config: Mapping[str, Any]) -> str:
    """Removes results that do not fit this config, and makes it the workdir's; returns the changes in words.

    The config is written last: a start that is killed in here is repeated by the next.
    """
    ours, theirs = _both(workdir, config)
    changed = keys.differences(ours, theirs)
    (workdir / "summary.json").unlink(missing_ok=True)  # from here on the run is not complete
    (workdir / "report_tokens.json").unlink(missing_ok=True)
    if "train.steps" in changed:
        results.of_last_step(workdir, theirs["train"]["steps"])
    stale = _stale(changed, theirs)
    if results.labels(workdir, stale):
        results.set_aside(workdir, stale)
    write_text(workdir / "config.json", keys.to_json(config))
    told = [key for key in changed if decides(key, ours) != "nothing"]
    return ", ".join(f"{key} is {at(ours, key)!r} and was {at(theirs, key)!r}" for key in told)


def _stale(changed: Sequence[str], before: Mapping[str, Any]) -> Callable[[str, str], bool]:
    """Whether the scores of a (set, mode) depend on a changed key."""
    asked: Mapping[str, Any] = at(before, "eval.benchmarks") or {}
    benchmarks = {name for name, path in asked.items() if path is not None and name in BENCHMARKS}

    def hangs_on(key: str, split: str, mode: str) -> bool:
        grader = BENCHMARKS[split].grader if split in benchmarks else before["eval"]["grader"]
        return {
            "scores": True,
            "scores of own sets": split not in benchmarks,
            "scores of a set": split == ("eval" if key == "eval.path" else key.rpartition(".")[2]),
            "scores of samples": mode == "sampled",
            "scores by a judge": grader == "judge",
            "agreement of judges": grader == "judge",
        }.get(decides(key, before), False)

    return lambda split, mode: any(hangs_on(key, split, mode) for key in changed)


def check_later_stages(stages: Sequence[tuple[str, Mapping[str, Any]]], workdir: AnyPath) -> None:
    """Raises UserError if a stage would write other weights than those from which a later stage began."""
    for i, (name, stage) in enumerate(stages):
        if not (workdir / name / "config.json").exists():
            continue
        changed = keys.differences(*_both(workdir / name, stage))
        for key in [key for key in changed if key in ("train.steps", "export.dtype")]:
            for later, other in stages[i + 1 :]:
                named = [other[section][field] for section, field in READ] + list(other["teacher"]["paths"].values())
                read = [str(as_path(path)) for path in named]
                if any(path.startswith(f"{workdir / name}/") for path in read) and _has_results(workdir / later):
                    raise UserError(
                        f"{later} began with what {name} wrote before, and would have to begin anew",
                        file=workdir / later,
                        field=f"{name}.{key}",
                        value=at(json.loads(keys.to_json(stage)), key),
                        remedy=f"move this folder away or delete it, and the same command runs {later} again",
                    )


def _has_results(workdir: AnyPath) -> bool:
    """Whether anything was made under the workdir's config. Rubrics and verdicts do not count, because they have their own keys."""
    if not workdir.exists():
        return False
    made = ("summary.json", "metrics.jsonl", "export", "adapter")
    kept = any(path.name in made or path.name.startswith(results.KINDS) for path in workdir.iterdir())
    return kept or checkpoints.newest_step(workdir / "checkpoints") > 0


def _both(workdir: AnyPath, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's config and the workdir's, as plain dicts."""
    return json.loads(keys.to_json(config)), read_json(workdir / "config.json")
