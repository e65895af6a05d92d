"""Printing: text from outside (paths, names of data sets, texts of models and judges) is printed literally.

Every program prints through `Console` or `to_stderr`. Neither reads markup (`[bold]`, `[/INST]`) or emoji codes (`:smile:`),
and both show control codes instead of sending them to the terminal.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from typing import IO, Any

import rich.console
import rich.text

WIDTH = 140  # of a stream that is not a terminal, such as a log
# Control codes except tab and newline, line separators, changes of the writing direction, and lone surrogates, which stand for
# bytes of a path that are not UTF-8.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with characters that must not reach a terminal escaped, as in a Python string.

    Examples:
      >>> print(printable("runs/[/2] :smile: \x1b[2J"))
      runs/[/2] :smile: \x1b[2J
    """
    return _NOT_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Console(rich.console.Console):
    """Rich's console for tables and styles; every string it prints, also in a table's cell, is printed literally.

    Args:
      stderr: print there instead of on stdout.
      quiet: print nothing.
      width: used if the stream is not a terminal; a terminal has its own.
      file: the stream, instead of one of these two.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, width: int = WIDTH, file: IO[str] | None = None):
        stream = file or (sys.stderr if stderr else sys.stdout)
        _take_any_character(stream)
        shown = None if stream.isatty() else width
        super().__init__(stderr=stderr, quiet=quiet, width=shown, file=file, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """Rich calls this for every string that it is given."""
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})


def say_once(console: Console) -> Callable[[str], None]:
    """A function that prints each line literally, and no line twice."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            console.print(line, soft_wrap=True)
        said.add(line)

    return say


def to_stderr(line: str) -> None:
    """Prints one line on stderr."""
    _take_any_character(sys.stderr)
    print(printable(line).replace("\n", r"\n"), file=sys.stderr, flush=True)


def _take_any_character(stream: Any) -> None:
    """What the stream's encoding lacks is written out too: a terminal in ASCII is no reason for a finished run to fail."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
