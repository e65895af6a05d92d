"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def modules_with_examples():
    """Module name -> how many examples stand in it; found by their prompt, so that no module is imported for this."""
    counts = {}
    for path in sorted((ROOT / "rcsd_jax").rglob("*.py")):
        count = sum(line.lstrip().startswith(">>> ") for line in path.read_text(encoding="utf-8").splitlines())
        if count:
            parts = path.relative_to(ROOT).with_suffix("").parts
            counts[".".join(parts).removesuffix(".__init__")] = count
    return counts


COUNTS = modules_with_examples()


@pytest.mark.parametrize("name", COUNTS)
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    # Doctest does not look into everything: none was passed over.
    assert result.attempted == COUNTS[name]


@pytest.mark.parametrize(
    "name",
    [
        "losses.from_logits",
        "losses.from_hidden",
        "losses.policy_gradient",
        "roles.contexts",
        "roles.token_classes",
        "rubrics.parsing",
    ],
)
def test_public_parts_have_examples(name):
    assert COUNTS.get(f"rcsd_jax.{name}", 0) > 0
