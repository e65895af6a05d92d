"""The tokenizer of a model directory, and the tokens that end a completion."""

from __future__ import annotations

import os
from typing import Any

from rcsd_jax.checkpoints.directory import read_object, resolve
from rcsd_jax.host.errors import UserError


def load_tokenizer(directory: str | os.PathLike) -> Any:
    """The directory's own tokenizer, by transformers' AutoTokenizer; PyTorch need not be installed.

    Args:
      directory: model directory or hub id, see `directory.resolve`.

    Raises:
      UserError: no tokenizer, an unreadable one, or one without a chat template.
    """
    directory = resolve(directory, weights=False)
    # Without this AutoTokenizer makes an empty tokenizer out of config.json's model_type.
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            "no tokenizer here (tokenizer.json, tokenizer.model or vocab.json)",
            remedy="copy the tokenizer files of the base model into the directory",
            file=directory,
        )
    import transformers  # late: it takes seconds

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # bare Exception is what the tokenizers package raises on a bad file
        raise UserError(
            f"tokenizer cannot be read ({type(error).__name__}: {error})",
            remedy="copy the tokenizer files of the base model again",
            file=directory,
        ) from error
    if tokenizer.chat_template is None:
        raise UserError(
            "tokenizer has no chat template",
            remedy="use an instruction-tuned checkpoint, or put its chat_template.jinja into the directory",
            file=directory / "tokenizer_config.json",
            field="chat_template",
        )
    return tokenizer


def end_token_ids(directory: str | os.PathLike, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's own and those that generation_config.json or config.json list.

    Raises:
      UserError: there are none, so that no completion could ever end.
    """
    directory = resolve(directory)
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            listed = read_object(directory / name).get("eos_token_id")
            found += listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not found:
        raise UserError(
            "no end-of-sequence token",
            remedy="set eos_token in tokenizer_config.json",
            file=directory / "tokenizer_config.json",
            field="eos_token",
        )
    return tuple(dict.fromkeys(int(token) for token in found))
