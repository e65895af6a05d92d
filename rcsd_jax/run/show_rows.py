"""Shows how rows would be read: what both roles see of a few, lengths, and what is left out and why. No model is loaded."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.table

from rcsd_jax.data import sources
from rcsd_jax.data.account import Account
from rcsd_jax.data.examples import Example
from rcsd_jax.data.rubrics_of_rows import with_rubrics
from rcsd_jax.host.console import Console, say_once
from rcsd_jax.roles import contexts, encode
from rcsd_jax.roles.contexts import Role
from rcsd_jax.roles.encode import Encoding
from rcsd_jax.roles.limits import Limits
from rcsd_jax.settings.stage import Settings

MOST = 2048
"""Rows whose lengths are counted."""
_SHOWN = 1200  # characters of a prompt
_BAR = 24  # characters of the longest bar
_BINS = 8


class Lengths(NamedTuple):
    """Lengths of some rows' texts, in tokens or in words."""

    unit: str
    student: list[int]
    teacher: list[int]
    reference: list[int]


def show_rows(config: Settings, tokenizer: Any, console: Console, *, as_run: bool, count: int = 5) -> None:
    """Reads the rows of `data.path` and prints how.

    Args:
      config: of a stage.
      tokenizer: of its model, or None: then turns are shown without a chat template, and lengths are in words.
      console: where to print.
      as_run: whether roles see what the config says; otherwise the teacher sees the first of rubric and reference that rows have.
      count: how many rows are shown.

    Raises:
      UserError: the rows cannot be read, or none can be used.
    """
    say, accounts = say_once(console), list[Account]()

    def read(require: Sequence[str]) -> list[Example]:
        accounts.clear()
        how = config.reading(require=require, say=say, tell=accounts.append)
        return sources.read_as(config.data.path, how)

    if as_run:
        encoding, examples = config.encoding, read(config.required_fields)
    else:
        encoding, examples = _shown_fields(config, read)
    for account in accounts:
        say(account.line())
    say(_roles(encoding))
    stand_in = config.rubric.written and "rubric" in encoding.teacher.fields and as_run
    rubric = dataclasses.replace(config.rubric, source="generic") if stand_in else config.rubric
    if stand_in:
        say(
            f"a model will write the rubrics ({config.rubric.writer or 'rubric.writer'}); the generic one stands in for them here"
        )
    if as_run:
        examples = with_rubrics(examples, rubric, generic=config.generic_rubric, seed=config.seed)
    for example in _some(examples, count):
        _show(example, tokenizer, encoding, console)
    if tokenizer is not None:
        encode.say_where_system_turns_go(examples, tokenizer, encoding, say)
        encode.check_template(examples, tokenizer, encoding)
    lengths = _lengths(examples[:MOST], tokenizer, encoding)
    console.print(histogram(lengths, len(examples)))
    _show_left_out(accounts, examples[:MOST], lengths, config.limits, encoding, console)


