"""What the card of a run's model says, read from the run's workdir and from its base model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path, read_json
from rcsd_jax.report.collect import stage_folders
from rcsd_jax.run import provenance
from rcsd_jax.settings import keys

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
_FOLDERS = re.compile(r"(?<![\w:/.])(?:(?!https?:)\w+:/)?/(?:[^/,:#\s]+/)+")


class License(NamedTuple):
    """A license as the hub's metadata name it."""

    id: str
    name: str | None = None  # for an id "other"
    link: str | None = None


class Facts(NamedTuple):
    """A run's trained model.

    Attributes:
      folder: of the stage that trained it.
      stage: its name, "" if the run has only one.
      weights: the folder of what is shared: a model, or an adapter.
      adapter: whether it is an adapter.
      origin: the base model's path, as the run read it.
      base: its hub id, or the name of its folder.
      on_hub: whether `base` is a hub id.
      license: the base's, None if it says nothing.
      data: the paths of the rows, without the folders of this machine.
      config: dotted key -> value, of all keys, likewise.
      changed: those that differ from the defaults.
      evaluation: role -> set -> mode -> scores.
      versions: library -> version, of the last start.
    """

    folder: AnyPath
    stage: str
    weights: AnyPath
    adapter: bool
    origin: str
    base: str
    on_hub: bool
    license: License | None
    data: tuple[str, ...]
    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    versions: Mapping[str, str]


def facts_of(workdir: AnyPath, *, adapter: bool = False, base: str = "", license: str = "") -> Facts:
    """The facts about the model that a run trained; of several stages, about the last one's.

    Args:
      workdir: of a job, or of one stage.
      adapter: share the adapter even if there is a merged model.
      base: the base model's hub id, if the run read it from a folder.
      license: the license's id, if the base does not say it.

    Raises:
      UserError: there is no complete run, or it wrote no such model.
    """
    stage, folder = _last_stage(workdir)
    if not (folder / "summary.json").exists():
        raise UserError("the run is not complete", file=folder, remedy="run the same command until it says 'complete'")
    summary = read_json(folder / "summary.json")
    adapter = adapter or not (folder / "export" / "config.json").exists()
    weights = folder / ("adapter" if adapter else "export")
    if not (weights / ("adapter_config.json" if adapter else "config.json")).exists():
        key = "export.adapter" if adapter else "export.merged"
        raise UserError("the run wrote no such model", file=weights, remedy=f"run it again with --config.{key}=True")
    config, standard = keys.flat(keys.with_defaults(read_json(folder / "config.json"))), keys.flat(keys.stage())
    shown = {key: without_folders(value) for key, value in config.items()}
    origin = _origin(config["model.path"])
    if adapter and not base and origin != config["model.path"]:
        remedy = "share the merged model, or name the hub id where that model is as --base"
        raise UserError("the adapter's base is another run's model", file=config["model.path"], remedy=remedy)
    base, on_hub = (base, True) if base else _name_of(origin)
    starts = provenance.starts(folder)
    return Facts(
        folder=folder,
        stage=stage,
        weights=weights,
        adapter=adapter,
        origin=origin,
        base=base,
        on_hub=on_hub,
        license=License(license) if license else license_of(origin, base if on_hub else None),
        data=tuple(re.sub(r":[\d.]+$", "", path) for path in shown["data.path"].split(",")),
        config=shown,
        changed={key: shown[key] for key in config if config[key] != standard.get(key)},
        evaluation=summary["evaluation"],
        versions=starts[-1]["versions"] if starts else {},
    )


def _last_stage(workdir: AnyPath) -> tuple[str, AnyPath]:
    """Stages run in the order of their names; see `stage_folders`."""
    return stage_folders(workdir)[-1]


def without_folders(value: Any) -> Any:
    """A setting without the names of folders of this machine or of buckets.

    Examples:
      >>> without_folders("/home/me/rows.jsonl:0.7,hub:allenai/tulu-3:0.3,gs://mine/b.parquet")
      'rows.jsonl:0.7,hub:allenai/tulu-3:0.3,b.parquet'
      >>> without_folders("https://api.openai.com/v1")
      'https://api.openai.com/v1'
    """
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def _origin(path: str) -> str:
    """The model from which a run began; if another run trained it, the model from which that began, and so on."""
    seen: set[str] = set()
    while path not in seen and "://" not in path:
        seen.add(path)
        config = Path(path).expanduser().absolute().parent / "config.json"
        if not config.is_file():
            break
        before = read_json(config)
        path = before["model"]["path"] if isinstance(before.get("model"), dict) and "path" in before["model"] else path
    return path


def _name_of(path: str) -> tuple[str, bool]:
    """(the hub id or the folder's name, whether it is a hub id)."""
    if found := _IN_CACHE.search(os.path.realpath(path) + "/"):
        return "/".join(found.groups()), True
    if not Path(path).expanduser().exists() and _HUB_ID.fullmatch(path):
        return path, True
    return as_path(path).name, False


def license_of(origin: str, hub_id: str | None) -> License | None:
    """The license in the metadata of a model's README.md, in its folder or at the hub; None if it is in neither."""
    import huggingface_hub  # late: only sharing needs it

    for place in (Path(origin).expanduser() / "README.md", hub_id):
        if place is None or (isinstance(place, Path) and not place.is_file()):
            continue
        try:
            found = huggingface_hub.ModelCard.load(place, ignore_metadata_errors=True).data.to_dict()
        except Exception:  # of many types: no such model, no network, no metadata
            continue
        id = found.get("license")
        if id and not isinstance(id, list):
            return License(id, found.get("license_name"), found.get("license_link"))
    return None
