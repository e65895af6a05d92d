"""A stage with a teacher of its own, from its config to its checkpoints."""

import shutil

import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.report.scored_completions import scored_completions
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
    config = with_teacher(user_dir, larger(user_dir, tmp_path / "larger"), int8_weights=True)
    config.lora.rank = 2
    config.eval.update(grader="boxed", path=config.data.path, count=4, greedy=(False,), roles=("base", "teacher"))
    summary = run(config, tmp_path / "run")
    assert set(summary["int8_weights"]) == {"teacher"} and 0 < summary["int8_weights"]["teacher"]["kl"] < 0.01
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


def examples_of(config):
    from rcsd_jax.data import sources

    settings = unpack(config)
    return sources.read_as(config.data.path, settings.reading(require=settings.required_fields))


def test_what_a_teacher_of_its_own_cannot_be_combined_with(user_dir):
    config = with_teacher(user_dir, "teacher", weights="ema")
    with pytest.raises(UserError, match="another model") as error:
        check(config)
    assert error.value.field == "teacher.weights"
    config = with_teacher(user_dir, "", int8_weights=True)
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == "teacher.int8_weights"
    config = with_teacher(user_dir, "teacher")
    config.method, config.sampling.source = "sft", "reference"
    with pytest.raises(UserError, match="needs a teacher") as error:
        check(config)
    assert error.value.field == "teacher.path"
    config = with_teacher(user_dir, "teacher")
    config.model.int8_weights = True  # of a full fine-tuning, nothing of the student's is left that could be int8
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == "model.int8_weights"


def test_the_check_of_a_config_opens_the_teacher_unless_an_earlier_stage_writes_it(user_dir, tmp_path):
    own = with_teacher(user_dir, user_dir / "model")
    assert f"; teacher {user_dir / 'model'}; 64 examples" in said(own)
    config = with_teacher(user_dir, tmp_path / "stage1" / "export")
    with pytest.raises(UserError, match="stage1/export"):
        said(config)
    assert "64 examples" in said(config, earlier=[tmp_path / "stage1"])
