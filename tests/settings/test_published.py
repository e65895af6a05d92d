"""Configs that bear the name of a published run equal the table of `docs/published.md`, and that table the run."""

import ast
import re
from pathlib import Path

import pytest

from configs import stage1, stage2
from rcsd_jax.data.examples import Example
from rcsd_jax.roles import contexts, published
from rcsd_jax.roles.contexts import Role
from rcsd_jax.rubrics.variants import generic_rubric
from rcsd_jax.settings import keys
from tests.settings_for_tests import settings_of, value_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
MODULES = {"stage1": stage1, "stage2": stage2}


def sections():
    """(module, variant) -> text of its section."""
    found = {}
    for text in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        module, variant = re.search(r"`configs/(\w+)\.py:(\w+)`", text).groups()
        found[module, variant] = text
    return found


def rows(text):
    """(key, release, ours) of each line of a section's table."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if re.match(r"\| .+ \| `[\w.]+` \|", line)]
    return [(line[1].strip("` "), *(ast.literal_eval(cell.strip("` ")) for cell in line[3:5])) for line in lines]


def flat(settings, prefix=""):
    """The dotted keys that a variant sets."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_published_run_has_a_table():
    assert set(sections()) == {("stage1", "release"), *(("stage2", variant) for variant in stage2.PUBLISHED)}


@pytest.mark.parametrize("module, variant", sections())
def test_a_config_equals_its_run_setting_by_setting(module, variant):
    text = sections()[module, variant]
    config = MODULES[module].get_config(variant)
    listed = rows(text)
    assert len(listed) >= 15
    for key, theirs, ours in listed:
        assert value_of(config, key) == ours == theirs, key
        assert isinstance(ours, type(value_of(config, key))), key
    told = {key for key, *_ in listed} | set(re.findall(r"`([\w.]+)`", text))
    own = {key for key in flat(MODULES[module].VARIANTS[variant]) if not key.startswith(("prompts.", "eval."))}
    assert own - told - {"reward.grader"} == set()


EXAMPLE = Example("1", "Why is it so?", "Because.", generic_rubric(), None, "rows:1", solution="First this, then that.")


def test_the_release_asks_its_rubric_writer_as_it_was_trained():
    """The same fields, in the same prompt, for both variants that are a chain."""
    for variant, writer in (("release", "release"), ("paper", "paper")):
        one, two = stage1.get_config(variant), stage2.get_config(writer)
        trained = contexts.messages(EXAMPLE, settings_of(one).student, settings_of(one).encoding.texts, "write_rubric")
        role = Role(two.rubric.writer_fields, two.rubric.writer_thinking)
        asked = contexts.messages(EXAMPLE, role, settings_of(two).encoding.texts, "write_rubric")
        assert asked == trained and "Why is it so?" in asked[0]["content"]
        assert one.student.thinking == two.rubric.writer_thinking


@pytest.mark.parametrize("name", ("RELEASE", "RELEASE_STAGE1", "OPSD", "SDPO", "SDFT"))
def test_prompts_have_the_keys_of_the_usual_ones(name):
    ours = getattr(published, name)
    assert keys.differences(_shape(ours), _shape(contexts.ENGLISH)) == []
    assert ours != contexts.ENGLISH


def _shape(prompts):
    return {name: _shape(value) if isinstance(value, dict) else "" for name, value in prompts.items()}


def test_a_chain_of_thought_stands_between_reference_and_rubric():
    role = Role(("question", "reference", "solution", "rubric"))
    text = contexts.user_message(EXAMPLE, role, published.RELEASE, "solve")
    order = [text.index(part) for part in ("Why is it so?", "Because.", "First this", "Correct final answer", "boxed")]
    assert order == sorted(order)
