"""The tokenizer of a model directory, and the tokens that end a completion."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

from rcsd_jax.checkpoints.directory import read_object, resolve
from rcsd_jax.host.errors import UserError

DATE = datetime.date(2025, 1, 1)


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
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = on_a_fixed_day(tokenizer.chat_template)
    return tokenizer


def on_a_fixed_day(template: str) -> str:
    """A chat template that writes `DATE` where it would write today's date, as SmolLM3's, Granite's and Llama 3.2's do.

    So a run that continues on another day has the same prompts.
    """
    if "strftime_now" not in template:
        return template
    parts = "".join(f".replace('%{part}', '{DATE.strftime(f'%{part}')}')" for part in "aAbBdHIjmMpSyY")
    return "{%- macro strftime_now(format) -%}{{ format" + parts + " }}{%- endmacro -%}" + template


def within_vocabulary(tokenizer: Any, size: int) -> Any:
    """The tokenizer without the special tokens that a model of `size` tokens lacks; what they were in a text is then ordinary text.

    Gemma 3's text models come with the tokenizer of those that see images, which has one token more. A token that the chat template
    writes, or that begins, ends or pads texts, is kept: then tokenizer and model do not belong together.
    """
    if len(tokenizer) <= size:
        return tokenizer
    import tokenizers  # late, as above

    needed = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    written = str(tokenizer.chat_template)

    def is_kept(token: dict[str, Any]) -> bool:
        return token["id"] < size or not token["special"] or token["content"] in needed or token["content"] in written

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if is_kept(token)]
    tokenizer._tokenizer = tokenizers.Tokenizer.from_str(
        json.dumps(state)
    )  # transformers has no way to take a token away
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
