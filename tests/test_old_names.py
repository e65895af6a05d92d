"""Modules that moved can still be imported under their old names."""

import importlib
import subprocess
import sys

import pytest

import rcsd_jax


@pytest.mark.parametrize("old, new", rcsd_jax._MOVED.items())
def test_an_old_name_is_the_same_module(old, new):
    module = importlib.import_module(old)
    assert module is importlib.import_module(new) and module.__spec__.name == module.__name__ == new
    assert getattr(rcsd_jax, old.partition(".")[2]) is module


@pytest.mark.parametrize(
    "statement",
    ["from rcsd_jax.errors import UserError", "from rcsd_jax import errors", "import rcsd_jax.errors as errors"],
)
def test_old_names_come_first(statement):
    """In a process that has not imported the module under its new name."""
    code = (
        f"{statement}\nimport rcsd_jax.host.errors, sys\nprint(sys.modules['rcsd_jax.errors'] is rcsd_jax.host.errors)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match="rcsd_jax.error'"):
        importlib.import_module("rcsd_jax.error")
