"""The program as a user runs it: bad input gives one line and exit status 2; kills and restarts change nothing."""

import errno
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rcsd_jax.cli.failures import resource_spent
from rcsd_jax.run import provenance
from tests import forked_program, user_inputs, xla_flags

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "--config.train.steps=4", "--config.train.batch_size=4", "--config.sampling.max_new_tokens=8",
    "--config.rubric.max_new_tokens=8", "--config.lora.rank=2", "--config.model.dtype=float32",
    "--config.model.param_dtype=float32", "--config.checkpoint.every=2", "--config.rubric.batch_size=8",
    "--config.optimizer.learning_rate=1e-3",
]  # fmt: skip


start = functools.partial(forked_program.start, "rcsd_jax.main")
run = functools.partial(forked_program.run, "rcsd_jax.main")


def ground_truth(user_dir, workdir, *more, data=None, variant="ground_truth"):
    data = data or user_dir / "rows.jsonl"
    return [
        f"--config=configs/stage2.py:{variant}", f"--workdir={workdir}",
        f"--config.model.path={user_dir / 'model'}", f"--config.data.path={data}", "--noreport", *SHORT, *more,
    ]  # fmt: skip


def exported(workdir):
    return load_file(workdir / "export" / "model.safetensors")


def assert_one_line(result, *words):
    code, _, err = result
    line = err.strip().splitlines()[-1]
    assert code == 2, err
    assert line.startswith("error: ") and "Traceback" not in err, err
    for word in words:
        assert word in line, f"{word!r} not in {line!r}"


@pytest.fixture(scope="module")
def finished(user_dir, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "a[/2] [red]:smile:"  # is text, wherever it is printed
    code, out, err = run(*ground_truth(user_dir, workdir))
    assert code == 0, err
    return workdir, out


def test_a_run_writes_what_it_says(finished):
    workdir, out = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    wanted = {
        "loss", "divergence", "grad_norm", "student_entropy", "teacher_entropy", "completion_length", "share_cut",
        "sampler_trainer_log_prob_difference", "tokens_per_second", "compilations", "share_unended_thoughts",
        "thought_length", "answer_length", "divergence_thought", "student_entropy_answer",
    }  # fmt: skip
    assert wanted <= set(rows[0])
    # The first checkpoint, after the second step, compiles the checksum of its state.
    assert rows[2]["compilations"] == rows[3]["compilations"] <= rows[1]["compilations"] + 1, "a later step compiled"
    assert list((workdir / "tensorboard").iterdir())
    (start,) = provenance.starts(workdir)
    assert shlex.split(start["command"])[:4] == [
        "python",
        "-m",
        "rcsd_jax.main",
        "--config=configs/stage2.py:ground_truth",
    ]
    assert f"--workdir={workdir}" in shlex.split(start["command"])
    assert str(workdir / "export") in out and str(workdir / "adapter") in out


def test_programs_do_not_import_torch(user_dir, tmp_path):
    """transformers and tensorboardX would, where it is installed: two seconds of every start."""
    (tmp_path / "bad.jsonl").write_text('{"question": ""}\n')
    command = [sys.executable, "-X", "importtime", "-m", "rcsd_jax.main"]
    command += ground_truth(user_dir, tmp_path / "run", data=tmp_path / "bad.jsonl")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "the question is empty" in result.stderr and re.search(r"\|\s+tensorboardX$", result.stderr, re.M)
    assert not re.search(r"\|\s+torch\._C$", result.stderr, re.M)


def test_the_same_command_again_does_nothing(finished, user_dir):
    workdir, _ = finished
    before = [(workdir / name).read_bytes() for name in ("metrics.jsonl", "starts.jsonl")]
    code, out, _ = run(*ground_truth(user_dir, workdir))
    assert code == 0 and f"complete, see {workdir}" in out
    assert [(workdir / name).read_bytes() for name in ("metrics.jsonl", "starts.jsonl")] == before


def test_workdir_of_another_config(finished, user_dir):
    workdir, _ = finished
    result = run(*ground_truth(user_dir, workdir, "--config.loss.beta=0.5"))
    assert_one_line(result, "loss.beta", "--workdir")


@pytest.mark.slow
@pytest.mark.parametrize("sig, after_rows", [(signal.SIGKILL, 1), (signal.SIGKILL, 3), (signal.SIGTERM, 2)])
def test_killed_and_started_again_ends_bit_for_bit_alike(finished, user_dir, tmp_path, sig, after_rows):
    workdir = tmp_path / "run"
    process = start(*ground_truth(user_dir, workdir))
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= after_rows):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(sig)
    _, err = process.communicate(timeout=120)
    if sig == signal.SIGTERM:
        assert process.returncode == 143 and "continues" in err
        saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        assert saved >= after_rows
    code, _, err = run(*ground_truth(user_dir, workdir))
    assert code == 0, err
    ours, theirs = exported(workdir), exported(finished[0])
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    strip = lambda rows: [
        {k: v for k, v in r.items() if not k.endswith(("seconds", "second", "compilations"))} for r in rows
    ]
    read = lambda path: strip(map(json.loads, (path / "metrics.jsonl").read_text().splitlines()))
    assert read(workdir) == read(finished[0])


# --- bad input -------------------------------------------------------------------------------------------------------


