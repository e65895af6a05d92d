"""What a stage does before and around its steps: input is checked first, weights are read late and trained in float32."""

import dataclasses
import gc
import io
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from safetensors.numpy import load_file

from configs import stage2
from rcsd_jax.checkpoints import loading
from rcsd_jax.evaluate.questions import evaluation_questions
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import Preempted, UserError
from rcsd_jax.host.files import read_json
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.methods.networks import BASE
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights, open_model, open_served, sampling_of
from rcsd_jax.run import evaluation, loop, rollouts, rubrics, stage, training_state
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from tests import user_inputs
from tests.settings_for_tests import settings_of


def config_for(user_dir, variant="ground_truth"):
    config = stage2.get_config(variant)
    config.model.path = str(user_dir / "model")
    config.lora.rank = 0
    config.data.path = str(user_dir / "rows.jsonl")
    config.sampling.max_new_tokens = 8
    config.rubric.update(max_new_tokens=8, batch_size=8, resample=0, constrained=False)
    config.train.update(steps=1, batch_size=4)
    config.eval.update(batch_size=4, max_new_tokens=None)
    return config


def run(config, workdir):
    with StopRequest() as stop:
        return stage.run_stage(config, workdir, rich.console.Console(quiet=True), stop)


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test when weights are read."""
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were read"))


def test_what_is_trained_is_float32_and_what_is_stored_keeps_its_dtype(user_dir, tmp_path):
    config = config_for(user_dir)
    assert config.model.param_dtype == "bfloat16"
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        model = open_model(config.model.path, config.model)
        setup = training_state.setup(model, load_weights(model, mesh), settings_of(config), mesh)
    assert {x.dtype for x in jax.tree.leaves(setup.abstract.trained)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(setup.frozen)} == {jnp.dtype("bfloat16")}

    config.train.update(steps=0, epochs=4 / 64)  # one step
    assert config.optimizer.learning_rate == 5e-6  # a twelfth of what bfloat16 resolves at 0.02
    run(config, tmp_path / "run")
    state, _ = Checkpoints(tmp_path / "run" / "checkpoints", keep=1).restore(1, setup.abstract)
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), state.trained["layers"], setup.frozen[BASE]["params"]["layers"]
    )
    assert all(1e-7 < m < 2e-5 for m in jax.tree.leaves(moved)), moved
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    np.testing.assert_array_equal(exported["model.embed_tokens.weight"], state.trained["embed"])


@pytest.mark.slow
def test_all_steps_are_one_program(user_dir, tmp_path, monkeypatch):
    made = []

    def kept(*arguments):
        made.append(jit_step(*arguments))
        return made[-1]

    monkeypatch.setattr(rollouts, "jit_step", kept)
    config = config_for(user_dir)
    config.train.steps = 3
    run(config, tmp_path / "run")
    assert [[program._cache_size() for program in step] for step in made] == [[0, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_resumed_run_holds_its_state_once(user_dir, tmp_path, monkeypatch, lora_rank):
    config = config_for(user_dir)
    config.train.steps = 2
    config.lora.rank = lora_rank
    held, original = [], loop._scalars  # called after every step

    def measure(*arguments):
        gc.collect()
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        if len(held) == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "_scalars", measure)
    with pytest.raises(Preempted, match="step 1 of 2"):
        run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert len(held) == 2 and held[1] <= 1.02 * held[0]


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


@pytest.mark.slow
def test_the_writer_s_weights_are_not_read_where_every_text_is_cached(user_dir, tmp_path, monkeypatch):
    config = config_for(user_dir, "paper")
    config.rubric.writer = config.model.path
    loads = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loads.append(1) or load(*a, **k))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_loop", lambda *_: pytest.fail("stop here"))
        with pytest.raises(pytest.fail.Exception, match="stop here"):
            run(config, tmp_path / "run")
    assert len(loads) == 2
    summary = run(config, tmp_path / "run")
    assert len(loads) == 3 and summary["rubrics"]["cached"] == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, moment, number",
    [
        (rubrics, "write_rubrics", signal.SIGINT),
        (rollouts, "make_batch", signal.SIGTERM),
        (stage, "evaluate_role", signal.SIGTERM),
    ],
)
def test_a_stop_is_heard_between_batches_and_steps(user_dir, tmp_path, monkeypatch, module, moment, number):
    config = config_for(user_dir, "paper")
    config.rubric.writer = config.model.path
    config.train.steps = 2
    config.eval.update(grader="boxed", path=config.data.path, count=8, roles=("trained",), greedy=(True,), every=1)
    original = getattr(module, moment)

    def interrupted(*arguments, **named):
        signal.raise_signal(number)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, interrupted)
        with pytest.raises(Preempted) as stopped:
            run(config, tmp_path / "run")
    assert stopped.value.signal == number
    written = (tmp_path / "run" / "rubrics.jsonl").read_text().splitlines()
    assert len(written) == (32 if moment == "write_rubrics" else 64)  # one group of four batches, or all
    if moment != "write_rubrics":
        assert Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest_step() == 1
    assert run(config, tmp_path / "run")["evaluation"]["trained"]["eval"]["greedy"]["questions"] == 8
    assert (tmp_path / "run" / "evaluation_step_1.json").exists()  # also where the stop came in it


def test_a_second_ctrl_c_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_rubrics_are_written_by_an_adapter_on_its_base(user_dir, tmp_path, monkeypatch):
    stage1_config = config_for(user_dir)
    stage1_config.task = "write_rubric"
    stage1_config.lora.rank = 2
    adapter = run(stage1_config, tmp_path / "stage1")["paths"]["adapter"]
    config = config_for(user_dir, "paper")
    config.rubric.writer = adapter
    writer, digest, load = open_served(config.rubric.writer, config.model, sharding.make_mesh())
    variables = load()
    assert writer.directory == user_dir / "model" and writer.decoder.config.lora_scale == 128.0 / 2
    written = load_file(tmp_path / "stage1" / "adapter" / "adapter_model.safetensors")
    b = written["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    np.testing.assert_array_equal(variables["lora"]["q"]["b"][1], b.T)
    assert b.any()
    config.rubric.writer = str(user_dir / "model")
    assert open_served(config.rubric.writer, config.model, sharding.make_mesh())[1] != digest


def test_a_teacher_that_reasons_first_is_evaluated_after_its_analysis(user_dir, tmp_path):
    config = config_for(user_dir, "reason_first")
    config.teacher.reason_tokens = 4
    config.sampling.update(temperature=1.0, top_k=0, top_p=1.0)
    config.eval.update(grader="boxed", path=config.data.path, count=3)
    model = open_model(config.model.path, config.model)
    config = settings_of(config)
    asked = evaluation_questions(config.eval, config.reading(), config.encoding, config.limits, model.tokenizer)
    assert not len(asked["base"]["eval"].transition)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh), StopRequest() as stop:
        this = Run(config, tmp_path, mesh, rich.console.Console(quiet=True), stop, "")
        sampler = this.sampler(model, config.eval.batch_size).with_weights({"params": load_weights(model, mesh)})
        teacher = asked["teacher"]["eval"]
        log, sampling = evaluation.open_unfinished(None), sampling_of(config.sampling, model)
        prompts = evaluation.after_analyses(teacher, sampler, log, sampling, reason_tokens=4)
    transition = teacher.transition
    for before, after in zip(teacher.prompts, prompts, strict=True):
        assert list(after[: len(before)]) == list(before) and list(after[-len(transition) :]) == list(transition)
        assert 0 <= len(after) - len(before) - len(transition) <= 4
    assert any(len(a) > len(b) + len(transition) for a, b in zip(prompts, teacher.prompts, strict=True))


@pytest.mark.slow
def test_data_that_changed_since_the_checkpoint(user_dir, tmp_path):
    config = config_for(user_dir, "reference")
    rows = user_inputs.made_up_rows(8)
    config.data.path = str(tmp_path / "rows.jsonl")
    user_inputs.write_rows(tmp_path / "rows.jsonl", rows)
    run(config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    user_inputs.write_rows(tmp_path / "rows.jsonl", [*rows[:-1], rows[-1] | {"reference_answer": "another"}])
    with pytest.raises(UserError, match="the prompts are not those"):
        run(config, tmp_path / "run")


def test_columns_that_are_not_read_and_questions_that_are_not_asked_are_told_once(user_dir, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def load(*_, **__):
        raise Reached

    monkeypatch.setattr(loading, "load_model", load)
    config = config_for(user_dir)
    rows = [row | {"input": "[bold]two[/bold]", "inp[/]ut": "x"} for row in user_inputs.made_up_rows(3)]
    rows[1]["question"] *= 40
    user_inputs.write_rows(tmp_path / "rows.jsonl", rows)
    config.data.update(path=str(tmp_path / "rows.jsonl"), max_student_prompt=500)
    config.eval.update(grader="boxed", path=config.data.path)
    console = Console(file=io.StringIO(), width=60)
    with StopRequest() as stop, pytest.raises(Reached):
        stage.run_stage(config, tmp_path / "run", console, stop)
    said = console.file.getvalue().splitlines()
    assert [line for line in said if "not read" in line] == [
        f"{config.data.path}: not read: 'input' (3 of 3 rows, from row 1 on) looks like a part of the question, which is "
        "'question'; data.fields.question=question+input reads both"
    ]
    assert said.count("eval: 1 of 3 questions are too long for the student, and not asked") == 1
    assert "run: 2 examples, 1 skipped as too long" in said


def test_longer_than_the_model_s_positions(user_dir, tmp_path, no_weights):
    config = config_for(user_dir)
    config.sampling.max_new_tokens = 4096
    with pytest.raises(UserError, match="4096 positions; lower it"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_quantized_weights_are_told_trained_over_and_not_exported(user_dir, tmp_path):
    config = config_for(user_dir)
    config.model.update(quantization="int4", dtype="float32", param_dtype="float32")
    config.sampling.int8_cache = True
    config.lora.update(rank=2)
    config.train.steps = 2
    config.optimizer.learning_rate = 1e-2
    config.eval.update(grader="boxed", path=config.data.path, count=4, greedy=(True,))
    summary = run(config, tmp_path / "run")
    for role in ("student", "teacher"):
        told = summary["quantization"][role]
        assert 0 < told["kl"] < 0.01 < told["entropy"] and told["tokens"] > 50, told
    plain = load_file(user_dir / "model" / "model.safetensors")
    merged = load_file(tmp_path / "run" / "export" / "model.safetensors")
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    module = "model.layers.0.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    assert np.abs(b).max() > 0
    expected = plain[f"{module}.weight"] + config.lora.alpha / 2 * b @ a
    np.testing.assert_allclose(merged[f"{module}.weight"], expected, rtol=0, atol=1e-6)


def test_quantized_weights_need_weights_that_do_not_change(user_dir):
    from rcsd_jax.settings.unpack import check

    config = config_for(user_dir)
    config.model.quantization = "int4"
    check(config)
    config.sampling.merged_adapters = True
    with pytest.raises(UserError, match="sampling.merged_adapters.* cannot be added into quantized"):
        check(config)
    config.sampling.merged_adapters = False
    config.teacher.weights = "ema"
    with pytest.raises(UserError, match="model.quantization"):
        check(config)


def test_only_a_student_of_float_weights_samples_from_an_int8_copy(user_dir):
    from rcsd_jax.settings.unpack import check

    config = config_for(user_dir)
    config.sampling.int8_weights, config.model.quantization = True, "int8"
    check(config)  # the int8 weights are the teacher's
    config.lora.rank = 2
    with pytest.raises(UserError, match="sampling.int8_weights.* in int8 already"):
        check(config)
    config.model.quantization = "none"
    config.sampling.merged_adapters = True
    check(config)
    config.sampling.source = "teacher"
    with pytest.raises(UserError, match="sampling.int8_weights.* that the student writes"):
        check(config)


@pytest.mark.parametrize("changes, told", [({}, True), ({"importance_clip": 2.0}, False)], ids=str)
def test_a_loss_that_does_not_correct_for_an_int8_copy_is_told(user_dir, tmp_path, monkeypatch, changes, told):
    def stopped(*_, **__):
        raise Preempted("before weights are read", signal=signal.SIGTERM)

    monkeypatch.setattr(loading, "load_model", stopped)
    config, said = config_for(user_dir), io.StringIO()
    config.sampling.int8_weights = True
    config.loss.update(changes)
    with StopRequest() as stop, pytest.raises(Preempted):
        stage.run_stage(config, tmp_path / "run", Console(file=said), stop)
    assert ("set loss.importance_clip" in said.getvalue()) is told, said.getvalue()
    grpo = settings_of(stage2.get_config("grpo"))
    sampling = dataclasses.replace(grpo.sampling, int8_weights=True)
    assert not dataclasses.replace(grpo, sampling=sampling).uncorrected_sampler  # its ratio is to the sampler


def test_a_step_lasts_until_its_values_are_there():
    class Late:
        def __float__(self):
            time.sleep(0.05)
            return 3.0

    scalars = loop._scalars({"loss": Late(), "completion_tokens": 8.0}, 1e-5, time.monotonic())
    assert scalars["step_seconds"] >= 0.05 and scalars["tokens_per_second"] <= 160


@pytest.mark.slow
def test_evaluations_between_are_of_the_chosen_sets(user_dir, tmp_path):
    config = config_for(user_dir)
    config.train.steps = 2
    config.eval.update(grader="boxed", count=4, roles=("trained",), greedy=(True,), every=1, every_splits=("two",))
    config.eval.splits = {"one": config.data.path, "two": config.data.path}
    assert set(run(config, tmp_path / "run")["evaluation"]["trained"]) == {"one", "two"}
    assert set(read_json(tmp_path / "run" / "evaluation_step_1.json")) == {"two"}
