"""What a run logs to the trackers that its config names, and how a later start finds the same runs there again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from rcsd_jax.data.examples import Example, asked_text
from rcsd_jax.host import multihost, trackers
from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.files import read_json, write_json
from rcsd_jax.host.trackers import Described, Rows, Tracker
from rcsd_jax.methods.contract import Completions
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run.environment import Run, Track
from rcsd_jax.sampling.sampler import completions_of
from rcsd_jax.settings.stage import Settings

_FILE = "trackers.json"
_ROWS = 16  # completions of a table


def check_installed(config: Settings, stage: str = "") -> None:
    """Raises UserError if a tracker of a stage's config is not installed in process 0, the only one that needs it."""

    def need_all() -> None:
        for name, project in config.log.trackers.items():
            _need_installed(name, project)

    try:
        multihost.agreed(need_all)
    except UserError as error:
        raise error.under(f"{stage}." if stage else "") from None


@contextlib.contextmanager
def tracked(run: Run, config: Mapping[str, Any]) -> Iterator[Track]:
    """Opens the run at its trackers while the context lasts, and yields the function that logs to all of them.

    Only process 0 logs. A later start goes on with the runs that `trackers.json` in the workdir names.

    Args:
      run: its config names the trackers.
      config: dotted key -> value, for the trackers to show.

    Raises:
      UserError: a tracker that the run never had cannot be opened. If the run had it before, a line says so instead.
    """
    opened: list[Tracker] = []

    def open_all() -> None:
        for name, project in run.config.log.trackers.items():
            if (tracker := _opened(name, project, run, config)) is not None:
                opened.append(tracker)

    complete = False
    try:
        if run.config.log.trackers:
            multihost.agreed(open_all)

        def log(step: int, scalars: Mapping[str, float], rows: Rows = ()) -> None:
            for tracker in opened:
                tracker.log(step, scalars, rows)

        yield log
        complete = True
    finally:
        for tracker in opened:
            tracker.close(complete=complete)


def _opened(name: str, project: str, run: Run, config: Mapping[str, Any]) -> Tracker | None:
    path = run.workdir / _FILE
    kept = read_json(path) if path.exists() else {}
    before = kept.get(name, {})
    id = before.get("id") if before.get("project") == project else None
    _need_installed(name, project)
    shown = run.workdir.name if run.name == "run" else f"{run.workdir.parent.name}-{run.name}"
    folder = run.workdir if isinstance(run.workdir, Path) else None
    try:
        opened = trackers.CLIENTS[name](Described(project, shown, config, folder, id))
    except Exception as error:  # of many types: each client has its own
        problem = f"{name} cannot be used ({type(error).__name__}: {first_line(error, 160)})"
        if id is None:
            raise _not_usable(name, project, problem) from error
        run.console.print(f"{run.name}: {problem}; the run goes on without it", soft_wrap=True)
        return None
    write_json(path, kept | {name: {"project": project, "id": opened.id}})
    return Tracker(name, opened, lambda line: run.console.print(f"{run.name}: {line}", soft_wrap=True))


def _need_installed(name: str, project: str) -> None:
    try:
        trackers.need_installed(name)
    except UserError as error:
        raise UserError(error.problem, field=f"log.{name}", value=project, remedy=error.remedy) from None


def _not_usable(name: str, project: str, problem: str) -> UserError:
    remedy = "log in, check its address, or leave it out"
    return UserError(problem, field=f"log.{name}", value=project, remedy=remedy)


def scores(role: str, evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """eval_<role>/<set>/<mode>/<score> -> value, of an evaluation's set -> mode -> scores; without errors, intervals and counts.

    Examples:
      >>> scores("student", {"eval": {"greedy": {"questions": 8, "accuracy": 0.5, "accuracy_stderr": 0.2}}})
      {'eval_student/eval/greedy/accuracy': 0.5}
    """
    return {
        f"eval_{role}/{split}/{mode}/{name}": float(value)
        for split, modes in evaluation.items()
        for mode, found in modes.items()
        for name, value in found.items()
        if isinstance(value, int | float) and name not in ("questions", "samples") and not name.endswith("_stderr")
    }


def table_due(step: int, config: Settings) -> bool:
    """Whether the completions of a step are shown in a table: not if they are the data's references."""
    log = config.log
    sampled = config.sampling.source != "reference"
    return bool(log.trackers) and sampled and log.completions_every > 0 and step % log.completions_every == 0


def completions_table(
    completions: Completions, row_loss: Any, examples: Sequence[Example], model: Model, eos_ids: Sequence[int]
) -> Rows:
    """The first completions of an update, as rows. All processes call it.

    Args:
      completions: of the update, on the mesh.
      row_loss: their summed losses [B].
      examples: their examples.
      model: decodes.
      eos_ids: the end tokens.
    """
    of_all = multihost_utils.process_allgather((completions.samples, completions.advantages, row_loss), tiled=True)
    samples, advantages, losses = of_all
    written = completions_of(samples, eos_ids)[:_ROWS]
    return [
        {
            "id": example.id,
            "question": asked_text(example),
            "completion": model.decode(one.tokens),
            "tokens": len(one.tokens),
            "cut": one.cut,
            "loss": float(loss),
            "advantage": float(advantage),
        }
        for example, one, loss, advantage in zip(examples, written, losses, np.asarray(advantages), strict=False)
    ]