def histogram(lengths: Lengths, rows: int) -> rich.table.Table:
    """A table with a line for each range of lengths, and bars for the teacher's prompts."""
    columns = {
        name: np.asarray(values) for name, values in zip(Lengths._fields[1:], lengths[1:], strict=True) if len(values)
    }
    most = max(int(values.max()) for values in columns.values())
    edges = _edges(most)
    counts = {name: np.histogram(values, [0, *(edge + 1 for edge in edges)])[0] for name, values in columns.items()}
    shown = len(lengths.student)
    title = f"lengths in {lengths.unit}" + ("" if shown == rows else f", of the first {shown:,} of {rows:,} rows")
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("up to", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("")
    bars = counts["teacher"]
    for i, edge in enumerate(edges):
        bar = "█" * -(-_BAR * int(bars[i]) // max(1, int(bars.max())))
        table.add_row(f"{edge:,}", *(f"{found[i]:,}" for found in counts.values()), bar)
    for name, of in (("median", np.median), ("longest", np.max)):
        table.add_row(name, *(f"{int(of(values)):,}" for values in columns.values()), "")
    return table


def _edges(most: int) -> list[int]:
    """The upper ends of at most `_BINS` ranges of equal, round width that hold every length up to `most`.

    Examples:
      >>> _edges(37), _edges(900)
      ([5, 10, 15, 20, 25, 30, 35, 40], [200, 400, 600, 800, 1000])
    """
    width = next(w for n in range(12) for w in (10**n, 2 * 10**n, 5 * 10**n) if w * _BINS >= most)
    return [width * i for i in range(1, max(1, -(-most // width)) + 1)]


def _shown_fields(config: Settings, read: Any) -> tuple[Encoding, list[Example]]:
    """What the teacher sees without a config: the rubric or the reference, if a row has one; and the rows that have it."""
    examples = read(("question",))
    for name in ("rubric", "reference"):
        if any(getattr(example, name) is not None for example in examples):
            examples = read(("question", name))
            break
    else:
        name = ""
    fields = ("question", name) if name else ("question",)
    return dataclasses.replace(
        config.encoding, teacher=dataclasses.replace(config.teacher.role, fields=fields)
    ), examples


def _some(examples: Sequence[Example], count: int) -> list[Example]:
    """The first rows; of a mixture, the first of each source."""
    sources = list(dict.fromkeys(example.source for example in examples))
    each = -(-count // len(sources))
    return [e for name in sources for e in [e for e in examples if e.source == name][:each]]


def _roles(encoding: Encoding) -> str:
    told = {"the student": encoding.student, "the teacher": encoding.teacher}
    return f"task {encoding.task}: " + "; ".join(f"{who} sees {', '.join(role.fields)}" for who, role in told.items())


def _show(example: Example, tokenizer: Any, encoding: Encoding, console: Console) -> None:
    for name, role, request in _sides(encoding):
        console.print(f"--- {example.origin}, as the {name} sees it ---", style="bold", soft_wrap=True)
        console.print(_cut(_text(example, tokenizer, role, encoding, request)), soft_wrap=True)
    if _has_reference(example, encoding):
        console.print("--- the reference ---", style="bold")
        console.print(_cut(_reference(example, encoding)), soft_wrap=True)


def _sides(encoding: Encoding) -> list[tuple[str, Role, str | None]]:
    return [("student", encoding.student, None), ("teacher", encoding.teacher_before, encoding.teacher_request)]


def _text(example: Example, tokenizer: Any, role: Role, encoding: Encoding, request: str | None) -> str:
    """The prompt as the model gets it, or its turns."""
    if tokenizer is not None:
        return contexts.role_text(tokenizer, example, role, encoding.texts, encoding.task, request=request)
    turns = contexts.messages(example, role, encoding.texts, encoding.task, request=request)
    return "\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)


def _has_reference(example: Example, encoding: Encoding) -> bool:
    return (example.rubric if encoding.task == "write_rubric" else example.reference) is not None


def _reference(example: Example, encoding: Encoding) -> str:
    return encode.reference_text(example, dataclasses.replace(encoding, learns_references=True))


def _lengths(examples: Sequence[Example], tokenizer: Any, encoding: Encoding) -> Lengths:
    sides = [[_text(e, tokenizer, role, encoding, request) for e in examples] for _, role, request in _sides(encoding)]
    references = [_reference(e, encoding) for e in examples if _has_reference(e, encoding)]
    if tokenizer is None:
        student, teacher, reference = ([len(text.split()) for text in texts] for texts in (*sides, references))
        return Lengths("words", student, teacher, reference)
    count = lambda texts: [len(tokens) for tokens in contexts.encode_texts(tokenizer, texts)]
    student, teacher = map(count, sides)
    return Lengths("tokens", student, teacher, [length + 1 for length in count(references)])  # an end follows


def _show_left_out(
    accounts: Sequence[Account],
    examples: Sequence[Example],
    lengths: Lengths,
    limits: Limits,
    encoding: Encoding,
    console: Console,
) -> None:
    rows: list[tuple[str, int, str]] = []
    for account in accounts:
        rows += [
            (f"rows {reason}", len(found), f"{account.file}:{found[0]}") for reason, found in account.left_out.items()
        ]
    if lengths.unit == "tokens":
        bounds = [
            ("data.max_student_prompt", lengths.student, limits.student),
            ("data.max_teacher_prompt", lengths.teacher, limits.teacher),
        ]
        if encoding.learns_references:
            bounds.append(("sampling.max_new_tokens", lengths.reference, limits.reference))
        too_long: dict[str, list[int]] = collections.defaultdict(list)
        for key, found, limit in bounds:
            too_long[f"rows longer than {key} = {limit}"] = [i for i, length in enumerate(found) if length > limit]
        rows += [(reason, len(found), examples[found[0]].origin) for reason, found in too_long.items() if found]
        if all(any(i in found for found in too_long.values()) for i in range(len(examples))):
            raise limits.nothing_fits(len(examples))
    if not rows:
        console.print(
            "left out: nothing" + ("" if lengths.unit == "tokens" else ", as far as can be told without a tokenizer")
        )
        return
    table = rich.table.Table(title="left out", title_justify="left")
    for name, justify in (("why", "left"), ("rows", "right"), ("the first", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for why, count, first in rows:
        table.add_row(why, f"{count:,}", first)
    console.print(table)


def _cut(text: str) -> str:
    """A text with its middle left out if it is long: a prompt's end shows what the completion follows."""
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"
