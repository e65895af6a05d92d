"""Trackers: what their own clients read back from a run that stopped and went on, and what happens if one fails."""

import json
import struct
import threading

import pytest

from rcsd_jax.host import trackers
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.trackers import Described, Opened, Tracker

CONFIG = {"loss.beta": 0.5, "lora.targets": ["q", "k"], "model.path": "base"}
ROWS = [
    {"id": "1", "completion": "ein \\boxed{2}\n", "cut": False, "loss": 0.5},
    {"id": "2", "completion": "", "cut": True, "loss": 1.5},
]


def twice(name, folder):
    """A run of steps 0 to 2 that stopped after step 1, as two starts; returns its id."""
    said = []
    opened = trackers.CLIENTS[name](Described("proj", "shown", CONFIG, folder))
    first = Tracker(name, opened, said.append)
    first.log(0, {"loss": 4.0, "eval_student/a b/greedy/accuracy": 0.25, "nan": float("nan")}, ROWS)
    first.log(1, {"loss": 2.0})
    first.close(complete=False)
    again = trackers.CLIENTS[name](Described("proj", "shown", CONFIG | {"loss.beta": 1.0}, folder, opened.id))
    assert again.id == opened.id
    second = Tracker(name, again, said.append)
    second.log(2, {"loss": 1.0})
    second.close(complete=True)
    assert said == []
    return opened.id


def wandb_records(path):
    """The records of a W&B file: LevelDB's log of 32 KiB blocks, after seven bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, at, held = path.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            yield record
            held = b""


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    id = twice("wandb", tmp_path)
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{id}.wandb"), key=lambda path: path.stat().st_mtime_ns)
    records = [list(wandb_records(path)) for path in files]
    runs = [next(r.run for r in one if r.HasField("run")) for one in records]
    assert [(run.project, run.display_name, run.run_id) for run in runs] == [("proj", "shown", id)] * 2
    config = [{u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in run.config.update} for run in runs]
    assert [one["loss.beta"] for one in config] == [0.5, 1.0] and config[0]["lora.targets"] == ["q", "k"]
    history = []
    for record in (r for one in records for r in one if r.HasField("history")):
        items = {"/".join(i.nested_key) or i.key: i for i in record.history.item}
        history.append({key: json.loads(i.value_json) for key, i in items.items() if i.value_json})
    assert [(row["_step"], row["loss"]) for row in history] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert history[0]["eval_student/a b/greedy/accuracy"] == 0.25 and "nan" not in history[0]
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert json.loads(table.read_text()) | {"ndims": 0} == {
        "columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS], "ndims": 0,
    }  # fmt: skip
    assert [r.exit.exit_code for one in records for r in one if r.HasField("exit")] == [1, 0]


def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}")
    id = twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("proj").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (id, "shown", "FINISHED")
    assert run.data.params == {"loss.beta": "0.5", "lora.targets": "['q', 'k']", "model.path": "base"}
    assert [(m.step, m.value) for m in client.get_metric_history(id, "loss")] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert set(run.data.metrics) == {"loss", "eval_student/a b/greedy/accuracy"}
    folder = next(tmp_path.glob(f"*/{id}/artifacts"))
    assert json.loads((folder / "config.json").read_text())["loss.beta"] == 1.0
    table = json.loads((folder / "completions" / "step_0000000.json").read_text())
    assert table == {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}


def test_trackio_on_this_machine(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (trackio, utils, sqlite_storage):  # read from the environment when first imported
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
    name = twice("trackio", None)
    (run,) = trackio.Api().runs("proj")
    assert run.name == name and name.startswith("shown-")
    assert {key: run.config[key] for key in CONFIG} == CONFIG | {"loss.beta": 1.0}
    rows = sqlite_storage.SQLiteStorage.get_logs("proj", name)
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert rows[0]["completions"]["_value"] == ROWS and "nan" not in rows[0]


def tracker(log, said, **how):
    finished = []
    return Tracker("stand-in", Opened("7", log, finished.append), said.append, **how), finished


def test_a_failure_is_one_line_and_later_entries_are_logged():
    said, got = [], []

    def log(step, scalars, rows):
        if step in (1, 2):
            raise ConnectionError("no route\nto host")
        got.append(step)

    one, finished = tracker(log, said)
    for step in range(4):
        one.log(step, {"loss": 1.0})
    one.close(complete=True)
    assert got == [0, 3] and finished == [True]
    assert said == [
        "stand-in: did not take step 1 (ConnectionError: no route); the run goes on",
        "stand-in: 2 of 4 entries are missing there; metrics.jsonl has all",
    ]


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end():
    said, never = [], threading.Event()
    one, finished = tracker(lambda *_: never.wait(), said, wait_s=0.1)
    for step in range(trackers._HELD + 5):  # more than wait to be sent
        one.log(step, {"loss": 1.0})
    one.close(complete=True)
    never.set()
    assert said == [
        f"stand-in: {trackers._HELD + 5} of {trackers._HELD + 5} entries are missing there; metrics.jsonl has all"
    ]


def test_what_is_logged_is_as_it_was_then():
    got, go = [], threading.Event()
    one, _ = tracker(lambda step, scalars, rows: go.wait() and got.append((step, scalars, rows)), [])
    scalars, rows = {"loss": 1.0}, [ROWS[0]]
    one.log(0, scalars, rows)
    scalars["loss"] = 2.0
    rows.clear()
    go.set()
    one.close(complete=False)
    assert got == [(0, {"loss": 1.0}, [ROWS[0]])]


def test_a_client_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"its client is not installed; pip install 'rcsd_jax\[mlflow\]', or leave it out"
    ):
        trackers.need_installed("mlflow")
