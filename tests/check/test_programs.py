"""The run's programs in small: sampler and trainer, time and memory, and what is wrong with them."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from configs import stage2, tiny
from rcsd_jax.check import programs, small
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, WARNING, Finding
from rcsd_jax.check.programs import Ran
from rcsd_jax.check.stage import rooms, worst
from rcsd_jax.checkpoints.peft import save_peft
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods.networks import TEACHER
from rcsd_jax.methods.state import shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.models import lora, self_attention
from rcsd_jax.plan import measure, networks
from rcsd_jax.plan.chips import CHIPS
from rcsd_jax.plan.compiler import Compilation, Memory
from rcsd_jax.plan.rates import Rates
from rcsd_jax.plan.stage import without_data
from rcsd_jax.settings.unpack import unpack


def settings(config):
    return small.as_run_here(unpack(without_data(config)))


@pytest.fixture(scope="module")
def here():
    """The tiny world's Stage II, on four questions of 16 tokens and completions of 8."""
    with pytest.MonkeyPatch.context() as patch:
        for name, tokens in (("STUDENT_PROMPT", 16), ("TEACHER_PROMPT", 24), ("COMPLETION", 8)):
            patch.setattr(small, name, tokens)
        config = tiny.get_config().stage2
        config.train.batch_size = 4
        config.mesh.fsdp = 1
        return programs.on_these_devices(small.small(settings(config)))


@pytest.fixture(scope="module")
def ran(here):
    return programs.run_update(here)


def test_sampler_and_trainer_agree(here, ran):
    found = programs.check_sampler(here, ran)
    assert found.verdict == OK and found.numbers["mean"] < 1e-5 and found.numbers["tokens"] == 32
    assert "weights of" in found.expected


def test_a_sampler_that_differs_is_found(here, monkeypatch):
    """Each token's attention sees one place too few of the cache."""
    right = self_attention.cached_attention
    monkeypatch.setattr(
        self_attention,
        "cached_attention",
        lambda config, q, cache, layer, index, sliding=None: right(config, q, cache, layer, index - 1, sliding),
    )
    with jax.set_mesh(here.mesh):
        draw = jit_step(here.setup.recipe, shardings_of(here.setup.abstract)).draw
        arguments = here.first(), here.setup.frozen, programs._batch(here), 0
        drawn = {"rollout": Ran(Compilation("", None, "", 0.0), 0.0, draw(*arguments))}
    found = programs.check_sampler(here, drawn)
    assert found.verdict == FAILED and found.numbers["mean"] > 0.01


def test_times_without_a_plan(here, ran):
    (found,) = programs.check_programs(here, ran, None)
    assert (found.name, found.verdict, found.expected) == ("train step", OK, "no plan for this device")
    assert found.numbers["seconds"] > 0 and found.numbers["bytes_needed"] > 2**20


def test_every_program_of_the_plan_is_run_and_held_against_its_time(here, ran, monkeypatch):
    """On a CPU, with the figures of a chip that is much faster."""
    chip = CHIPS["v5e"]
    rates = Rates(chip.clock, chip.hbm, 20 * chip.hbm, 0.5 * chip.bf16, lambda *_: 0.0)
    monkeypatch.setattr(measure, "rates", lambda chip, plan: rates)
    found = {finding.name: finding for finding in programs.check_programs(here, ran, chip)}
    assert set(found) == set(here.plan.programs) and {f.verdict for f in found.values()} == {WARNING}
    planned = {name: finding.numbers["seconds_planned"] for name, finding in found.items()}
    # A step decodes as often as the completion has tokens.
    parts = sum(planned[name] * here.plan.programs[name].runs for name in programs.PARTS["train step"])
    assert here.plan.programs["decode"].runs == 8 and planned["train step"] == pytest.approx(parts)
    monkeypatch.setattr(programs, "SLOW", 1e9)
    assert programs._judged("decode", ran["train step"], planned["decode"]).verdict == OK


def test_a_result_that_is_not_finite_is_found(ran):
    state, metrics, _ = ran["train step"].result
    bad = ran["train step"]._replace(result=(state, metrics | {"loss": jnp.float32(jnp.nan)}))
    found = programs._judged("train step", bad, None)
    assert found.verdict == FAILED and "loss" in found.measured


