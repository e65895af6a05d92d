"""The files of a repository, put together in a folder, and sent to the hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.files import AnyPath, fetched
from rcsd_jax.share.card import card
from rcsd_jax.share.facts import Facts

_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")


def write_folder(
    folder: Path, facts: Facts, repository: str, *, report: AnyPath | None, copy: bool = True
) -> list[str]:
    """Writes all files of the repository OWNER/NAME into a new or empty folder; returns their names.

    Args:
      folder: where to.
      facts: about the model.
      repository: for the card.
      report: the run's report, or None to leave it out.
      copy: copy the model's files; otherwise link to them.

    Raises:
      UserError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("exists and holds something", file=folder, remedy="name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    put: Callable[[Any, Any], Any] = shutil.copyfile if copy else os.symlink
    weights = Path(fetched(str(facts.weights))).absolute()
    for file in sorted(path for path in weights.iterdir() if path.is_file() and path.name != "README.md"):
        put(file, folder / file.name)
    base = Path(facts.origin).expanduser()
    for name in _LICENSES:
        if (base / name).is_file() and not (folder / name).exists():
            put((base / name).absolute(), folder / name)
    if report is not None:
        (folder / "report.html").write_bytes(report.read_bytes())
    (folder / "training_config.json").write_text(
        json.dumps(dict(facts.config), indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    if facts.adapter:
        _name_base(folder / "adapter_config.json", facts.base)
    names = tuple(sorted(path.name for path in folder.iterdir()))
    (folder / "README.md").write_text(card(facts, repository, files=names), "utf-8")
    return sorted([*names, "README.md"])


def _name_base(file: Path, base: str) -> None:
    """Names the base in an adapter's config: the folder that it names is on this machine only."""
    fields = json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": base}
    file.unlink()  # it may be a link
    file.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Makes the repository if there is none, and puts the folder's files there as one commit; returns its address.

    Raises:
      UserError: the hub refuses it or cannot be reached.
    """
    import huggingface_hub  # late: only sharing needs it

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload of rcsd_jax.share",
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # shards of an earlier model
        )
    except Exception as error:  # the client raises its own, httpx's and the system's errors alike
        raise UserError(
            f"the hub did not take it ({type(error).__name__}: {first_line(error, 200)})",
            field="--to",
            value=repository,
            remedy="check the name, run `hf auth login` with a token that may write, or look at it with --dry_run=FOLDER",
        ) from error
    return str(address)
