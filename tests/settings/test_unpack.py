"""unpack.py: every key becomes a field of one dataclass, errors name keys, and tables decide what may be chosen."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import tiny
from rcsd_jax.data import sources
from rcsd_jax.evaluate import graders
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import METHODS, Method
from rcsd_jax.models.config import REMAT
from rcsd_jax.rubrics import sources as rubric_sources
from rcsd_jax.settings import keys
from rcsd_jax.settings.stage import Settings
from rcsd_jax.settings.unpack import _fields, check, choices, unpack
from tests.settings_for_tests import settings_of


def leaves(kind):
    """The names of a section's keys: of its dataclass's fields, and of those of the dataclasses that it holds."""
    for name, of_field in _fields(kind):
        yield from leaves(of_field) if dataclasses.is_dataclass(of_field) else (name,)


def test_every_key_is_read_by_one_field_and_every_field_without_a_default_has_a_key():
    stage = keys.stage()
    assert {name for name, _ in _fields(Settings)} == set(stage)
    for name, kind in _fields(Settings):
        if not dataclasses.is_dataclass(kind):
            continue
        fields = list(leaves(kind))
        assert set(stage[name]) <= set(fields) and len(fields) == len(set(fields))
    without_keys = {
        f for n, k in _fields(Settings) if dataclasses.is_dataclass(k) for f in set(leaves(k)) - set(stage[n])
    }
    assert without_keys == {"backoff_s", "longest_backoff_s"}  # of an endpoint


def test_values_are_plain_and_cannot_change():
    settings = settings_of(keys.stage())

    def walk(value):
        assert not isinstance(value, ConfigDict)
        for one in vars(value).values() if dataclasses.is_dataclass(value) else ():
            walk(one)

    walk(settings)
    assert settings.optimizer.learning_rate == 5e-6 and settings.prompts["solve"]["request"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.train.steps = 1


def test_choices_are_the_names_of_the_tables(monkeypatch):
    found = choices()
    assert found["method"] == tuple(METHODS) and found["model.remat"] == tuple(REMAT)
    assert found["data.source"] == tuple(sources.SOURCES) and "world" in found["data.source"]
    assert found["rubric.source"] == tuple(rubric_sources.RUBRIC_SOURCES)
    assert set(found["eval.grader"]) == {"", "world", "chains", "english", "boxed", "rubric", "judge"}
    assert set(found["reward.grader"]) == {
        *found["eval.grader"],
        "majority",
        "world_majority",
        "chains_majority",
    }  # which grade no single text
    monkeypatch.setitem(METHODS, "better_half", Method(lambda *_: None, rewarded=True))
    monkeypatch.setitem(graders.GRADERS, "integer", graders.Grader(lambda *_: {}, ("answer",)))
    monkeypatch.setitem(rubric_sources.RUBRIC_SOURCES, "essential", rubric_sources.RubricSource(None, of_row=True))
    found = choices()
    assert "better_half" in found["method"] and "integer" in found["eval.grader"]
    config = keys.stage()
    config.method, config.rubric.source = "better_half", "essential"
    config.reward.grader, config.sampling.group = "integer", 4
    settings = settings_of(config)
    assert settings.teacher_weights == "none" and settings.required_fields == ("question", "answer")
    config.reward.grader = ""
    with pytest.raises(UserError, match="nothing grades the completions"):
        settings_of(config)


def test_errors_name_the_key_with_its_stage():
    config = tiny.get_config()
    config.stage2.optimizer.learning_rate = 0.0
    with pytest.raises(UserError, match=r"field 'stage2\.optimizer\.learning_rate' = 0\.0: must be positive"):
        check(config)
    config = tiny.get_config()
    config.stage1.model.path = ""
    with pytest.raises(UserError, match=r"field 'stage1\.model\.path' = '': .*pass --config\.stage1\.model\.path="):
        check(config)
    config = tiny.get_config()
    config.stage2.teacher.fields = ("question", "rubrik")
    with pytest.raises(UserError, match=r"field 'stage2\.teacher\.fields' = 'rubrik'"):
        check(config)
    config = tiny.get_config()
    config.stage1.method = "grop"
    with pytest.raises(UserError, match=r"field 'stage1\.method' = 'grop': no such choice; did you mean 'grpo'\?"):
        check(config)


@pytest.mark.parametrize(
    "changes, required",
    [
        (dict(), ("question", "rubric")),
        (dict(rubric=dict(source="generic")), ("question",)),
        (dict(rubric=dict(source="reduced")), ("question", "rubric")),
        (dict(rubric=dict(source="written", writer_fields=("question", "reference"))), ("question", "reference")),
        (dict(rubric=dict(source="generic"), reward=dict(grader="rubric")), ("question", "rubric")),
        (dict(method="sft", sampling=dict(source="reference")), ("question", "reference")),
        (dict(method="sft", task="write_rubric", sampling=dict(source="reference")), ("question", "rubric")),
        (dict(teacher=dict(fields=("question", "feedback")), reward=dict(grader="boxed")), ("question", "reference")),
    ],
)
def test_fields_that_every_row_must_have(changes, required):
    config = keys.stage()
    config.update(changes)
    assert settings_of(config).required_fields == required


def test_where_a_method_has_no_teacher_both_roles_are_the_student():
    config = keys.stage()
    config.update(method="sft", sampling=dict(source="reference"))
    encoding = settings_of(config).encoding
    assert encoding.teacher == encoding.student and encoding.learns_references
    config.update(
        method="grpo", policy=dict(kl=0.1), reward=dict(grader="boxed"), sampling=dict(group=4, source="student")
    )
    config.teacher.fields = ("question",)
    assert settings_of(config).teacher_weights == "fixed"


def test_an_older_config_has_the_defaults_of_younger_keys():
    plain = keys.stage().to_dict()
    plain["train"]["steps"] = 7
    del plain["teacher"]["guidance_by"], plain["export"]
    config = keys.with_defaults(plain)
    config.model.path, config.data.path = "model", "rows.jsonl"
    settings = unpack(config)
    assert settings.train.steps == 7 and settings.teacher.guidance_by == "context" and settings.export.merged


def test_rollouts_are_whole_and_sampled():
    config = keys.stage()
    config.train.update(steps=12, batch_size=8, batches_per_rollout=3, passes_per_rollout=2)
    settings = settings_of(config)
    assert settings.train.updates_per_rollout == 6 and settings.questions_per_rollout == 24
    config.sampling.update(group=2, slots=12)
    assert settings_of(config).questions_per_rollout == 12
    config.sampling.slots = 10
    with pytest.raises(UserError, match=r"sampling\.slots' = 10: does not divide the 24 completions of a rollout"):
        settings_of(config)
    config.sampling.update(group=1, slots=0, source="reference")
    config.method = "sft"
    for key, other in (("batches_per_rollout", "passes_per_rollout"), ("passes_per_rollout", "batches_per_rollout")):
        config.train.update({key: 2, other: 1})
        with pytest.raises(UserError, match=rf"train\.{key}' = 2: needs sampled completions.*; set 1"):
            settings_of(config)
    config.train.update(steps=100, batches_per_rollout=4, passes_per_rollout=3)
    with pytest.raises(
        UserError, match=r"train\.steps' = 100: is not whole rollouts: each serves 12 .*; set 108 or 96"
    ):
        settings_of(config)
    config.train.steps = 7
    with pytest.raises(UserError, match=r"; set 12$"):
        settings_of(config)
