"""What a stage does before and around its steps: input is checked first, weights are read late and trained in float32."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from safetensors.numpy import load_file

from configs import stage2
from rcsd_jax import stage
from rcsd_jax.errors import Preempted, UserError
from rcsd_jax.models import sharding
from rcsd_jax.preemption import StopRequest
from tests import user_inputs


def config_for(user_dir, variant="ground_truth"):
    config = stage2.get_config(variant)
    config.model.path = str(user_dir / "model")
    config.lora.rank = 0
    config.data.path = str(user_dir / "rows.jsonl")
    config.sampling.max_new_tokens = 8
    config.rubric.update(max_new_tokens=8, batch_size=8, resample=0)
    config.train.update(steps=1, batch_size=4)
    config.eval.batch_size = 4
    return config


def run(config, workdir):
    return stage.run_stage(config, workdir, rich.console.Console(quiet=True))


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test when weights are read."""
    monkeypatch.setattr(stage.huggingface, "load", lambda *_, **__: pytest.fail("weights were read"))


def test_what_is_trained_is_float32_and_what_is_stored_keeps_its_dtype(user_dir, tmp_path):
    config = config_for(user_dir)
    assert config.model.param_dtype == "bfloat16"
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        model = stage.load_weights(stage.open_model(config.model.path, config), config, mesh)
        state, frozen, *_ = stage.init(model, config, mesh)
    assert {x.dtype for x in jax.tree.leaves(state.trained)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, state.trained, jax.tree.map(lambda x: x.astype(jnp.float32), frozen))

    assert config.optimizer.learning_rate == 5e-6  # a twelfth of what bfloat16 resolves at 0.02
    summary = run(config, tmp_path / "run")
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert {x.dtype for x in exported.values()} == {jnp.dtype("bfloat16")}
    state, _ = stage.Checkpoints(tmp_path / "run" / "checkpoints", keep=1).restore(1, state)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.trained["layers"], frozen["layers"])
    assert all(1e-7 < m < 2e-5 for m in jax.tree.leaves(moved)), moved
    assert summary["examples"] == 64


def test_a_row_that_cannot_be_evaluated_ends_the_run_before_weights_are_read(user_dir, tmp_path, no_weights):
    held_out = tmp_path / "held_out.jsonl"
    row = user_inputs.made_up_rows(1)[0]
    user_inputs.write_rows(held_out, [row, {k: v for k, v in row.items() if k != "rubric"}])
    config = config_for(user_dir)
    config.eval.update(grader="boxed", path=str(held_out))
    with pytest.raises(UserError, match=r"held_out.jsonl:2: .*rubric.* leave 'teacher' out of eval.roles"):
        run(config, tmp_path / "run")
    config.eval.roles = ("base", "trained")
    user_inputs.write_rows(held_out, [{k: v for k, v in row.items() if k != "reference_answer"}])
    with pytest.raises(UserError, match=r"held_out.jsonl:1: .*no reference") as error:
        run(config, tmp_path / "run2")
    assert "eval.roles" not in str(error.value)


def test_the_writer_s_weights_are_not_read_where_every_text_is_cached(user_dir, tmp_path, monkeypatch):
    config = config_for(user_dir, "paper")
    config.rubric.writer = config.model.path
    loads = []
    load = stage.huggingface.load
    monkeypatch.setattr(stage.huggingface, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_loop", lambda *_: pytest.fail("stop here"))
        with pytest.raises(pytest.fail.Exception, match="stop here"):
            run(config, tmp_path / "run")
    assert len(loads) == 2
    summary = run(config, tmp_path / "run")
    assert len(loads) == 3 and summary["rubrics"]["cached"] == 64


@pytest.mark.parametrize(
    "moment, number",
    [("write_rubrics", signal.SIGINT), ("make_batch", signal.SIGTERM), ("evaluate_role", signal.SIGTERM)],
)
def test_a_stop_is_heard_between_batches_and_steps(user_dir, tmp_path, monkeypatch, moment, number):
    config = config_for(user_dir, "paper")
    config.rubric.writer = config.model.path
    config.train.steps = 2
    config.eval.update(grader="boxed", path=config.data.path, count=8, roles=("trained",), greedy=(True,), every=1)
    original = getattr(stage, moment)

    def interrupted(*arguments, **named):
        signal.raise_signal(number)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(stage, moment, interrupted)
        with pytest.raises(Preempted) as stopped:
            run(config, tmp_path / "run")
    assert stopped.value.signal == number
    written = (tmp_path / "run" / "rubrics.jsonl").read_text().splitlines()
    assert len(written) == (8 if moment == "write_rubrics" else 64)  # one batch, or all
    if moment != "write_rubrics":
        assert stage.Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest_step() == 1
    assert run(config, tmp_path / "run")["evaluation"]["trained"]["eval"]["greedy"]["questions"] == 8


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
