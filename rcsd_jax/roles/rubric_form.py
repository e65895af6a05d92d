"""The form of a rubric, for a model that writes one: every text of this form is one that `rubrics.parsing` reads as "strict"."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcsd_jax.checkpoints.token_texts import token_texts
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import user_cache
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.thinking import ThinkingBlock
from rcsd_jax.rubrics.settings import RubricSettings
from rcsd_jax.sampling import text_form, token_form
from rcsd_jax.sampling.text_form import FormBuilder, TextForm
from rcsd_jax.sampling.token_form import Letters, TokenForm, compile_form

_KEPT_ABOVE = 1.0  # seconds; what is compiled faster is not kept on disk


def rubric_form(style: str, min_criteria: int, max_criteria: int) -> TextForm:
    """The form of a rubric: a JSON array of criteria, on one line or indented.

    Args:
      style: "objects" for {title, description, weight}, where the title may be missing, "strings" for only descriptions. A description opens with a class,
        such as "Essential Criteria:". Weights are 1 to 10, of a pitfall -10 to -1.
      min_criteria, max_criteria: how many. All descriptions differ, and the first criterion is no pitfall.
    """
    build = FormBuilder(max_criteria)
    start, criterion, whole = build.state(), build.state(), build.state()
    build.literal(build.layout([start], lines=2), "[", criterion)
    begun = build.layout([criterion])
    finished = build.state()
    if style == "strings":
        _description(build, begun, finished, finished)
    else:
        key = build.literal(build.layout(build.literal(begun, "{")), '"')
        title, titled = build.state(), build.state()
        build.literal(build.maybe_space(build.literal(key, 'title":')), '"', title)
        build.string(title, titled)
        key += build.literal(build.layout(build.literal([titled], ",")), '"')
        quote = build.maybe_space(build.literal(key, 'description":'))
        good, bad = build.state(), build.state()
        _description(build, quote, good, bad)
        build.literal(build.layout(_weight(build, good, "") + _weight(build, bad, "-")), "}", finished)
    after = build.layout([finished])
    build.literal(after, ",", criterion, highest=max_criteria - 1)
    build.literal(after, "]", whole, lowest=min_criteria)
    return build.form(start, whole)


def _description(build: FormBuilder, places: Sequence[int], good: int, bad: int) -> None:
    """The string of a description: it ends in `good`, and that of a pitfall in `bad`."""
    classes = build.maybe_space(build.literal(places, '"'))
    named = build.state()
    for kind in ("Essential", "Important", "Optional"):
        build.literal(classes, kind, named)
    for names, end in (([named], good), (build.literal(classes, "Pitfall", lowest=1), bad)):
        text = build.state(span=True)
        build.literal(names, " Criteria:", text)
        build.string(text, end)


def _weight(build: FormBuilder, place: int, sign: str) -> list[int]:
    """The states after a weight of 1 to 10 with a sign."""
    number = build.maybe_space(build.literal(build.layout(build.literal([place], ",")), '"weight":'))
    number = build.literal(number, sign) if sign else number
    one, more = build.state(), build.state()
    build.edge(number, b"1", one)
    build.edge(number, b"23456789", more)
    build.edge([one], b"0", more)
    return [one, more]


_SURE = frozenset("bcdfgqwyz")
"""Letters that come from no other character in common use; `ₐ`, `ⁿ` and `™` come to count as others."""


def letters(char: str) -> Letters | None:
    """What a character adds to a description where `schema.normalised` compares descriptions.

    Characters that count as ones with `_SURE` letters, such as `℃`, cannot be written, and neither can marks above letters that are
    characters of their own.

    Examples:
      >>> letters("C"), letters("a"), letters(" ")
      (Letters(all='c', sure='c', unsure=False), Letters(all='a', sure='', unsure=False), Letters(all='', sure='', unsure=False))
      >>> letters("ω"), letters("²").unsure, letters("℃")
      (Letters(all='ω', sure='', unsure=False), True, None)
    """
    if char.isascii():
        found = char.lower() if char.isalnum() else ""
        return Letters(found, found if found in _SURE else "")
    compared = unicodedata.normalize("NFKC", char).casefold()
    if _SURE.intersection(compared) or "\u0300" <= char <= "\u036f":
        return None
    return Letters(char, "", compared != char or char.isspace() or char in _composing())


@functools.cache
def _composing() -> frozenset[str]:
    """Characters that may merge with the one before them."""
    parts = (unicodedata.normalize("NFD", chr(code)) for code in range(0xC0, 0x30000) if not 0xD800 <= code < 0xE000)
    return frozenset(part[-1] for part in parts if len(part) > 1)


def writer_form(model: Model, settings: RubricSettings, block: ThinkingBlock | None) -> TokenForm:
    """The form of a rubric for a model that writes rubrics with these settings, after a thought if there is a block for one.

    Raises:
      UserError: the model's tokens cannot write one, or not within `rubric.max_new_tokens`.
    """
    try:
        texts = token_texts(model.tokenizer)
        thought = _thought(block)
        form = rubric_form(settings.style, settings.min_criteria, settings.max_criteria)
        found = _kept(form, texts, model.eos_ids, model.decoder.config.vocab_size, thought)
    except ValueError as error:
        raise UserError(
            f"the model's tokenizer cannot be held to the form of a rubric: {error}",
            file=model.directory,
            field="rubric.constrained",
            value=True,
            remedy="set rubric.constrained=False",
        ) from error
    if found.shortest > settings.max_new_tokens:
        raise UserError(
            f"a rubric of {settings.min_criteria} criteria may take {found.shortest} tokens",
            field="rubric.max_new_tokens",
            value=settings.max_new_tokens,
            remedy="raise it, or set rubric.constrained=False",
        )
    return found


def _thought(block: ThinkingBlock | None) -> dict[str, int]:
    """The tokens around a thought, as `compile_form` takes them."""
    if block is None:
        return {}
    if len(block.end) != 1 or (len(block.begin) != 1 and not block.opened):
        raise ValueError("with rubric.writer_thinking, a thought must begin and end with one token each")
    return dict(thought_end=block.end[0]) | ({} if block.opened else dict(thought_begin=block.begin[0]))


def _kept(
    form: TextForm, texts: Sequence[bytes | None], ends: Sequence[int], vocab_size: int, thought: dict[str, int]
) -> TokenForm:
    """The form for a tokenizer, from the user's cache if it was compiled before."""
    key = hashlib.sha256(repr((TokenForm._fields, tuple(ends), vocab_size, thought, texts)).encode())
    for source in (__file__, text_form.__file__, token_form.__file__):
        key.update(Path(source).read_bytes())
    for array in (form.step, form.lowest, form.highest, form.span, np.array([form.start, form.whole])):
        key.update(array.tobytes())
    path = user_cache() / "token_forms" / f"{key.hexdigest()[:32]}.npz"
    try:
        with np.load(path) as held:
            return TokenForm(**{field: held[field] for field in TokenForm._fields})
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        pass  # it is missing, or is not what was kept: it is made again
    began = time.monotonic()
    found = compile_form(form, texts, ends, vocab_size=vocab_size, letters=letters, **thought)
    if time.monotonic() - began > _KEPT_ABOVE:
        _keep(found, path)
    return found


def _keep(tables: TokenForm, path: Path) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **tables._asdict())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(file.getvalue())
        scratch.replace(path)
    except OSError:  # a folder that cannot be written costs only time
        pass
