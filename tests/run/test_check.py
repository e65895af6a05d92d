"""`--check` finds what would end a run before its weights are read, and does nothing else."""

import io

import pytest
from absl import flags
from absl.testing import flagsaver

from configs import tiny
from rcsd_jax import main
from rcsd_jax.evaluate import __main__ as evaluation
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.run import check
from rcsd_jax.settings.unpack import unpack
from tests import user_inputs
from tests.run.test_stage import config_for


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Fails the test when weights are read."""
    for name in ("rcsd_jax.checkpoints.loading.load_model", "rcsd_jax.roles.opened_model.digest"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("weights were read"))


def said(config, **more):
    stream = io.StringIO()
    check.check_stage(unpack(config), Console(file=stream, width=1000), **more)
    return stream.getvalue()


def test_a_run_that_can_start(user_dir):
    config = config_for(user_dir)
    config.eval.update(grader="boxed", path=config.data.path, count=6)
    read = "question from question, reference from reference_answer, rubric from rubric (title, description, weight)"
    assert said(config).splitlines() == [
        f"{config.data.path}: {read}; 64 rows",
        f"run: model {user_dir / 'model'}; 64 examples, 0 skipped as too long",
        *(f"run: {role} is evaluated on eval (6 questions)" for role in ("base", "teacher", "trained")),
    ]


BAD = {
    "model": (dict(model=dict(path="/does/not/exist")), "/does/not/exist"),
    "data": (dict(data=dict(path="/does/not/exist.jsonl")), "exist.jsonl"),
    "mesh": (dict(mesh=dict(data=3, fsdp=1)), "mesh"),
    "held-out rows": (dict(eval=dict(grader="boxed", path="/no/rows.jsonl")), "no/rows.jsonl"),
    "lengths": (dict(sampling=dict(max_new_tokens=10**6)), "sampling.max_new_tokens"),
    "nothing fits": (dict(data=dict(max_student_prompt=4)), "no example is left"),
    "a writer": (dict(rubric=dict(source="written", writer="/no/writer")), "/no/writer"),
    "a judge's key": (
        dict(judge=dict(model="m", key_variable="NO_SUCH_KEY"), eval=dict(grader="judge", path="rows")), "NO_SUCH_KEY",
    ),
    "a judge here": (dict(judge=dict(checkpoint="/no/judge"), eval=dict(grader="judge", path="rows")), "/no/judge"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_would_end_the_run(case, user_dir):
    settings, word = BAD[case]
    config = config_for(user_dir)
    config.update(settings)
    with pytest.raises(UserError, match=word):
        said(config)


def test_a_bad_row_is_named(user_dir, tmp_path):
    config = config_for(user_dir)
    row = user_inputs.made_up_rows(1)[0]
    config.data.path = str(tmp_path / "rows.jsonl")
    user_inputs.write_rows(tmp_path / "rows.jsonl", [row, row | {"rubric": [{"title": "no description"}]}])
    with pytest.raises(UserError, match="rows.jsonl:2"):
        said(config)


def test_what_an_earlier_stage_has_to_write_is_not_looked_for(user_dir, tmp_path):
    config = config_for(user_dir)
    config.rubric.update(source="written", writer=f"{tmp_path}/stage1/adapter")
    with pytest.raises(UserError, match="stage1/adapter"):
        said(config)
    assert f"rubrics will be written by {tmp_path}/stage1/adapter" in said(config, earlier=[tmp_path / "stage1"])
    config.model.path = f"{tmp_path}/stage1/export"
    with pytest.raises(UserError, match="stage1/export"):
        said(config)
    assert said(config, name="stage2", earlier=[tmp_path / "stage1"]) == (
        f"stage2: 64 examples; their prompts are checked when {tmp_path}/stage1/export is written\n"
    )


def checked(program, config, workdir, monkeypatch, capsys):
    monkeypatch.setattr(main, "start", lambda *_, **__: (config, workdir))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(check=True):
        program.main(["program"])
    return capsys.readouterr().out


def test_all_stages_are_checked_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    config = tiny.get_config()
    for stage in (config.stage1, config.stage2):
        stage.data.count = stage.eval.count = 4
    monkeypatch.setattr(main, "run_job", lambda *_: pytest.fail("the job ran"))
    out = checked(main, config, tmp_path / "run", monkeypatch, capsys)
    assert "stage1: model" in out and f"rubrics will be written by {tmp_path}/run/stage1/export" in out
    assert out.endswith("checked: config, model and data can be used; nothing was run\n")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_is_checked(user_dir, tmp_path, monkeypatch, capsys):
    config = config_for(user_dir)
    config.eval.update(grader="boxed", path=config.data.path, count=6)
    out = checked(evaluation, config, tmp_path / "run", monkeypatch, capsys)
    assert "base is evaluated on eval (6 questions)" in out and "trained is" not in out and "nothing was run" in out
    assert list(tmp_path.iterdir()) == []
    config.eval.grader = ""
    with pytest.raises(UserError, match="nothing to evaluate"):
        checked(evaluation, config, tmp_path / "run", monkeypatch, capsys)
