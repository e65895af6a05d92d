"""What a run gives to its trackers, over several starts."""

import io
import json

import jax
import numpy as np
import pytest

from rcsd_jax.host import multihost, trackers
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.host.trackers import Opened
from rcsd_jax.run import stage, tracking
from rcsd_jax.run.environment import Run
from tests.run.test_stage import config_for
from tests.settings_for_tests import settings_of


@pytest.fixture
def kept(monkeypatch):
    """A stand-in for W&B: id -> (what was described, entries, whether it ended complete), in the order of the starts."""
    starts = []

    def opened(asked):
        entries = []
        start = [asked, entries, None]
        starts.append(start)
        return Opened(
            asked.id or f"id{len(starts)}",
            lambda step, scalars, rows: entries.append((step, scalars, rows)),
            lambda complete: start.__setitem__(2, complete),
        )

    monkeypatch.setitem(trackers.CLIENTS, "wandb", opened)
    monkeypatch.setattr(trackers, "need_installed", lambda name: None)
    return starts


def run(config, workdir):
    out = io.StringIO()
    with StopRequest() as stop:
        stage.run_stage(config, workdir, Console(file=out), stop)
    return out.getvalue()


def test_a_run_that_goes_on_logs_to_the_same_run_what_its_files_hold(user_dir, tmp_path, kept):
    config = config_for(user_dir)
    config.log.update(wandb="team/proj", completions_every=2)
    config.eval.update(grader="boxed", path=str(user_dir / "rows.jsonl"), count=4, greedy=(True,), roles=("base",))
    workdir = tmp_path / "shown"
    run(config, workdir)
    config.train.steps = 3
    run(config, workdir)
    run(config, workdir)  # complete: it logs nothing
    (asked, first, ended), (again, second, ended_again) = kept
    assert (asked.project, asked.name, asked.folder, asked.id) == ("team/proj", "shown", workdir, None)
    assert again.id == "id1" and (ended, ended_again) == (True, True)
    assert (asked.config["train.steps"], again.config["train.steps"]) == (1, 3)

    rows = {row.pop("step"): row for row in read_metrics(workdir)}
    logged = {step: scalars for step, scalars, _ in first + second if "loss" in scalars}
    assert logged == rows and set(rows) == {0, 1, 2}
    accuracy = json.loads((workdir / "evaluation_base.json").read_text())["eval"]["greedy"]["accuracy"]
    assert (first[0][0], first[0][1]["eval_student/eval/greedy/accuracy"]) == (0, accuracy)

    tables = {step: table for step, _, table in first + second if table}
    assert set(tables) == {0, 2} and all(len(table) == 4 for table in tables.values())
    questions = [json.loads(line)["question"] for line in (user_dir / "rows.jsonl").read_text().splitlines()]
    for step, table in tables.items():
        assert all(row["question"] == questions[int(row["id"].split(":")[1]) - 1] for row in table)
        assert (
            sum(row["tokens"] for row in table) + sum(not row["cut"] for row in table)
            == rows[step]["completion_tokens"]
        )
        assert np.mean([row["cut"] for row in table]) == rows[step]["share_cut"]
        # Losses are sums over a completion, of the batch's mean over tokens.
        np.testing.assert_allclose(
            sum(row["loss"] for row in table), rows[step]["loss"] * rows[step]["completion_tokens"], rtol=1e-5
        )


def a_run(tmp_path, user_dir, project="proj"):
    config = config_for(user_dir)
    config.log.wandb = project
    out = io.StringIO()
    return Run(settings_of(config), tmp_path, None, Console(file=out), None, "stage2"), out


def test_another_project_is_another_run_and_a_stop_is_no_end(user_dir, tmp_path, kept):
    one, _ = a_run(tmp_path, user_dir)
    with pytest.raises(KeyboardInterrupt), tracking.tracked(one, {}) as track:
        track(0, {"loss": 1.0})
        raise KeyboardInterrupt
    other, _ = a_run(tmp_path, user_dir, "other")
    with tracking.tracked(other, {}):
        pass
    assert [(asked.project, asked.id, complete) for asked, _, complete in kept] == [
        ("proj", None, False),
        ("other", None, True),
    ]
    assert kept[0][0].name == f"{tmp_path.parent.name}-stage2"


def test_a_tracker_out_of_reach_ends_a_first_start_and_no_later_one(user_dir, tmp_path, kept, monkeypatch):
    works = trackers.CLIENTS["wandb"]

    def fails(asked):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setitem(trackers.CLIENTS, "wandb", fails)
    one, out = a_run(tmp_path, user_dir)
    with pytest.raises(UserError) as error, tracking.tracked(one, {}):
        pass
    told = "wandb cannot be used (ConnectionError: no route to host)"
    assert str(error.value) == f"field 'log.wandb' = 'proj': {told}; log in, check its address, or leave it out"
    monkeypatch.setitem(trackers.CLIENTS, "wandb", works)
    with tracking.tracked(one, {}):
        pass
    monkeypatch.setitem(trackers.CLIENTS, "wandb", fails)
    with tracking.tracked(one, {}) as track:
        track(0, {"loss": 1.0})
    assert out.getvalue() == f"stage2: {told}; the run goes on without it\n"


def test_only_process_0_logs(user_dir, tmp_path, kept, monkeypatch):
    one, _ = a_run(tmp_path, user_dir)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost, "from_main", lambda make: (None, None))  # as process 0 sends it
    with tracking.tracked(one, {}) as track:
        track(0, {"loss": 1.0})
    assert kept == []


def test_a_client_that_is_not_installed_names_its_key_and_stage(user_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    one, _ = a_run(tmp_path, user_dir)
    with pytest.raises(
        UserError, match=r"^field 'stage2\.log\.wandb' = 'proj': its client is not installed; pip install"
    ):
        tracking.check_installed(one.config, "stage2")


def test_tables_are_due_only_for_what_is_sampled_and_logged(user_dir):
    config = config_for(user_dir)
    due = lambda: [step for step in range(7) if tracking.table_due(step, settings_of(config))]
    config.log.completions_every = 3
    assert due() == []
    config.log.mlflow = "proj"
    assert due() == [0, 3, 6]
    config.log.completions_every = 0
    assert due() == []
    config.log.completions_every, config.method, config.sampling.source = 3, "sft", "reference"
    assert due() == []
