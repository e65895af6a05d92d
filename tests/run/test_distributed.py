"""Several processes train as one does: same losses, one report; and when one fails, none of the others waits for it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.test_main import ROOT, ground_truth, run

# Adam makes steps of the learning rate of the smallest gradients' rounding, so the rate is small where sums have another order.
FLAGS = ("--config.model.remat=none", "--config.train.steps=3", "--config.optimizer.learning_rate=2e-4")
LONG = (*FLAGS, "--config.train.steps=150")
TIMEOUT_S = 10  # of heartbeats


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "rcsd_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_all(count, *arguments, of_process=()):
    """`count` processes of one job; `of_process` holds further arguments of some of them: (index, argument)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ("--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}")
    more = {i: [a for j, a in of_process if j == i] for i in range(count)}
    timeout = f"--heartbeat_timeout={TIMEOUT_S}"
    return [start(*arguments, *settings, f"--process_id={i}", timeout, *more[i]) for i in range(count)]


def end_all(jobs, timeout=300):
    """(exit status, stdout, stderr) of each."""
    deadline, ended = time.monotonic() + timeout, []
    try:
        for process in jobs:
            out, err = process.communicate(timeout=deadline - time.monotonic())
            ended.append((process.returncode, out, err))
    finally:
        for process in jobs:
            process.kill()
    return ended


def run_all(count, *arguments):
    ended = end_all(start_all(count, *arguments))
    assert [code for code, _, _ in ended] == [0] * count, ended
    return [out for _, out, _ in ended]


def rows_of(workdir):
    """What is logged, without times and padding: more devices pack rows in another way."""
    others = ("seconds", "second", "compilations", "padded_tokens")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith(others)} for r in rows]


