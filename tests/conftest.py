"""Fixtures that several files share: a user's model directory and rows."""

import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Tests compile much and compute little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Each of pytest's workers has a core; torch would start threads on all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What one test or an earlier run of the tests compiled, the next one reads; programs that tests start do so, too.
COMPILED = pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled_programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest

from tests import user_inputs


@pytest.fixture(scope="session")
def user_dir(tmp_path_factory):
    """A folder with `model/` (random Qwen3, BPE tokenizer, chat template) and `rows.jsonl` (made-up rows)."""
    directory = tmp_path_factory.mktemp("user")
    user_inputs.make_user_inputs(directory / "model", directory / "rows.jsonl")
    return directory


@pytest.fixture(scope="session")
def real_rows():
    """The 400 real rows, where they lie beside the repository."""
    path = user_inputs.real_rows_path()
    if not path.exists():
        pytest.skip("rar_science_400.jsonl is not beside this clone")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
