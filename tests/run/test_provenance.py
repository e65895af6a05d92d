"""How a run was started is kept beside it, and its report says so."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import setuptools

import rcsd_jax
from rcsd_jax.report import collect
from rcsd_jax.run import provenance
from rcsd_jax.settings import keys

ROOT = Path(__file__).resolve().parents[2]


def started(monkeypatch, workdir, *argv):
    monkeypatch.setattr(sys, "orig_argv", ["/some/venv/bin/python3.12", *argv])
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(keys.to_json(keys.stage()))
    provenance.record(workdir)


def test_a_report_shows_the_commands_of_its_run(monkeypatch, tmp_path):
    module, odd = ("-m", "rcsd_jax.main"), "--workdir=runs/it's a[/2] \udc80\x1b"
    started(monkeypatch, tmp_path / "stage1", *module, "--config=tiny", odd)
    for _ in range(2):  # stopped, and started again
        started(monkeypatch, tmp_path / "stage2", *module, "--config=tiny", odd)
    started(monkeypatch, tmp_path / "stage2", *module, "--config=tiny", odd, "--config.mesh.data=2")
    with (tmp_path / "stage2" / "starts.jsonl").open("a") as file:
        file.write('{"at": "a kill left')
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "rcsd_jax.report", str(tmp_path)])
    data = collect.collect(tmp_path)
    assert [shlex.split(command) for command in data["commands"]] == [
        ["python", *module, "--config=tiny", odd],
        ["python", *module, "--config=tiny", odd, "--config.mesh.data=2"],
    ]
    assert data["versions"]["rcsd_jax"] == rcsd_jax.__version__ and data["versions"].keys() >= {"jax", "flax"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", data["made"])


def test_versions_are_those_that_the_run_had(monkeypatch, tmp_path):
    started(monkeypatch, tmp_path, "-m", "rcsd_jax.main")
    monkeypatch.setattr(rcsd_jax, "__version__", "99")
    assert collect.collect(tmp_path)["versions"]["rcsd_jax"] != "99"


def test_of_a_run_older_than_the_record_nothing_is_claimed(tmp_path):
    (tmp_path / "config.json").write_text(keys.to_json(keys.stage()))
    data = collect.collect(tmp_path)
    assert data["commands"] == [] and data["versions"] == {}


def test_the_version_has_one_place(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    assert given["version"] == rcsd_jax.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", given["version"])
    assert f"version: {rcsd_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_examples_hold_one_that_training_changed():
    def written(base, trained):
        return {"base": {"accuracy": base}, "trained": {"accuracy": trained}}

    keys = [("held_out", str(i)) for i in range(6)]
    scores = [(1, 1), (0, 0), (1, 0), (0, 0), (0, 1), (0, 1)]
    rows = {key: written(*of) for key, of in zip(keys, scores, strict=True)}
    assert collect._chosen(rows, 3) == [keys[0], keys[1], keys[4]]
    assert collect._chosen(rows, 5) == keys[:5]
    assert collect._chosen({key: {"base": {}} for key in keys}, 2) == keys[:2]
