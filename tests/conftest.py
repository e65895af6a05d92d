"""Fixtures that several files share: a user's model directory and rows."""

import json
import os
import pathlib

from tests import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Tests compile much and compute little, and so do the programs and scripts that they start: see `xla_flags`.
os.environ.setdefault("XLA_FLAGS", xla_flags.FLAGS)
# Each of pytest's workers has a core; torch would start threads on all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What one test or an earlier run of the tests compiled, the next one reads; programs that tests start do so, too.
COMPILED = pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled_programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest

from tests import user_inputs

# Files whose tests take a minute and more together, the longest first. Pytest's workers begin with them: whatever is last,
# all workers but one wait for.
LONG = (
    "run/test_faults.py", "test_properties.py", "run/test_distributed.py", "run/test_real_rows.py", "run/test_rollouts.py",
    "run/test_stage.py", "test_bench_lengths.py", "test_notebooks.py", "evaluate/test_properties_answers.py",
    "roles/test_properties_contexts.py", "data/test_properties_data.py", "run/test_mesh.py", "run/test_judge.py", "plan/test_plan.py", "methods/test_self_distillation.py",
    "methods/test_methods.py", "cli/test_main.py", "sampling/test_sampling.py", "models/test_cache.py",
    "models/test_decoder.py", "test_docs.py", "test_experiments.py", "run/test_job.py", "test_packaging.py",
    "run/test_checkpoints.py", "losses/test_loss_sharding.py", "losses/test_losses.py", "models/test_attention.py",
    "sampling/test_continuous_batching.py", "report/test_report.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    tests = pathlib.Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONG)}
    assert all(path.exists() for path in places), "a file of LONG was moved"
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


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
