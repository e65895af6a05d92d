"""The bytes that each token of a tokenizer stands for in decoded text."""

from __future__ import annotations

import json
from typing import Any

_WORD_MARK = "\u2581"


def token_texts(tokenizer: Any) -> list[bytes | None]:
    """Token id -> its bytes in a decoded text; None for special tokens, which decoding leaves out, and for unused ids.

    A space that decoding takes from the very beginning of a text is kept.

    Args:
      tokenizer: of transformers, backed by the `tokenizers` library.

    Raises:
      ValueError: it decodes in a way of which this function does not know what a token's bytes are.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} is not backed by the tokenizers library")
    decoder = json.loads(backend.to_str())["decoder"]
    steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    to_bytes = _reader(steps)
    if to_bytes is None:
        raise ValueError(f"what its tokens stand for is not known: it decodes by {', '.join(kinds)}")
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    texts: list[bytes | None] = [None] * len(tokenizer)
    for token, i in tokenizer.get_vocab().items():
        if i not in special:
            texts[i] = added[i].content.encode() if i in added else to_bytes(token)
    return texts


def _reader(steps: list[dict[str, Any]]) -> Any:
    """A function from a token to its bytes, for the decoder's steps; None if they are not known."""
    kinds = {step["type"] for step in steps}
    if not steps:  # tokens are words, which decoding joins by spaces
        return lambda token: b" " + token.encode()
    if kinds == {"ByteLevel"}:
        byte_of = _byte_level_alphabet()
        return lambda token: bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()
    marks = [step for step in steps if step["type"] == "Replace"]
    if kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"} and all(
        step["pattern"] == {"String": _WORD_MARK} and step["content"] == " " for step in marks
    ):
        return lambda token: _byte(token) if "ByteFallback" in kinds and _byte(token) else _spaced(token)
    return None


def _spaced(token: str) -> bytes:
    return token.replace(_WORD_MARK, " ").encode()


def _byte(token: str) -> bytes:
    """The byte that a token such as <0x0A> stands for, or nothing."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return b""


def _byte_level_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones stand for themselves, the others for U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
