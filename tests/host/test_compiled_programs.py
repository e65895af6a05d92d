"""What one process compiled, the next one reads; what a kill left half-written goes; and the planner's answers likewise."""

import os
import types
import zlib
from pathlib import Path

import jax
import pytest

from rcsd_jax.host import compiled_programs
from rcsd_jax.host.files import as_path
from rcsd_jax.plan import compiler


@pytest.fixture
def jax_settings(monkeypatch):
    """The settings of JAX that are made, which do not reach JAX."""
    made = {}
    chosen = types.SimpleNamespace(update=made.__setitem__, jax_compilation_cache_dir=None)
    monkeypatch.setattr(jax, "config", chosen)
    monkeypatch.setattr(compiled_programs, "default_folder", lambda workdir: Path(workdir) / "kept")
    return made, chosen


def test_by_default_programs_are_kept_for_the_user_or_beside_a_url(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled_programs.default_folder(Path("runs/tiny")) == tmp_path / "rcsd_jax" / "compiled_programs"
    assert str(compiled_programs.default_folder(as_path("gs://bucket/runs/a"))) == "gs://bucket/runs/compiled_programs"


@pytest.mark.parametrize("setting, variable, expected", [("", None, "kept"), ("", "mine", "mine"), ("b", "mine", "b")])
def test_the_flag_goes_before_the_variable_before_the_default(jax_settings, tmp_path, setting, variable, expected):
    made, chosen = jax_settings
    chosen.jax_compilation_cache_dir = variable and str(tmp_path / variable)
    line = compiled_programs.keep(setting and str(tmp_path / setting), tmp_path)
    assert made["jax_compilation_cache_dir"] == str(tmp_path / expected) and str(tmp_path / expected) in line
    # Whoever set JAX's own variable has also said what is worth keeping.
    assert ("jax_persistent_cache_min_compile_time_secs" in made) == (expected != "mine")
    assert (tmp_path / expected).stat().st_mode & 0o077 == 0  # JAX runs what it finds there


def test_off_and_a_folder_that_cannot_be_made_keep_nothing(jax_settings, tmp_path):
    made, _ = jax_settings
    (tmp_path / "file").write_text("")
    for setting in ("off", str(tmp_path / "file" / "folder")):
        made.clear()
        assert "not kept" in compiled_programs.keep(setting, tmp_path)
        assert made == {"jax_enable_compilation_cache": False}


def test_what_was_not_written_to_its_end_is_removed(jax_settings, tmp_path):
    whole = zlib.compress(os.urandom(1000))
    (tmp_path / "a-cache").write_bytes(whole)
    (tmp_path / "b-cache").write_bytes(whole[:-9])
    (tmp_path / "c-cache").write_bytes(b"")
    compiled_programs.keep(str(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"a-cache"}
    (tmp_path / "d-cache").write_bytes(whole[:-9])
    compiled_programs.keep(str(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"a-cache"}


def test_where_there_is_too_much_the_oldest_go(jax_settings, monkeypatch, tmp_path):
    data = zlib.compress(os.urandom(1000))
    monkeypatch.setattr(compiled_programs, "MAX_BYTES", 2 * len(data))
    for age, name in ((3, "a"), (1, "b"), (2, "c")):
        (tmp_path / f"{name}-cache").write_bytes(data)
        os.utime(tmp_path / f"{name}-cache", (1e9 - age,) * 2)
    compiled_programs.keep(str(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"b-cache", "c-cache"}


class Lowered:
    """A program whose compiling is counted."""

    def __init__(self, text="module", refused=""):
        self.text, self.refused, self.compiled = text, refused, 0

    def as_text(self):
        return self.text

    def compile(self):
        self.compiled += 1
        if self.refused:
            raise jax.errors.JaxRuntimeError(self.refused)
        names = ("argument", "output", "alias", "temp")
        sizes = {f"{name}_size_in_bytes": 10**i for i, name in enumerate(names)}
        memory = types.SimpleNamespace(peak_memory_in_bytes=5, **sizes)
        return types.SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: "HloModule")


def device(number=0, kind="TPU v5 lite"):
    return types.SimpleNamespace(device_kind=kind, id=number, coords=(number, 0, 0), core_on_chip=0)


@pytest.fixture
def versions(monkeypatch):
    found = {"libtpu": "1", "jax": "2", "jaxlib": "3"}
    monkeypatch.setattr(compiler.importlib.metadata, "version", found.__getitem__)
    return found


@pytest.mark.parametrize("refused", ["", "RESOURCE_EXHAUSTED: Used 20.53G of 15.75G hbm"])
def test_an_answer_is_kept(versions, tmp_path, refused):
    program = Lowered(refused=refused)
    first = compiler.ask(program, [device()], tmp_path)
    again = compiler.ask(program, [device()], tmp_path)
    assert program.compiled == 1 and again.kept and not first.kept
    for name in ("text", "memory", "refused", "seconds"):
        assert getattr(again, name) == getattr(first, name)
    assert refused in first.refused
    assert bool(first.text) != bool(refused)


def test_another_program_slice_version_or_flag_is_asked_anew(versions, monkeypatch, tmp_path):
    program = Lowered()
    compiler.ask(program, [device()], tmp_path)
    program.text = "another"
    compiler.ask(program, [device()], tmp_path)
    for devices in ([device(1)], [device(kind="TPU v5")], [device(), device(1)], [device(1), device()]):
        compiler.ask(program, devices, tmp_path)
    versions["libtpu"] = "1.1"
    compiler.ask(program, [device()], tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    compiler.ask(program, [device()], tmp_path)
    assert program.compiled == 8
    compiler.ask(program, [device()], None)
    assert program.compiled == 9


def test_an_answer_that_cannot_be_read_or_written_is_asked_anew(versions, tmp_path):
    program = Lowered()
    compiler.ask(program, [device()], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert not compiler.ask(program, [device()], tmp_path).kept
    assert compiler.ask(program, [device()], tmp_path).kept
    (tmp_path / "file").write_text("")
    assert compiler.ask(program, [device()], tmp_path / "file" / "folder").text
    assert program.compiled == 3
