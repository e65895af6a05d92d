"""Faults of the machine under the two-stage job: it goes on exactly when it is started again, or ends with one line.

Every run takes its programs from the tests' compilation cache, which the first, undisturbed one fills.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from rcsd_jax.run.checkpoints import Checkpoints
from tests import forked_program

pytestmark = pytest.mark.slow

KILLS = 20 if "THOROUGH" in os.environ else 3
SHORT = [
    f"--config.{stage}.{setting}"
    for stage in ("stage1", "stage2")
    for setting in (
        "train.steps=2", "train.batch_size=4", "data.count=8", "eval.count=4", "eval.batch_size=4", "eval.greedy=(False,)",
        "checkpoint.every=1",
    )
] + ["--config.stage2.rubric.batch_size=8"]  # fmt: skip


def start(workdir):
    return forked_program.start("rcsd_jax.main", *arguments(workdir))


def run(workdir):
    return start(workdir).result()


def arguments(workdir):
    return ["--config=configs/tiny.py", f"--workdir={workdir}", "--noreport", *SHORT]


def assert_one_line(result, *words):
    code, _, err = result
    line = (err.strip().splitlines() or [""])[-1]
    assert code == 2, err
    assert line.startswith("error: ") and "Traceback" not in err, err
    for word in words:
        assert word in line, f"{word!r} not in {line!r}"


def rows_of(path):
    """The rows of a metrics file without what the clock says."""
    timing = ("seconds", "second", "compilations")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(timing)} for row in rows]


def files_of(workdir):
    """What a run leaves: the names of all files but TensorBoard's and the checkpoints' own."""
    paths = (path.relative_to(workdir) for path in workdir.rglob("*"))
    return {str(path) for path in paths if "tensorboard" not in path.parts and len(path.parts) < 4}


def assert_same_result(workdir, expected):
    assert files_of(workdir) == files_of(expected)
    for stage in ("stage1", "stage2"):
        ours, theirs = workdir / stage, expected / stage
        assert rows_of(ours / "metrics.jsonl") == rows_of(theirs / "metrics.jsonl")
        names = [p.name for p in theirs.iterdir() if p.name.startswith(("evaluation_", "completions_"))]
        assert len(names) == 6
        for name in (*names, "export/model.safetensors", "export/config.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    ours, theirs = ((w / "stage2" / "rubrics.jsonl").read_text().splitlines() for w in (workdir, expected))
    assert sorted(ours) == sorted(theirs)  # in the order of writing, which a kill may change


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = run(workdir)
    assert code == 0, err
    return workdir


@pytest.fixture
def again(undisturbed, tmp_path):
    """Continues a copy of the undisturbed run, which `damage(workdir)` changes first: (its result, its workdir)."""

    def continued(damage):
        # In the place of the original, whose path is in its config.
        shutil.copytree(undisturbed, tmp_path / "kept")
        try:
            damage(undisturbed)
            result = run(undisturbed)
            undisturbed.rename(tmp_path / "continued")
        finally:
            shutil.rmtree(undisturbed, ignore_errors=True)
            (tmp_path / "kept").rename(undisturbed)
        return result, tmp_path / "continued"

    return continued


# --- kills -------------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(undisturbed, tmp_path):
    generator = random.Random(0)
    moments = [(i + generator.random()) / KILLS for i in range(KILLS)]  # parts of a run's time, all over it
    generator.shuffle(moments)
    began = time.monotonic()
    assert run(tmp_path / "timed")[0] == 0
    seconds, killed, number, compiled = time.monotonic() - began, [], 0, []
    assert_same_result(tmp_path / "timed", undisturbed)
    while moments:
        number, kills = number + 1, len(killed)
        assert number <= 3 * KILLS, "runs end before they are killed"
        workdir = tmp_path / f"run{number}"
        while True:
            began, process = time.monotonic(), start(workdir)
            try:
                _, err = process.communicate(timeout=moments[0] * seconds if moments else 600)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed.append((round(moments.pop(0), 2), state_of(workdir)))
                continue
            assert process.returncode == 0, (killed, err)
            assert "Traceback" not in err, (killed, err)
            break
        if len(killed) == kills:  # the machine is faster than it was
            seconds = time.monotonic() - began
        assert_same_result(workdir, undisturbed)
        compiled.append(json.loads((workdir / "stage2" / "metrics.jsonl").read_text().splitlines()[-1])["compilations"])
        shutil.rmtree(workdir)
    assert min(compiled) == 0, "no restart found all its programs among those that are kept"
    print(f"{len(killed)} kills of {number} runs, each of {seconds:.0f} s undisturbed:", *killed, sep="\n")
    assert len(killed) == KILLS


def state_of(workdir):
    """What was last begun in a workdir, for the test's report."""
    files = [path for path in workdir.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return "nothing written" if newest is None else "/".join(newest.relative_to(workdir).parts[:4])


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path):
    left = tmp_path / "7.orbax-checkpoint-tmp"
    (left / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(8, {"x": jnp.zeros(2)}, {})
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["8"]


# --- disks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remounted(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_disk_that_is_full_again_and_again(undisturbed, tmp_path):
    needed = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()) // 1024
    full, said = 0, []
    with mounted(tmp_path / "disk", "size=16k") as disk:
        for part in (0, 0.1, 0.4, 3):
            remounted(disk, f"size={16 + int(part * needed)}k")
            code, out, err = run(disk / "run")
            said.append(err)
            assert "damaged" not in out, out
            if code == 0:
                break
            assert_one_line((code, out, err), "the same command continues")
            full += 1
        assert code == 0 and full >= 3, said
        assert_same_result(disk / "run", undisturbed)