@pytest.mark.parametrize("peak, verdict", [(None, NOT_CHECKED), (2**30, OK), (3 * 2**30, WARNING)])
def test_peak_memory(peak, verdict, here, monkeypatch):
    stats = {} if peak is None else {"peak_bytes_in_use": peak, "bytes_limit": 16 * 2**30}
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: stats)])
    needed = Memory(2**29, 2**29, 0, 2**30, 2**30)
    ran = {"train step": Ran(Compilation("", needed, "", 0.0), 1.0, ())}
    assert programs.check_memory(here, ran, CHIPS["v5e"]).verdict == verdict


@pytest.mark.parametrize("variant", ["release", "sdpo", "sft", "grpo_rubric", "qwen3_8b,ground_truth"])
def test_any_run_has_a_small_one(variant):
    config = stage2.get_config(variant)
    config.model.path = config.model.path or "Qwen/Qwen3-0.6B"
    config.judge.model = "judge"
    config.train.steps, config.train.epochs = 40, 0.0
    batches = 1 if config.sampling.source == "reference" else 20
    config.train.batches_per_rollout, config.train.passes_per_rollout = batches, min(batches, 2)
    whole = settings(config)
    few = small.small(whole)
    assert few.sampling.max_new_tokens == small.COMPLETION and few.train.updates_per_rollout == min(batches, 2)
    for same in ("mesh", "lora", "optimizer", "method"):
        assert getattr(few, same) == getattr(whole, same)
    assert few.train.batch_size == whole.train.batch_size and few.sampling.source != "reference"


def test_room_for_all_stages():
    config = tiny.get_config()
    stages = {name: settings(config[name]) for name in config.stages}
    moved = dataclasses.replace(stages["stage2"].model, path="runs/tiny/stage1/export")  # not written yet
    found = rooms({**stages, "stage2": dataclasses.replace(stages["stage2"], model=moved)})
    with safe_open(tiny.base_directory() / "model.safetensors", "numpy") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    assert found["stage1"] == found["stage2"]
    assert found["stage1"].exports == 4 * parameters and found["stage1"].keep == 2
    assert 0 <= found["stage1"].checkpoint - 3 * 4 * parameters < 64  # what is trained and two moments


def test_a_teacher_that_is_another_model_has_its_weights_and_takes_no_room(here):
    teacher = dataclasses.replace(here.config.teacher, path=str(tiny.base_directory()), quantization="int8")
    config = dataclasses.replace(here.config, teacher=teacher)
    own = programs.on_these_devices(config)
    roles = own.setup.recipe.roles
    assert roles.teacher.frozen == TEACHER and roles.teacher.decoder == roles.student.decoder
    assert own.setup.frozen[TEACHER]["params"]["layers"]["gate"].qvalue.dtype == jnp.int8
    assert rooms({"": config}) == rooms({"": here.config})


def test_a_teacher_that_is_an_adapter_shares_the_student_s_base(here, tmp_path, monkeypatch):
    read, opened = programs._params, []
    monkeypatch.setattr(programs, "_params", lambda model, *more: opened.append(model) or read(model, *more))
    shape = here.plan.decoder
    adapters = lora.init_lora(shape, jax.random.key(0), rank=2, alpha=8.0, targets=("q",))
    adapters = jax.tree.map(lambda x: x + 0.5, adapters)
    base = tiny.base_directory()
    save_peft(tmp_path / "adapter", shape, adapters, rank=2, alpha=8.0, targets=("q",), base_path=base)
    teacher = dataclasses.replace(here.config.teacher, path=str(tmp_path / "adapter"))
    config = dataclasses.replace(here.config, model=dataclasses.replace(here.config.model, path=str(base)))
    own = programs.on_these_devices(dataclasses.replace(config, teacher=teacher))
    assert own.setup.recipe.roles.teacher.decoder.config.lora_scale == own.plan.teacher.lora_scale == 4.0
    for variables in (own.setup.frozen[TEACHER], networks.own_teacher(own.config, own.model, own.mesh)[1][TEACHER]):
        assert {name: x.shape for name, x in variables["lora"]["q"].items()} == {
            name: x.shape for name, x in adapters["q"].items()
        }
    assert len(opened) == 1
    np.testing.assert_array_equal(own.setup.frozen[TEACHER]["lora"]["q"]["b"], adapters["q"]["b"])
    with pytest.raises(UserError, match="neither a model directory"):
        save_peft(tmp_path / "adapter", shape, adapters, rank=2, alpha=8.0, targets=("q",), base_path="no/such")
        programs.on_these_devices(own.config)


def test_the_worst_of_all_processes_counts():
    line = lambda verdict, said: Finding("memory", "peak", verdict, said)
    assert worst([[line(OK, "a")], [line(FAILED, "b")], [line(WARNING, "c")]]) == [line(FAILED, "b")]
