"""The configuration as data: every key that a message or the README names exists, and every choice can be made."""

import ast
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import evaluate, stage1, stage2, tiny
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import check, choices
from tests.settings_for_tests import value_of

ROOT = Path(__file__).resolve().parents[2]
KEYS = set(keys.all_keys(keys.stage()))
SECTIONS = {key.split(".")[0] for key in KEYS if "." in key}


def strings(path):
    """Every string literal of a module but its docstrings, f-strings with their values left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def named_keys(text):
    """What looks like a config key in a text: a section's name, a dot and more."""
    return {m for m in re.findall(r"\b[a-z]\w*(?:\.[a-z]\w*)+", text) if m.split(".")[0] in SECTIONS}


def test_messages_name_keys_that_exist():
    named = {}
    for path in sorted((ROOT / "rcsd_jax").rglob("*.py")):
        for text in strings(path):
            named |= {key: path.name for key in named_keys(text)}
    assert len(named) > 30
    unknown = {key: where for key, where in named.items() if key not in KEYS}
    files = r"model\.(layers|embed|norm|language_model|vision_tower|multi_modal_projector|safetensors)"
    assert not {key: where for key, where in unknown.items() if not re.match(files, key)}


def test_the_readme_names_keys_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {key.removeprefix("config.") for key in re.findall(r"config\.[a-z]\w*(?:\.\w+)*", text)}
    files = {"py", "json"}
    assert len(named) > 5 and named - KEYS <= files


@pytest.mark.parametrize("key", choices())
def test_every_default_is_one_of_its_choices(key):
    value = keys.stage()
    for part in key.split("."):
        value = value[part]
    assert value in choices()[key]


def test_every_config_of_the_repository_passes_the_checks():
    made = [tiny.get_config()]
    made += [module.get_config(v) for module in (stage1, stage2) for v in module.VARIANTS]
    for config in made:
        for _, stage in keys.stages_of(config):
            stage.model.path, stage.data.path = stage.model.path or "model", stage.data.path or "rows.jsonl"
            stage.rubric.writer = stage.rubric.writer or "writer"
            stage.judge.model = "judge" if stage.reward.grader == "judge" else ""
        check(config)
    assert len(made) == 1 + 2 + len(stage2.VARIANTS)


def test_the_configs_of_evaluation_pass_the_checks_and_unknown_benchmarks_do_not():
    config = evaluate.get_config()
    config.model.path = "model"
    check(config, trains=False)
    with pytest.raises(UserError, match="data.path"):
        check(config)
    config = evaluate.get_config("rar,piqa")
    config.model.path = "model"
    with pytest.raises(UserError, match="judge.model"):
        check(config, trains=False)
    with pytest.raises(ValueError, match="unknown benchmark 'gpqa'.*gpqa_diamond"):
        evaluate.get_config("gpqa")


BAD = {
    "seed": -1, "train.log_every": 0, "train.microbatches": 3, "checkpoint.keep": 0, "data.pad_to": 0, "eval.count": -1,
    "eval.greedy": ("maybe",), "eval.roles": ("base", "techer"), "eval.temperature": -1.0, "eval.every": 5, "eval.every_splits": ("nowhere",),
    "eval.samples": 0, "eval.max_new_tokens": 0, "loss.thinking": "answers", "judge.concurrency": 0, "judge.per_call": "token",
    "eval.grader": "world", "loss.top_k": 0, "loss.beta": 1.5, "loss.entry_clip": 0.0, "loss.importance_clip": -1.0,
    "loss.chunk_size": 0, "loss.skip_first": 4096, "optimizer.learning_rate": float("nan"), "optimizer.clip": -1.0,
    "optimizer.weight_decay": float("inf"), "optimizer.b1": 1.5, "rubric.noisy_fraction": 2.0,
    "rubric.reduced_fraction": 0.0, "rubric.min_criteria": 30, "rubric.resample": -1, "rubric.top_p": 0.0,
    "rubric.writer_fields": ("reference",), "sampling.temperature": float("inf"), "sampling.top_k": -1,
    "sampling.top_p": 1.5, "sampling.slots": 5, "sampling.draft_tokens": 8, "teacher.fields": ("question", "rubrik"), "teacher.ema_decay": 5.0, "model.dtype": "float16",
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_bad_values_are_named(key):
    config = stage2.get_config("ground_truth")
    config.model.path, config.data.path, config.eval.path = "model", "rows.jsonl", "rows.jsonl"
    section, _, name = key.rpartition(".")
    place = value_of(config, section) if section else config
    place[name] = BAD[key]
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == key and error.value.remedy


def test_only_packed_rows_can_be_shared():
    config = stage2.get_config("ground_truth")
    config.model.path, config.data.path = "model", "rows.jsonl"
    config.train.split_rows = True
    check(config)
    config.train.row_lengths = 0
    with pytest.raises(UserError, match="packed rows") as error:
        check(config)
    assert error.value.field == "train.split_rows"


@pytest.mark.parametrize("key, value", [("top_k", 20), ("entry_clip", 0.05)])
def test_what_the_sampled_token_s_loss_does_not_read_is_refused(key, value):
    config = stage2.get_config("sampled_token")
    config.model.path, config.data.path, config.eval.path = "model", "rows.jsonl", "rows.jsonl"
    config.loss[key] = value
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == f"loss.{key}" and error.value.value == value


@pytest.mark.parametrize("key", sorted(KEYS))
def test_setting_a_key_sets_no_other(key):
    def leaves(config):
        return {k: v for k in KEYS if not isinstance(v := value_of(config, k), ConfigDict)}

    config = keys.stage()
    before = leaves(config)
    if key not in before:
        return
    section, _, name = key.rpartition(".")
    place = value_of(config, section) if section else config
    number = {float: 0.25, str: "rows.jsonl", bool: True}.get(place.get_type(name), 7)
    other = number if before[key] is None else not before[key] if isinstance(before[key], bool) else before[key] * 2
    place[name] = other
    assert {k for k, v in leaves(config).items() if v != before[k]} <= {key}
