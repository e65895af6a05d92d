"""`python -m rcsd_jax.check`: its table, its JSON and its exit status, on one device and on eight."""

import json

import pytest

from tests import eight_devices, forked_program

TINY = ("--config=configs/tiny.py", "--config.stage2.train.batch_size=8")


def test_the_tiny_world_on_one_device(tmp_path):
    code, out, err = forked_program.run("rcsd_jax.check", *TINY, f"--workdir={tmp_path}", f"--json={tmp_path}/too.json")
    assert code == 0, err[-3000:]
    assert "verdict: ok" in out and "no plan for this device" in out and "checking: kernels" in err
    data = json.loads((tmp_path / "check.json").read_text())
    assert data == json.loads((tmp_path / "too.json").read_text())
    assert (data["verdict"], data["stage"], data["config"][-7:]) == ("ok", "stage2", "tiny.py") and "jax" in data[
        "versions"
    ]
    found = {finding["name"]: finding for finding in data["findings"]}
    assert found["train step"]["numbers"]["seconds"] > 0
    assert found["log-probabilities of sampler and trainer"]["numbers"]["mean"] < 1e-4
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["check.json", "too.json"]


@pytest.mark.slow
def test_the_tiny_world_on_eight_devices(tmp_path):
    mesh = [f"--config.stage2.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    code, out, err = forked_program.run(
        "rcsd_jax.check", *TINY, *mesh, f"--workdir={tmp_path}", "--json", XLA_FLAGS=eight_devices.FLAGS
    )
    assert code == 0, err[-3000:]
    data = json.loads(out[out.index("{") :])
    assert data["verdict"] == "ok" and data == json.loads((tmp_path / "check.json").read_text())
    parts = [finding["part"] for finding in data["findings"]]
    assert parts.count("collectives") == 9 and {"kernels", "sampler", "programs", "storage"} <= set(parts)


def test_a_failure_is_exit_status_1(tmp_path):
    (tmp_path / "file").write_text("no folder")
    code, out, _ = forked_program.run("rcsd_jax.check", *TINY, "--only=storage", f"--workdir={tmp_path}/file/run")
    assert code == 1 and "verdict: failed" in out and "check.json cannot be written" in out


@pytest.mark.parametrize(
    "flag, words", [("--only=kernel", "use some of devices"), ("--stage=stage3", "use one of stage1")]
)
def test_a_flag_that_names_nothing(flag, words, tmp_path):
    code, _, err = forked_program.run("rcsd_jax.check", *TINY, flag, f"--workdir={tmp_path}")
    assert code == 2 and words in err
