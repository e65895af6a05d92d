"""Configuration files by path and by name, from any folder."""

import sys

import pytest

from rcsd_jax.cli import shipped_configs
from rcsd_jax.host.errors import UserError


def test_every_file_of_the_repository_has_a_name():
    assert set(shipped_configs.shipped()) >= {"evaluate", "stage1", "stage2", "tiny", "world"}


@pytest.mark.parametrize("given", ["world", "world.py", "configs/world.py", "world:grpo"])
def test_a_name_means_the_package_s_own_file(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path, _, variant = shipped_configs.locate(given).partition(":")
    assert path == str(shipped_configs.shipped()["world"]) and variant == ("grpo" if ":" in given else "")
    assert str(shipped_configs.shipped()["world"].parent.parent) in sys.path  # it imports its neighbours


def test_a_file_that_exists_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text("def get_config(): pass")
    assert shipped_configs.locate("configs/tiny.py:x") == "configs/tiny.py:x"


@pytest.mark.parametrize("given, hint", [
    ("configs/stag2.py:grpo", "did you mean 'stage2'"), ("elsewhere/tiny.py", "did you mean 'tiny'"), ("zzz", "give a file, or one of"),
])  # fmt: skip
def test_no_such_file(given, hint):
    with pytest.raises(UserError, match=hint) as error:
        shipped_configs.locate(given)
    assert given.partition(":")[0] in str(error.value)