def assert_same_run(ours, theirs, **tolerance):
    mine, others = rows_of(ours), rows_of(theirs)
    assert [row["step"] for row in mine] == list(range(len(others))) and len(others) > 2
    for row, other in zip(mine, others, strict=True):
        np.testing.assert_allclose([row[k] for k in other], list(other.values()), **tolerance)
    for folder, file in (("export", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        saved, expected = load_file(ours / folder / file), load_file(theirs / folder / file)
        assert saved.keys() == expected.keys()
        for name, value in saved.items():
            np.testing.assert_allclose(value, expected[name], err_msg=name, **tolerance)


def wait_for_rows(workdir, count, jobs):
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= count):
        assert all(p.poll() is None for p in jobs) and time.monotonic() < deadline, end_all(jobs, 1)
        time.sleep(0.002)


@pytest.fixture(scope="module")
def alone(user_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = run(*ground_truth(user_dir, workdir, *FLAGS))
    assert code == 0, err
    return workdir


@pytest.mark.slow
def test_two_processes_train_as_one(alone, user_dir, tmp_path):
    workdir = tmp_path / "run"
    outputs = run_all(2, *ground_truth(user_dir, workdir, *FLAGS))
    assert_same_run(workdir, alone, rtol=1e-5, atol=1e-5)
    spoken = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out in outputs]
    assert any("train: 3/3" in line for line in spoken[0]) and not spoken[1]
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_four_processes_train_as_one(alone, user_dir, tmp_path):
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    run_all(4, *ground_truth(user_dir, tmp_path / "run", *FLAGS, *mesh))
    assert_same_run(tmp_path / "run", alone, rtol=1e-5, atol=2e-5)  # a tenth of a step of Adam


@pytest.mark.slow
def test_two_processes_grade_as_one(user_dir, tmp_path):
    flags = [
        *FLAGS, "--config.method=self_distillation_and_grpo", "--config.reward.grader=rubric", "--config.reward.score=valid",
        "--config.sampling.group=2", "--config.teacher.fields=('question','feedback')", "--config.policy.weight=0.5",
    ]  # fmt: skip
    code, _, err = run(*ground_truth(user_dir, tmp_path / "one", *flags))
    assert code == 0, err
    run_all(2, *ground_truth(user_dir, tmp_path / "two", *flags))
    assert_same_run(tmp_path / "two", tmp_path / "one", rtol=1e-5, atol=1e-5)
    assert all(row["share_taught"] == 1.0 and row["divergence"] > 0 for row in rows_of(tmp_path / "two"))


@pytest.mark.slow
def test_a_rollout_of_two_processes_goes_on_in_one(user_dir, tmp_path):
    flags = [
        *FLAGS, "--config.train.steps=4", "--config.train.batches_per_rollout=2", "--config.checkpoint.every=1",
        "--config.checkpoint.keep=4", "--config.loss.importance_clip=2.0",
    ]  # fmt: skip
    code, _, err = run(*ground_truth(user_dir, tmp_path / "one", *flags))
    assert code == 0, err
    run_all(2, *ground_truth(user_dir, tmp_path / "two", *flags))
    assert_same_run(tmp_path / "two", tmp_path / "one", rtol=1e-5, atol=1e-5)
    (tmp_path / "two" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "4")
    code, out, err = run(*ground_truth(user_dir, tmp_path / "two", *flags))
    assert code == 0 and "continuing at step 3" in out, err
    assert_same_run(tmp_path / "two", tmp_path / "one", rtol=1e-5, atol=1e-5)


@pytest.mark.cluster
def test_rubrics_and_evaluation_of_two_processes_are_those_of_one(user_dir, tmp_path):
    flags = [
        *FLAGS, f"--config.rubric.writer={user_dir / 'model'}", "--config.eval.grader=boxed", "--config.eval.every=2",
        f"--config.eval.path={user_dir / 'rows.jsonl'}", "--config.eval.count=6", "--config.eval.batch_size=4",
        "--config.eval.max_new_tokens=8", "--config.rubric.constrained=False",
    ]  # fmt: skip
    code, _, err = run(*ground_truth(user_dir, tmp_path / "one", *flags, variant="paper"))
    assert code == 0, err
    run_all(2, *ground_truth(user_dir, tmp_path / "two", *flags, variant="paper"))
    roles = ("base", "teacher", "step_2", "trained")
    for name in (
        "rubrics.jsonl",
        *(f"{what}_{r}.json{l}" for r in roles for what, l in (("evaluation", ""), ("completions", "l"))),
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() != b"", name
    # A job that was killed after its rubrics goes on with those that process 0 has on disk, and writes the same summary.
    summary = (tmp_path / "two" / "summary.json").read_text()
    (tmp_path / "two" / "summary.json").unlink()
    run_all(2, *ground_truth(user_dir, tmp_path / "two", *flags, variant="paper"))
    again = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert again["rubrics"].pop("cached") > 0
    assert again["evaluation"] == json.loads(summary)["evaluation"]


@pytest.fixture(scope="module")
def undisturbed(user_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_all(2, *ground_truth(user_dir, workdir, *LONG))
    return workdir


@pytest.mark.cluster
@pytest.mark.parametrize("victim", [0, 1])
def test_kill_one_process(undisturbed, user_dir, tmp_path, victim):
    arguments = ground_truth(user_dir, tmp_path / "run", *LONG)
    jobs = start_all(2, *arguments)
    wait_for_rows(tmp_path / "run", 5, jobs)
    jobs[victim].kill()
    began = time.monotonic()
    ended = end_all(jobs)
    assert time.monotonic() - began < TIMEOUT_S + 20
    code, _, err = ended[1 - victim]
    last = err.strip().splitlines()[-1]
    assert code == 3 and "is gone" in last and "the same command continues" in last, ended
    run_all(2, *arguments)
    assert_same_run(tmp_path / "run", undisturbed, rtol=0, atol=0)


@pytest.mark.cluster
def test_a_process_that_stands_still_is_gone_after_the_timeout(user_dir, tmp_path):
    jobs = start_all(2, *ground_truth(user_dir, tmp_path / "run", *LONG))
    wait_for_rows(tmp_path / "run", 5, jobs)
    jobs[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        _, err = jobs[0].communicate(timeout=TIMEOUT_S + 20)
    finally:
        end_all(jobs[1:], timeout=1) if jobs[1].kill() else None
    # Counted from its last beat, which was up to two beats before the signal.
    assert jobs[0].returncode == 3 and time.monotonic() - began >= TIMEOUT_S - 2
    assert err.strip().splitlines()[-1].startswith("error: process 1 is gone (no sign of life for 10 s)"), err


@pytest.mark.cluster
@pytest.mark.parametrize("receiver", [0, 1])
def test_sigterm_of_one_process_stops_all_at_the_same_step(undisturbed, user_dir, tmp_path, receiver):
    arguments = ground_truth(user_dir, tmp_path / "run", *LONG)
    jobs = start_all(2, *arguments)
    wait_for_rows(tmp_path / "run", 5, jobs)
    jobs[receiver].send_signal(signal.SIGTERM)
    ended = end_all(jobs)
    assert [code for code, _, _ in ended] == [143, 143], ended
    (line,) = {err.strip().splitlines()[-1] for _, _, err in ended}
    assert "saved at step" in line and "continues" in line
    run_all(2, *arguments)
    assert_same_run(tmp_path / "run", undisturbed, rtol=0, atol=0)


@pytest.mark.cluster
@pytest.mark.parametrize("where", [0, 1])
def test_bad_input_of_one_process_ends_all_with_one_line(user_dir, tmp_path, where):
    missing = f"--config.data.path={tmp_path / 'missing.jsonl'}"
    jobs = start_all(2, *ground_truth(user_dir, tmp_path / "run"), of_process=[(where, missing)])
    ended = end_all(jobs, timeout=60)
    for i, (code, _, err) in enumerate(ended):
        assert code == 2 and len(err.strip().splitlines()) == 1 and "missing.jsonl" in err, ended
        assert err.startswith("error: " if i == where else f"error: process {where}: ")


def test_settings_of_several_processes_without_the_flag(user_dir, tmp_path):
    code, _, err = run(*ground_truth(user_dir, tmp_path / "run", "--num_processes=2"))
    assert code == 2 and "--num_processes" in err and "--distributed" in err and len(err.splitlines()) == 1
