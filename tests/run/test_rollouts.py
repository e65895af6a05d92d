"""Rollouts that serve several updates: a run of them, its metrics, and what a stop in the middle of one leaves to the next start."""

import contextlib
import io
import json
import shutil
import signal
import time
import types

import numpy as np
import pytest

from configs import stage2
from configs import world as world_config
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import Preempted, UserError
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.run import inputs, loop, rollouts, stage
from rcsd_jax.run.checkpoints import newest_step
from tests import eight_devices
from tests.cli.test_main import ground_truth, start
from tests.cli.test_main import run as main
from tests.settings_for_tests import settings_of


def config_for(user_dir, **train):
    config = stage2.get_config("ground_truth")
    config.model.update(path=str(user_dir / "model"), dtype="float32", param_dtype="float32", remat="none")
    config.lora.rank = 2
    config.data.update(path=str(user_dir / "rows.jsonl"), max_teacher_prompt=256, pad_to=64)
    config.sampling.update(max_new_tokens=8, temperature=1.0)
    config.train.update(batch_size=4, **train)
    config.optimizer.learning_rate = 1e-2
    config.export.merged = False
    return config


def with_grades(config):
    """Rewards, groups, and a teacher that sees what the grader says."""
    config.method = "self_distillation_and_grpo"
    config.sampling.group = 2
    config.teacher.fields = ("question", "feedback")
    config.reward.update(grader="rubric", score="valid")
    return config


def run(config, workdir):
    """What the run prints."""
    said = io.StringIO()
    with StopRequest() as stop:
        stage.run_stage(config, workdir, Console(file=said, width=200), stop)
    return said.getvalue()


def rows_of(workdir):
    """The rows of metrics without what the clock says."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(("seconds", "second", "compilations"))} for row in rows]


def assert_same_result(ours, theirs):
    assert rows_of(ours) == rows_of(theirs)
    name = "adapter/adapter_model.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@contextlib.contextmanager
def stopped_at(step):
    """SIGTERM during an update."""
    original, calls = loop._scalars, []

    def interrupted(metrics, *more):
        calls.append(1)
        if len(calls) == step + 1:
            signal.raise_signal(signal.SIGTERM)
        return original(metrics, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_scalars", interrupted)
        yield


@pytest.fixture(scope="module")
def undisturbed(user_dir, tmp_path_factory):
    """A run of two rollouts, each of two batches and two passes, that nothing disturbed; and what it printed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    config = with_grades(config_for(user_dir, steps=8, batches_per_rollout=2, passes_per_rollout=2))
    return workdir, run(config, workdir)


def test_updates_learn_from_the_batches_of_a_rollout_in_order(undisturbed):
    workdir, said = undisturbed
    rows = rows_of(workdir)
    assert [row["updates_since_rollout"] for row in rows] == [0, 1, 2, 3] * 2
    batch = [row["teacher_entropy"] for row in rows]  # of a fixed teacher: a fingerprint of the completions
    assert batch[0:2] == batch[2:4] and batch[4:6] == batch[6:8] and len(set(batch)) == 4
    moved = [row["sampler_trainer_log_prob_difference"] for row in rows]
    assert max(moved[0], moved[4]) < 1e-3 < min(moved[1:4] + moved[5:8])
    assert said.count("4 updates learn from each rollout without importance weights; loss.importance_clip=2 adds") == 1