ROW = user_inputs.made_up_rows(1)[0]
BAD_ROWS = {
    "missing question": ({k: v for k, v in ROW.items() if k != "question"}, ["rows.jsonl", "question"]),
    "empty question": (ROW | {"question": "  "}, ["rows.jsonl:2", "question"]),
    "no rubric": ({k: v for k, v in ROW.items() if k != "rubric"}, ["rubric"]),
    "bad rubric": (ROW | {"rubric": [{"title": "no description"}]}, ["rows.jsonl:2", "rubric"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows(case, user_dir, tmp_path):
    bad, words = BAD_ROWS[case]
    data = tmp_path / "rows.jsonl"
    user_inputs.write_rows(data, [ROW, bad, *[ROW] * 6])
    # Rows that lack a field are left out and counted, unless this is asked for; malformed ones always end the run.
    flags = [] if case == "bad rubric" else ["--config.data.incomplete=fail"]
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", data=data), *flags), *words)


def test_invalid_json_line(user_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n{'question': 'single quotes'}\n")
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", data=data)), "rows.jsonl:2", "JSON")


def test_unknown_alias_names_the_columns(user_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    user_inputs.write_rows(data, [{"ask": "Why?", "rubric": ROW["rubric"]}])
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", data=data)), "ask", "data.fields")


SETTINGS = {
    "unknown key": (["--config.los.beta=1"], ["config.los.beta", "loss.beta"]),
    "unknown choice": (["--config.loss.tail=buckets"], ["loss.tail", "did you mean 'bucket'"]),
    "microbatches": (["--config.train.microbatches=3"], ["train.microbatches", "divisor"]),
    "prompt too long": (
        ["--config.data.too_long=fail", "--config.data.max_student_prompt=8"],
        ["rows.jsonl:1", "data.max_student_prompt", "data.too_long=skip"],
    ),
    "steps": (["--config.train.log_every=0"], ["train.log_every"]),
    "top-k": (["--config.loss.top_k=0"], ["loss.top_k"]),
    "evaluation without a grader": (["--config.eval.every=1"], ["eval.every", "eval.grader"]),
    "role of evaluation": (["--config.eval.roles=('base','techer')"], ["eval.roles", "techer"]),
    "lora target": (["--config.lora.targets=('q_prj',)"], ["lora.targets", "q_prj"]),
    "nothing left": (["--config.data.max_student_prompt=8"], ["no example is left"]),
    "no model": (["--config.model.path="], ["model.path"]),
    "missing model": (["--config.model.path=/does/not/exist"], ["/does/not/exist"]),
    "mesh": (["--config.mesh.data=3", "--config.mesh.fsdp=1"], ["mesh"]),
    "bad variant": (["--config=configs/stage2.py:papre"], ["papre", "paper"]),
    "bad variant of stage 1": (["--config=configs/stage1.py:papre"], ["papre", "paper"]),
    "no config": (["--config=configs/nothing.py"], ["nothing.py"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(case, user_dir, tmp_path):
    flags, words = SETTINGS[case]
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", *flags)), *words)


def test_random_rubrics_of_rows_without_any(user_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    user_inputs.write_rows(data, [{k: v for k, v in ROW.items() if k != "rubric"}])
    result = run(*ground_truth(user_dir, tmp_path / "run", data=data, variant="random"))
    assert_one_line(result, "rows.jsonl:1", "rubric.source", "random")


def test_batches_that_the_mesh_does_not_divide(user_dir, tmp_path):
    flags = [
        "--config.eval.grader=boxed",
        f"--config.eval.path={user_dir / 'rows.jsonl'}",
        "--config.eval.batch_size=6",
    ]
    result = run(
        *ground_truth(user_dir, tmp_path / "run", *flags),
        XLA_FLAGS=xla_flags.with_devices(4),
    )
    assert_one_line(result, "mesh", "eval.batch_size", "6")


def test_mesh_that_does_not_divide_the_heads(user_dir, tmp_path):
    flags = ["--config.mesh.tensor=8", "--config.mesh.fsdp=1"]
    result = run(
        *ground_truth(user_dir, tmp_path / "run", *flags),
        XLA_FLAGS=xla_flags.with_devices(8),
    )
    assert_one_line(result, "mesh.tensor", "8")


def test_checkpoint_of_another_architecture(user_dir, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((user_dir / "model" / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    )
    flags = [f"--config.model.path={model}"]
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", *flags)), "model_type", "mamba", "qwen3")


def test_tokenizer_without_chat_template(user_dir, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in (user_dir / "model").iterdir():
        if file.name != "chat_template.jinja":
            (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_one_line(run(*ground_truth(user_dir, tmp_path / "run", f"--config.model.path={model}")), "chat_template")


def test_what_ran_out_is_told_through_its_wrappers():
    def wrapped(inner):
        try:
            try:
                raise inner
            except Exception as error:
                raise RuntimeError("a thread failed") from error
        except RuntimeError as error:
            return error

    full = OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.jsonl")
    assert "the disk is full" in resource_spent(wrapped(full))
    disk = ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")
    assert "the disk is full" in resource_spent(disk)
    assert "train.microbatches" in resource_spent(wrapped(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")))
    assert resource_spent(wrapped(ValueError("another"))) is None


def test_read_only_workdir_is_one_line(user_dir, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert_one_line(run(*ground_truth(user_dir, blocked / "run")), "workdir", "--workdir")


def test_two_runs_on_one_workdir(user_dir, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock-0").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_line(run(*ground_truth(user_dir, tmp_path / "run")), "another run")


@pytest.mark.slow
def test_non_finite_loss_stops_after_saving_and_names_the_rows(user_dir, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in (user_dir / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, model / "model.safetensors")
    workdir = tmp_path / "run"
    result = run(*ground_truth(user_dir, workdir, f"--config.model.path={model}"))
    assert_one_line(result, "non-finite", "step 0", "rows.jsonl:", "learning_rate", "--workdir")
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] == ["0"]
