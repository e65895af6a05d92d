"""The configuration as data: every key that a message or the README names exists, and every choice can be made."""

import ast
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import stage1, stage2, tiny
from rcsd_jax import config as configs

ROOT = Path(__file__).resolve().parents[1]
KEYS = set(configs.all_keys(configs.stage()))
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
    assert not {k: w for k, w in unknown.items() if not re.match(r"(model\.(layers|embed|norm)|model\.safetensors)", k)}


def test_the_readme_names_keys_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {key.removeprefix("config.") for key in re.findall(r"config\.[a-z]\w*(?:\.\w+)*", text)}
    files = {"py"}
    assert len(named) > 5 and named - KEYS <= files


@pytest.mark.parametrize("key", configs.CHOICES)
def test_every_default_is_one_of_its_choices(key):
    value = configs.stage()
    for part in key.split("."):
        value = value[part]
    assert value in configs.CHOICES[key]


def test_every_config_of_the_repository_passes_the_checks():
    made = [tiny.get_config()]
    made += [module.get_config(v) for module in (stage1, stage2) for v in getattr(module, "VARIANTS", stage1.ROLES)]
    for config in made:
        for _, stage in configs.stages_of(config):
            stage.model.path, stage.data.path = stage.model.path or "model", stage.data.path or "rows.jsonl"
            stage.rubric.writer = stage.rubric.writer or "writer"
        configs.check(config)
    assert len(made) == 1 + 2 + len(stage2.VARIANTS)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_setting_a_key_sets_no_other(key):
    def leaves(config):
        return {k: v for k in KEYS if not isinstance(v := configs._get(config, k), ConfigDict)}

    config = configs.stage()
    before = leaves(config)
    if key not in before:
        return
    section, _, name = key.rpartition(".")
    place = configs._get(config, section) if section else config
    number = 0.25 if place.get_type(name) is float else 7
    other = number if before[key] is None else not before[key] if isinstance(before[key], bool) else before[key] * 2
    place[name] = other
    assert {k for k, v in leaves(config).items() if v != before[k]} <= {key}