@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stop_in_the_middle_of_a_rollout_changes_nothing(step, undisturbed, user_dir, tmp_path):
    config = with_grades(config_for(user_dir, steps=8, batches_per_rollout=2, passes_per_rollout=2))
    with stopped_at(step), pytest.raises(Preempted, match=f"saved at step {step + 1} of 8"):
        run(config, tmp_path / "run")
    assert newest_step(tmp_path / "run" / "checkpoints") == step + 1
    assert f"continuing at step {step + 1}" in run(config, tmp_path / "run")
    assert_same_result(tmp_path / "run", undisturbed[0])


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_rollout_keeps_which_criteria_were_dropped_and_failed(tmp_path):
    def config():
        credit = world_config.get_config("credit")
        credit.data.count, credit.eval.grader, credit.export.merged = 16, "", False
        credit.rubric.dropout = 0.4
        credit.train.update(steps=2, batch_size=8, batches_per_rollout=2)
        return credit

    run(config(), tmp_path / "whole")
    with stopped_at(0), pytest.raises(Preempted, match="saved at step 1 of 2"):
        run(config(), tmp_path / "run")
    run(config(), tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert len({row["graded_rubric_score"] for row in rows_of(tmp_path / "run")}) == 2


def test_who_learns_from_an_earlier_policy_without_weights_is_told(user_dir):
    def note(**changes):
        config = config_for(user_dir, steps=8)
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (config[section] if section else config)[name] = value
        return rollouts.note(settings_of(config))

    assert note() is None
    assert note(train__batches_per_rollout=4).startswith("4 updates learn from each rollout without importance weights")
    assert note(train__passes_per_rollout=2).startswith("2 updates")
    assert note(train__passes_per_rollout=2, loss__importance_clip=2.0) is None
    rewarded = dict(train__passes_per_rollout=2, reward__grader="boxed", sampling__group=2)
    assert note(**rewarded, method="grpo") is None  # its ratio is clipped
    assert note(**rewarded, method="self_distillation_and_grpo") is not None
    assert note(train__passes_per_rollout=2, sampling__source="teacher") is None  # which does not move


@pytest.mark.slow
def test_completions_of_another_version_end_the_run_with_one_line(undisturbed, user_dir, tmp_path, monkeypatch):
    config = with_grades(config_for(user_dir, steps=8, batches_per_rollout=2, passes_per_rollout=2))
    with stopped_at(0), pytest.raises(Preempted):
        run(config, tmp_path / "run")
    named = rollouts._named
    renamed = lambda tree: {name.replace("advantages", "gains"): x for name, x in named(tree).items()}
    monkeypatch.setattr(rollouts, "_named", renamed)
    with pytest.raises(UserError, match="of another version, which differs in advantages, gains; continue with"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_evaluations_and_checkpoints_in_the_middle_of_a_rollout(user_dir, tmp_path):
    config = config_for(user_dir, steps=8, batches_per_rollout=4)
    config.loss.importance_clip = 2.0
    config.checkpoint.update(every=3, keep=9)
    config.eval.update(
        grader="boxed", path=config.data.path, count=4, batch_size=4, roles=("trained",), every=5, max_new_tokens=8
    )
    config.eval.greedy = (True,)
    assert "without importance weights" not in run(config, tmp_path / "run")
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == [3, 5, 6, 8] and (tmp_path / "run" / "evaluation_step_5.json").exists()
    rows = rows_of(tmp_path / "run")
    assert rows[0]["importance_clipped"] == 0.0 and [row["updates_since_rollout"] for row in rows] == [0, 1, 2, 3] * 2
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    for number in (6, 5):  # as a kill after it had left them
        (tmp_path / "run" / "summary.json").unlink()
        for step in [step for step in steps if step > number]:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
        (tmp_path / "run" / "evaluation_step_5.json").unlink(missing_ok=True)
        assert f"continuing at step {number}" in run(config, tmp_path / "run")
        assert (tmp_path / "run" / "evaluation_step_5.json").exists() == (number == 5)
        assert_same_result(tmp_path / "run", tmp_path / "kept")


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_rollout(user_dir, tmp_path):
    flags = ["--config.train.steps=24", "--config.train.batches_per_rollout=12", "--config.checkpoint.every=3"]
    code, _, err = main(*ground_truth(user_dir, tmp_path / "kept", *flags))
    assert code == 0, err
    arguments = ground_truth(user_dir, tmp_path / "run", *flags)
    process, metrics = start(*arguments), tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert 0 < newest_step(tmp_path / "run" / "checkpoints") % 12
    code, _, err = main(*arguments)
    assert code == 0, err
    assert_same_result(tmp_path / "run", tmp_path / "kept")


SCRIPT = """
import json, re, sys
import jax, numpy as np
from pathlib import Path
from rcsd_jax.data import sources
from rcsd_jax.methods import dealing
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights, open_model
from rcsd_jax.run import rollouts, training_state
from rcsd_jax.run.environment import Run
from rcsd_jax.run.rows import encode_all
from tests.run.test_rollouts import config_for
from rcsd_jax.settings.unpack import unpack

config = config_for(Path(sys.argv[1]), steps=2, batches_per_rollout=2)
config.train.batch_size = 8
config.optimizer.learning_rate = 2e-4
config = unpack(config)
losses, moves = {}, []
for name, shape in {"1": (1, 1, 1), "1x8": (1, 8, 1), "2x2x2": (2, 2, 2)}.items():
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        model = open_model(config.model.path, config.model, lora_rank=2, lora_alpha=4.0)
        params = load_weights(model, mesh)
        examples = sources.read_as(config.data.path, config.reading(require=("question", "rubric")))[:16]
        data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
        setup = training_state.setup(model, params, config, mesh)
        state = training_state.first_state(model, params, config, setup)
        programs = rollouts.programs_of(setup, model, Run(config, None, mesh, None, None, ""), {})
        rollout = programs.begin(state, data, 0, 0)
        place = sharding.batch_sharding(mesh)
        assert all(x.sharding == place for x in jax.tree.leaves(rollout.completions))
        take = jax.jit(lambda x: dealing.batch_of(x, 1, batches=2, group=1), out_shardings=place)
        text = take.lower(rollout.completions).compile().as_text()
        moves += re.findall("all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter", text)
        for update in range(2):
            state, metrics, _ = programs.update(state, rollout, update)
            losses.setdefault(name, []).append([float(metrics[x]) for x in ("loss", "grad_norm", "teacher_entropy")])
print(json.dumps([losses, moves]))
"""


@pytest.mark.slow
def test_batches_of_a_rollout_stay_on_their_devices_and_learn_the_same_on_every_mesh(user_dir):
    losses, moves = eight_devices.run(SCRIPT, user_dir)
    assert moves == [] and len({loss for loss, *_ in losses["1"]}) == 2
    for name in ("1x8", "2x2x2"):
        np.testing.assert_allclose(losses[name], losses["1"], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_queue_whose_shards_do_not_divide_the_questions_is_refused(user_dir):
    config = config_for(user_dir, steps=8, batches_per_rollout=2)
    config.sampling.group = 2  # a rollout has 4 questions
    for data, fsdp, fits in ((4, 1, True), (2, 8, True), (8, 1, False), (3, 1, False)):
        mesh = types.SimpleNamespace(shape={"data": data, "group": 1, "fsdp": fsdp, "expert": 1, "tensor": 1})
        refused = pytest.raises(UserError, match=rf"in {data} shards, which do not divide the 4 questions of a rollout")
        with contextlib.nullcontext() if fits else refused:
            inputs._check_queue(settings_of(config), mesh)
    config.train.batches_per_rollout = 1
    inputs._check_queue(settings_of(config), mesh)  # without a queue
