"""`python -m rcsd_jax.data FILE`: what is shown of rows before any model is loaded."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data import sources
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles import encode
from rcsd_jax.run.show_rows import Lengths, histogram, show_rows
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import settings_of
from tests import user_inputs

POINTS = [
    {"criterion": "Says [/bold] why.", "points": 5},
    {"criterion": "Says how.", "points": 3},
    {"criterion": "Lies.", "points": -2},
]
ROWS = [
    {"prompt": [{"role": "system", "content": "Be [red]kind[/red] :smile:"}, {"role": "user", "content": f"Why {i}?"}], "Rubrics": POINTS}
    for i in range(6)
]  # fmt: skip


def shown(path, tokenizer=None, *, as_run=False, count=5, **sections):
    config = keys.stage()
    config.data.path = str(path)
    for name, values in sections.items():
        config[name].update(values)
    console = Console(file=io.StringIO(), width=200)
    show_rows(settings_of(config), tokenizer, console, as_run=as_run, count=count)
    return console.file.getvalue()


@pytest.fixture
def path(tmp_path):
    user_inputs.write_rows(tmp_path / "rows.jsonl", [*ROWS, {"prompt": [{"role": "user", "content": "Why?"}]}])
    return tmp_path / "rows.jsonl"


def test_rows_without_a_model(path):
    out = shown(path)
    assert out.startswith(
        f"{path}: question from prompt (messages), rubric from Rubrics (criterion, points); 6 rows; left out: 1 of 7 rows without a "
        "rubric, from row 7 on\ntask solve: the student sees question; the teacher sees question, rubric\n"
    )
    assert out.count("as the student sees it") == out.count("as the teacher sees it") == 5 and "Why 5?" not in out
    assert "[system]\nBe [red]kind[/red] :smile:\n[user]\nWhy 4?\n" in out and "Says [/bold] why." in out  # literally
    assert "lengths in words" in out and f"{path}:7" in out.partition("rows without a rubric │")[2]


def test_rows_as_a_run_sees_them(user_dir, path):
    tokenizer = load_tokenizer(user_dir / "model")
    config = keys.stage()
    config.data.path = str(path)
    limits = dict(max_student_prompt=10_000, max_teacher_prompt=10_000)
    out = shown(path, tokenizer, as_run=True, count=1, data=limits)
    asked = settings_of(config).encoding
    (one, *_) = sources.read(str(path), require=("question", "rubric"), incomplete="skip")
    (row,) = encode.encode_rows([one], tokenizer, asked)
    for prompt in (row.student, row.teacher):
        assert tokenizer.decode(prompt) in out
    assert "lengths in tokens" in out and "left out: nothing" not in out
    short = dict(max_student_prompt=10_000, max_teacher_prompt=10)
    with pytest.raises(UserError, match="no example is left"):
        shown(path, tokenizer, as_run=True, data=short)
    rows = [*ROWS, {"prompt": [{"role": "user", "content": "Why?" * 50}], "Rubrics": POINTS}]
    user_inputs.write_rows(path, rows)
    out = shown(path, tokenizer, as_run=True, data=limits | dict(max_student_prompt=len(row.student) + 5))
    assert f"rows longer than data.max_student_prompt = {len(row.student) + 5}" in out and f"{path}:7" in out


def test_the_teacher_sees_what_rows_have(tmp_path):
    user_inputs.write_rows(tmp_path / "a.jsonl", [{"instruction": "Add.", "output": "4"}, {"instruction": "Go."}])
    out = shown(tmp_path / "a.jsonl")
    assert "the teacher sees question, reference" in out and "--- the reference ---\n4\n" in out
    user_inputs.write_rows(tmp_path / "b.jsonl", [{"question": "Why?"}])
    assert "the teacher sees question\n" in shown(tmp_path / "b.jsonl")


def test_a_long_prompt_is_shown_by_its_ends(tmp_path):
    user_inputs.write_rows(tmp_path / "a.jsonl", [{"question": "begin " + "x" * 5000 + " end"}])
    out = shown(tmp_path / "a.jsonl")
    assert "begin xxx" in out and "characters …]" in out and "\\boxed{}" in out and len(out) < 6000


def test_every_length_is_in_one_range():
    random = np.random.default_rng(0)
    for most in (1, 7, 100, 2048):
        lengths = random.integers(0, most, 50, endpoint=True).tolist()
        table = histogram(Lengths("words", lengths, lengths[:20], []), 50)
        cells = [list(column.cells) for column in table.columns]
        assert [column.header for column in table.columns] == ["up to", "student", "teacher", ""]
        assert sum(map(int, cells[1][:-2])) == 50 and sum(map(int, cells[2][:-2])) == 20
        edges = [int(edge.replace(",", "")) for edge in cells[0][:-2]]
        below = [sum(x <= edge for x in lengths) for edge in edges]
        assert [int(x) for x in cells[1][:-2]] == np.diff([0, *below]).tolist()
        assert int(cells[1][-1].replace(",", "")) == max(lengths)


def test_the_program(path):
    command = [sys.executable, "-m", "rcsd_jax.data", str(path), "--rows=1"]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "as the teacher sees it" in done.stdout and done.stderr == ""
