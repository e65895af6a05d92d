"""The directory of a model or adapter: where it is, which files it has, and what identifies its weights."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from rcsd_jax.host.errors import UserError, first_line

INDEX = "model.safetensors.index.json"
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files that must travel with a model's weights."""
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(path_or_repo_id: str | os.PathLike, *, weights: bool = True) -> pathlib.Path:
    """The local directory of a path or of a hub id such as `Qwen/Qwen3-8B`, which is downloaded on first use.

    Args:
      path_or_repo_id: a directory, or a hub id.
      weights: whether weights are downloaded too.

    Raises:
      UserError: neither an existing directory nor a hub id that can be reached.
    """
    path = pathlib.Path(path_or_repo_id).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        remedy = f"convert it: python -m rcsd_jax.checkpoints {path} FOLDER"
        raise UserError("a GGUF file is not read directly", remedy=remedy, file=path)
    if not _REPO_ID.fullmatch(str(path_or_repo_id)):
        raise UserError(
            "no such model directory", remedy="give a directory with config.json, or a hub id", file=path_or_repo_id
        )
    import huggingface_hub  # late: only a download needs it

    patterns = ["config.json", *COMPANIONS, *(["*.safetensors", INDEX] if weights else [])]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(path_or_repo_id), allow_patterns=patterns))
    except Exception as error:  # the client raises its own, httpx's and the system's errors alike
        raise UserError(
            f"neither a directory here nor a model that the hub gives ({type(error).__name__}: {first_line(error)})",
            remedy="check the name, the network and HF_TOKEN, or download the model and give its directory",
            file=path_or_repo_id,
        ) from error


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a model directory.

    Raises:
      UserError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", remedy="give a complete Hugging Face model directory", file=file) from None
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", remedy="repair or download it again", file=file) from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", remedy="repair or download it again", file=file)
    return value


def digest(directory: str | os.PathLike) -> str:
    """A hash of the weights and config of a model or adapter. It identifies a checkpoint, wherever it is."""
    directory = resolve(directory)
    total = hashlib.blake2b(digest_size=16)
    configs = [f for f in (directory / "config.json", directory / "adapter_config.json") if f.is_file()]
    for file in sorted([*configs, *directory.glob("*.safetensors")]):
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()