def test_files_that_may_not_grow(undisturbed, tmp_path):
    """A limit of the size of a file is met at the first checkpoint, and is told as a full disk is."""

    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); "
    limited += "sys.argv[0] = 'rcsd_jax.main'; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    process = forked_program.start_script(limited, *arguments(tmp_path / "run"))
    assert_one_line(process.result(), "the same command continues")
    code, out, err = run(tmp_path / "run")
    assert code == 0 and "damaged" not in out, err
    assert_same_result(tmp_path / "run", undisturbed)


def test_a_workdir_that_cannot_be_written(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "run" / "stage1").mkdir(parents=True)
        remounted(disk, "ro")
        assert_one_line(run(disk / "run"), "the workdir cannot be written", "--workdir")
        assert_one_line(run(disk / "another"), "the workdir cannot be written", "--workdir")


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("kept")
    for workdir in (tmp_path / "file", Path("/proc/no/such/place")):
        assert_one_line(run(workdir), "the workdir cannot be written", "--workdir")
    assert (tmp_path / "file").read_text() == "kept"


# --- torn files --------------------------------------------------------------------------------------------------------


def tear(path):
    data = path.read_bytes()
    assert len(data) > 1
    path.write_bytes(data[: len(data) // 2])


def unfinished(workdir):
    """As if killed before the export of Stage II."""
    for name in ("summary.json", "evaluation_trained.json"):
        (workdir / "stage2" / name).unlink()
    shutil.rmtree(workdir / "stage2" / "export")


def last_line_torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def rubrics_torn(workdir):
    unfinished(workdir)
    last_line_torn(workdir / "stage2" / "rubrics.jsonl")


def metrics_torn(workdir):
    unfinished(workdir)
    shutil.rmtree(workdir / "stage2" / "checkpoints" / "2")
    last_line_torn(workdir / "stage2" / "metrics.jsonl")


def checkpoint_torn(workdir):
    unfinished(workdir)
    files = sorted(path for path in (workdir / "stage2" / "checkpoints" / "2").rglob("*") if path.is_file())
    for path in files[::3]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    files[1].unlink()


def export_torn(workdir):
    (workdir / "stage2" / "summary.json").unlink()
    tear(workdir / "stage2" / "export" / "model.safetensors")
    tear(workdir / "stage2" / "completions_trained.jsonl")
    (workdir / "stage2" / "evaluation_trained.json").unlink()


@pytest.mark.parametrize("damage", [rubrics_torn, metrics_torn, checkpoint_torn, export_torn])
def test_what_can_be_made_again_is(damage, again, undisturbed):
    (code, out, err), workdir = again(damage)
    assert code == 0 and "Traceback" not in err, err
    if damage is checkpoint_torn:
        moved = workdir / "stage2" / "checkpoints" / "damaged_2"
        assert f"was moved to {undisturbed / 'stage2' / 'checkpoints' / 'damaged_2'}" in out and moved.is_dir()
        shutil.rmtree(moved)
    assert_same_result(workdir, undisturbed)


TORN = {
    "stage2/config.json": "restore it",
    "stage2/summary.json": "restore it",
    "stage2/evaluation_base.json": "restore it",
    "stage2/rubrics.jsonl": "remove this line",
    "stage1/export/model.safetensors": "",
    "stage1/export/config.json": "",
}


@pytest.mark.parametrize("name", TORN)
def test_what_cannot_is_named(name, again):
    def damage(workdir):
        if name != "stage2/summary.json":
            unfinished(workdir)
        lines = (workdir / name).read_bytes().split(b"\n")
        if name.endswith(".jsonl"):  # not the last line, which a kill may tear
            lines[1] = lines[1][:40]
            (workdir / name).write_bytes(b"\n".join(lines))
        else:
            tear(workdir / name)

    result, _ = again(damage)
    assert_one_line(result, Path(name).name, TORN[name])


# --- two at once -------------------------------------------------------------------------------------------------------


def test_two_runs_on_one_workdir(undisturbed, tmp_path):
    first = start(tmp_path / "run")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "stage1" / "config.json").exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # it holds the workdir for as long as the second run takes to see it
    assert_one_line(run(tmp_path / "run"), "another run is using this workdir", "--workdir")
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    assert_same_result(tmp_path / "run", undisturbed)
