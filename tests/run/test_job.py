"""The two-stage job on the embedded world, shortened: what it writes. Its kills are in `test_faults.py`."""

import json
import os
import time

import pytest

from tests.cli.test_main import run

pytestmark = pytest.mark.slow
SHORT = [
    f"--config.{stage}.{setting}"
    for stage in ("stage1", "stage2")
    for setting in ("train.steps=3", "train.batch_size=8", "data.count=48", "eval.count=16", "eval.batch_size=16", "checkpoint.every=2")
] + ["--config.stage2.rubric.batch_size=16"]  # fmt: skip


def arguments(workdir, report="--noreport"):
    return ["--config=configs/tiny.py", f"--workdir={workdir}", report, *SHORT]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job") / "run"
    code, out, err = run(*arguments(workdir, "--report"))
    assert code == 0, err
    return workdir, out


def test_the_job_ends_with_a_table_and_paths(undisturbed):
    workdir, out = undisturbed
    for words in (
        "criterion F1",
        "accuracy",
        "rubric score",
        "base student",
        "teacher (rubric)",
        "trained student",
        "greedy",
    ):
        assert words in out
    assert str(workdir / "stage2" / "export") in out and "tokens/s" in out and "ETA" in out
    assert f"report: {workdir / 'report.html'}" in out and (workdir / "report.html").stat().st_size > 50_000
    summary = json.loads((workdir / "stage2" / "summary.json").read_text())
    assert set(summary["evaluation"]) == {"base", "teacher", "trained"}
    assert sum(summary["rubrics"][k] for k in ("strict", "salvaged")) + summary["rubrics"].get("fallback", 0) == 48


def test_the_job_says_what_it_does_before_it_does_it(undisturbed):
    workdir, out = undisturbed
    lines = out.splitlines()
    assert lines[0] == f"{workdir}: starting JAX"
    wanted = [
        "stage1: reading model", "stage1: loading weights of", "stage1: evaluating base on", "stage1: compiling a step of",
        "stage1: train: ", "stage1: writing the trained model to", "stage1: evaluating trained on",
        "stage2: reading model", "write rubrics: ", "stage2: loading weights of", "stage2: compiling a step of",
    ]  # fmt: skip
    places = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in wanted]
    assert places == sorted(places), out


def test_a_report_that_is_there_is_not_written_again(undisturbed):
    report = undisturbed[0] / "report.html"
    before = report.stat().st_mtime_ns
    code, out, err = run(*arguments(undisturbed[0], "--report"))
    assert code == 0 and f"report: {report}" in out, err
    assert report.stat().st_mtime_ns == before


def test_a_report_that_fails_fails_no_run(undisturbed):
    report = undisturbed[0] / "report.html"
    report.unlink()
    report.mkdir()  # nothing can be written there
    summary = undisturbed[0] / "stage2" / "summary.json"
    os.utime(summary, (time.time() + 5,) * 2)
    code, out, err = run(*arguments(undisturbed[0], "--report"))
    assert code == 0 and "no report (IsADirectoryError" in out, err
