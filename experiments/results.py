"""What tables need of a finished run, as a small JSON file: so a table that takes several sittings outlives its workdirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.cells import Cell
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path, read_json, write_json
from rcsd_jax.settings import keys

METRICS = ("step", "loss", "student_entropy", "completion_length", "completion_tokens", "step_seconds")
"""The metrics of a step that are kept."""
_DIGITS = 6


def write(path: Path, cell: Cell, config: ConfigDict) -> None:
    """Writes a run's scores and the metrics of its steps, without its completions.

    Args:
      path: the file.
      cell: the run's results.
      config: the run's configuration; of its model and data only the names are kept, for their folders differ from machine to machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = [{key: round(step[key], _DIGITS) for key in METRICS if key in step} for step in cell.metrics]
    kept = {"config": _settings(config), "seed": cell.seed, "scores": cell.scores, "metrics": metrics}
    write_json(as_path(path), kept)


def read(path: Path, config: ConfigDict) -> Cell:
    """The results that `write` wrote, with no completions.

    Raises:
      UserError: they are of a run with another configuration.
    """
    kept = read_json(as_path(path))
    had = keys.flat(keys.stage()) | kept["config"]  # keys that are newer than the file have their defaults
    if changed := keys.differences(had, _settings(config)):
        raise UserError(
            f"holds a run with other settings: {', '.join(changed)}",
            remedy="give another folder with --results, or delete the file",
            file=path,
        )
    return Cell(kept["scores"], [], kept["metrics"], kept["seed"])


def _settings(config: ConfigDict) -> dict[str, Any]:
    """All settings by their dotted keys, so that another default does not pass for the one of the run."""
    found = keys.flat(config)
    places = {key for key in found if key in ("model.path", "data.path") or key.startswith("eval.splits.")}
    return found | {key: Path(found[key]).name for key in places}
