"""A stage with a teacher of its own, from its config to its checkpoints."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.data import sources
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.methods.networks import BASE
from rcsd_jax.models import sharding
from rcsd_jax.models.declarations import init_params
from rcsd_jax.report.scored_completions import scored_completions
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.roles.own_teacher import OwnTeacher
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.frozen_weights import quantized
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings.unpack import check, unpack
from tests import user_inputs
from tests.run.test_check import said
from tests.run.test_stage import config_for, run


def larger(user_dir, directory, seed=7):
    shutil.copytree(user_dir / "model", directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    user_inputs.make_model(directory, vocab_size=1033, eos_id=2, seed=seed, hidden_size=96, num_hidden_layers=3)
    return str(directory)


def with_teacher(user_dir, path, **settings):
    config = config_for(user_dir)
    config.model.update(dtype="float32", param_dtype="float32")
    config.teacher.update(path=str(path), **settings)
    return config


@pytest.mark.slow
def test_the_student_s_own_base_is_the_fixed_teacher(user_dir, tmp_path):
    losses = []
    for name, path in (("fixed", ""), ("own", user_dir / "model")):
        run(with_teacher(user_dir, path), tmp_path / name)
        losses.append([row["loss"] for row in read_metrics(as_path(tmp_path / name))])
    assert losses[0] == losses[1] and losses[0][0] > 0


@pytest.mark.slow
def test_a_larger_teacher_in_int8_teaches_an_adapter_is_evaluated_and_must_not_change(user_dir, tmp_path):
    config = with_teacher(user_dir, larger(user_dir, tmp_path / "larger"), quantization="int8")
    config.lora.rank = 2
    config.eval.update(grader="boxed", path=config.data.path, count=4, greedy=(False,), roles=("base", "teacher"))
    summary = run(config, tmp_path / "run")
    assert set(summary["quantization"]) == {"teacher"} and 0 < summary["quantization"]["teacher"]["kl"] < 0.01
    # It is another model that answered, and the tokens of its answers are the student's.
    base, teacher = (
        (tmp_path / "run" / f"completions_{role}.jsonl").read_text(encoding="utf-8") for role in ("base", "teacher")
    )
    assert base and teacher and base != teacher
    found = scored_completions(
        unpack(config), as_path(tmp_path / "run"), [(examples_of(config)[0], {"trained": ("is 5", True)})]
    )
    assert len(found[0]["trained"]["divergence"]) == len(found[0]["trained"]["tokens"])

    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "larger")
    larger(user_dir, tmp_path / "larger", seed=8)
    with pytest.raises(UserError, match="the teacher's weights are not those") as error:
        run(config, tmp_path / "run")
    assert error.value.field == "teacher.path"


def test_an_adapter_on_the_student_s_base_shares_its_quantized_weights_too(user_dir):
    settings = unpack(with_teacher(user_dir, user_dir / "model", quantization="int4"))
    student = open_model(settings.model.path, settings.model)
    params = init_params(student.decoder.config, jax.random.key(0))
    teachers = {"": OwnTeacher("adapter", student, None), "b": OwnTeacher("model", student, None)}
    plain = {BASE: {"params": params}, "teacher": {"params": params, "lora": {}}, "teacher b": {"params": {**params}}}
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    for form in ("int4", "int8", "none"):
        config = dataclasses.replace(settings, model=dataclasses.replace(settings.model, quantization=form))
        found = quantized(plain, student, teachers, config, mesh)
        assert set(found) == {BASE, "teacher", "teacher b"} - ({BASE} if form == "none" else set())
        assert found["teacher"]["lora"] is plain["teacher"]["lora"]
        kept = {name: one["params"]["layers"]["q"].qvalue for name, one in found.items()}
        assert kept["teacher"].dtype == jnp.int4 and kept["teacher b"] is not kept["teacher"]
        if form != "none":
            assert kept[BASE].dtype == form and (kept[BASE] is kept["teacher"]) == (form == "int4")


def examples_of(config):
    settings = unpack(config)
    return sources.read_as(config.data.path, settings.reading(require=settings.required_fields))


def test_what_a_teacher_of_its_own_cannot_be_combined_with(user_dir):
    config = with_teacher(user_dir, "teacher", weights="ema")
    with pytest.raises(UserError, match="another model") as error:
        check(config)
    assert error.value.field == "teacher.weights"
    config = with_teacher(user_dir, "", quantization="int8")
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == "teacher.quantization"
    config = with_teacher(user_dir, "teacher")
    config.method, config.sampling.source = "sft", "reference"
    with pytest.raises(UserError, match="needs a teacher") as error:
        check(config)
    assert error.value.field == "teacher.path"
    config = with_teacher(user_dir, "teacher")
    config.model.quantization = "int8"  # of a full fine-tuning, nothing of the student's is left that could be
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == "model.quantization"


def test_rows_and_sources_name_their_teacher(user_dir, tmp_path):
    config = with_teacher(user_dir, "")
    config.teacher.paths = dict(one=str(user_dir / "model"), other=str(user_dir / "model"))
    rows = user_inputs.made_up_rows(4)
    for name in ("a", "b"):
        user_inputs.write_rows(tmp_path / f"{name}.jsonl", rows)
    config.data.path = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    config.teacher.of_sources = dict(a="one")
    with pytest.raises(UserError, match="b.jsonl:1.* names no teacher.*use one of one, other") as error:
        said(config)
    assert error.value.field == "teacher"
    user_inputs.write_rows(tmp_path / "b.jsonl", [row | {"teacher": "two"} for row in rows])
    with pytest.raises(UserError, match="b.jsonl:1.*'two'.* names an unknown teacher"):
        said(config)
    user_inputs.write_rows(tmp_path / "b.jsonl", [row | {"teacher": "other"} for row in rows])
    assert "8 examples" in said(config)

    settings = unpack(config)
    data = Rows(examples_of(config), open_model(config.model.path, settings.model).tokenizer, settings)
    assert data.start(positions=4096)
    batch = make_batch([0, 0, 5], data.first, settings, pad_id=0)
    of = {"a": 0, "b": 1}
    np.testing.assert_array_equal(batch.teacher, [of[data.first.examples[i].source] for i in (0, 0, 5)])
    other = dataclasses.replace(settings.teacher, of_sources={"a": "other"})
    moved = Rows(examples_of(config), data._tokenizer, dataclasses.replace(settings, teacher=other))
    assert moved.start(positions=4096) and moved.digest != data.digest

    config.teacher.of_sources = dict(a="third")
    with pytest.raises(UserError, match="unknown teacher 'third'.*use one, other"):
        check(config)


@pytest.mark.slow
def test_two_teachers_are_evaluated_by_nobody_train_and_are_in_the_report(user_dir, tmp_path):
    config = with_teacher(user_dir, "")
    config.teacher.paths = dict(own=str(user_dir / "model"), larger=larger(user_dir, tmp_path / "larger"))
    rows = [row | {"teacher": ("own", "larger")[i % 2]} for i, row in enumerate(user_inputs.made_up_rows(8))]
    user_inputs.write_rows(tmp_path / "rows.jsonl", rows)
    config.data.path = str(tmp_path / "rows.jsonl")
    config.eval.grader, config.eval.path = "boxed", config.data.path
    with pytest.raises(UserError, match="there are several"):
        check(config)
    config.eval.update(roles=("trained",), count=2)
    run(config, tmp_path / "run")
    asked = [(example, {"trained": ("is 5", True)}) for example in examples_of(config)[:2]]
    of_both = scored_completions(unpack(config), as_path(tmp_path / "run"), asked)
    assert all(np.isfinite(one["trained"]["teacher_log_prob"]).all() for one in of_both)


def test_the_check_of_a_config_opens_the_teacher_unless_an_earlier_stage_writes_it(user_dir, tmp_path):
    own = with_teacher(user_dir, user_dir / "model")
    assert f"; teacher {user_dir / 'model'}; 64 examples" in said(own)
    config = with_teacher(user_dir, tmp_path / "stage1" / "export")
    with pytest.raises(UserError, match="stage1/export"):
        said(config)
    assert "64 examples" in said(config, earlier=[tmp_path / "stage1"])
