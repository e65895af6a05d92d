"""What is printed of text from outside: all of it, and nothing but it."""

import ast
import io
import subprocess
import sys
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
import rich.table
from hypothesis import given, settings

from rcsd_jax.host.console import Console, printable, to_stderr
from rcsd_jax.host.distributed import _exit
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.metrics import Progress
from rcsd_jax.report.summary import print_evaluation, print_summary

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = {
    "LRE",
    "RLE",
    "LRO",
    "RLO",
    "PDF",
    "LRI",
    "RLI",
    "FSI",
    "PDI",
}  # Unicode's codes that turn the writing round
PIECES = (
    "[/INST]", "[INST]", "[bold]", "[/]", "[/2]", "[red]", "[link=http://a.b]", "\\[x]", "[@click=a]", "[", "]", "\\", ":smile:",
    ":warning:", ":", "\x1b[2J", "\x1b]0;owned\x07", "\x1b[31m", "\x9b31m", "\b\b", "\r", "\x7f", "\u202e", "\u2066", "\u2028",
    "\udc80", "\ud83d", "{", "}", "{0}", "%s", "http://a.b/c?d", "42", "'text'", "é", "中文", "🙂", "a\u0301", " ", "word",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=8).map("".join)


def as_text(text, keep="\n"):
    """The text as it should stand there: in the words of `repr` where a character is none that a terminal shows."""
    special = lambda c: unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in OVERRIDES
    return "".join(repr(c)[1:-1] if special(c) and c not in keep else c for c in text)


def one_line(text):
    """Without tabs and newlines, which tables and wrapped lines lay out."""
    return f"<{text}>".replace("\t", " ").replace("\n", " ")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@settings(deadline=None)
@given(TEXTS)
def test_lines_are_text(text):
    for stream in (io.StringIO(), Terminal()):
        console = Console(file=stream)
        console.print(f"<{text}>".replace("\t", " "), soft_wrap=True)
        assert stream.getvalue() == as_text(f"<{text}>\n".replace("\t", " "))


@settings(deadline=None)
@given(TEXTS)
def test_no_caller_can_have_it_read(text):
    stream = io.StringIO()
    Console(file=stream).print(one_line(text), markup=True, emoji=True, soft_wrap=True)
    assert stream.getvalue() == as_text(f"{one_line(text)}\n")


@settings(deadline=None)
@given(TEXTS)
def test_tables_are_text(text):
    text, stream = one_line(text), io.StringIO()
    table = rich.table.Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    Console(file=stream, width=2000).print(table)
    assert stream.getvalue().count(as_text(text)) == 4


@settings(deadline=None, max_examples=50)
@given(TEXTS)
def test_what_a_run_ends_with_is_text(text):
    text, stream = one_line(text), io.StringIO()
    scores = {
        "questions": 3,
        "accuracy": 0.5,
        "accuracy_stderr": 0.1,
        "accuracy_interval": [0.4, 0.6],
        "share_cut": 0.0,
        "length": 9,
    }
    evaluation = {"base": {text: {"greedy": scores}}, "teacher": {text: {"greedy": scores}}}  # fmt: skip
    console = Console(file=stream, width=2000)
    print_summary(console, {text: {"evaluation": evaluation, "paths": {"export": f"/runs/{text}"}}}, {text: (text,)})
    print_evaluation(console, evaluation, names={"base": text})
    said, shown = stream.getvalue(), as_text(text)
    split = shown.replace("_", " ")
    assert f"{shown} export: /runs/{shown}\n" in said and f"teacher ({shown})" in said
    assert "[40.0, 60.0]" in said and said.count(f"{split} (3)") == 2


@settings(deadline=None, max_examples=20)
@given(TEXTS)
def test_titles_of_progress_are_text(text):
    text = one_line(text)
    quiet, terminal = io.StringIO(), Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "2000")
        for stream in (quiet, terminal):
            with Progress(Console(file=stream), text, 2) as progress:
                progress.advance(1, 5, "loss 0.1")
    assert quiet.getvalue().startswith(f"{as_text(text)}: 1/2  ")
    assert as_text(text) in terminal.getvalue()


@settings(deadline=None)
@given(TEXTS)
def test_errors_are_one_line_of_text(text):
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        to_stderr(f"error: {text}")
        to_stderr(f"error: {UserError(text, file=text, row=1, field=text, value=text, remedy=text)}")
    first, second, end = stream.getvalue().split("\n")
    assert first == as_text(f"error: {text}", keep="\t") and second == as_text(second, keep="\t") and end == ""


def test_a_process_that_ends_the_job_says_so_in_text(monkeypatch, capsys):
    monkeypatch.setattr("os._exit", lambda status: None)
    _exit("process 1: \x1b[2Jgone\nfor good", 3)
    assert capsys.readouterr().err == r"error: process 1: \x1b[2Jgone\nfor good" + "\n"


def test_ordinary_text_stays_as_it_is():
    text = "Antwort: “36 000 kg·m/s” – ±1 ✓ 中文 العربية עברית 👩‍🚀\n\tx"
    assert printable(text) == text


def test_a_terminal_that_lacks_a_character_ends_no_run():
    code = "from rcsd_jax.host.console import *; Console().print('\\xb1 \\u4e2d \\udc80'); to_stderr('error: \\u2026')"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xb1 \\u4e2d \\udc80\n", "error: \\u2026\n")


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, ast.unparse(node)


def test_nothing_is_printed_in_another_way():
    """Of what prints, all goes through `rcsd_jax.host.console`, but for JSON on stdout."""
    found = []
    for path in sorted([*(ROOT / "rcsd_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]):
        if path.name == "console.py":
            continue
        for name, keywords, call in calls(path):
            own = name in ("rich.console.Console", "rich.print", "rich.get_console") or name.endswith("from_markup")
            reads = name.endswith("TextColumn") and keywords.get("markup") != "False"
            stderr = name == "print" and "sys.stderr" in keywords.get("file", "")
            plain = name == "print" and path.is_relative_to(ROOT / "rcsd_jax") and call != "print(text)"
            if own or reads or stderr or plain:
                found.append((path.name, call))
    assert found == []
