"""Fixtures that several files share: a user's model directory and rows."""

import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Tests compile much and compute little. So do the programs and scripts that they start.
PROGRAMS = "--xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", PROGRAMS)
# Of a train step's compilation, three quarters go into XLA's MLIR emitters of fusions. In pytest's own processes XLA's older
# emitters take their place. So there our code is not compiled as users compile it, but in what tests start: whole runs and
# their kills, meshes of eight devices, notebooks; and at full optimization only in the README's commands. An XLA without this
# flag says so and ends: leave the flag out then.
IN_PROCESS = f"{PROGRAMS} --xla_cpu_use_fusion_emitters=false"
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
    "run/test_faults.py", "run/test_real_rows.py", "run/test_stage.py", "test_bench_lengths.py", "test_notebooks.py",
    "evaluate/test_properties_answers.py", "run/test_mesh.py", "plan/test_plan.py", "methods/test_self_distillation.py",
    "methods/test_methods.py", "cli/test_main.py", "sampling/test_sampling.py", "models/test_cache.py",
    "models/test_decoder.py", "test_docs.py", "test_experiments.py", "run/test_job.py", "test_packaging.py",
    "run/test_checkpoints.py", "losses/test_loss_sharding.py", "losses/test_losses.py", "models/test_attention.py",
    "sampling/test_continuous_batching.py", "report/test_report.py",
)  # fmt: skip


def pytest_configure(config):
    """Starts JAX with `IN_PROCESS`, where tests run, unless its user has other flags."""
    runs_tests = hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None)
    if runs_tests and os.environ["XLA_FLAGS"] == PROGRAMS:
        import jax

        os.environ["XLA_FLAGS"] = IN_PROCESS
        jax.devices()  # reads the flags
        os.environ["XLA_FLAGS"] = PROGRAMS


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
