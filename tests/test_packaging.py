"""What `pip install` of a built package gives: the main job runs outside the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rcsd_jax
from tests import test_notebooks
from tests.run.test_job import SHORT

ROOT = Path(__file__).resolve().parents[1]
IN_A_NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell(sys.argv[1]).raise_error()
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of what git holds here, and a wheel made of that sdist."""
    pytest.importorskip("build")
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    archive = checkout / "tracked.tar"
    subprocess.run(["tar", "cf", archive, "--null", "-T", "-"], cwd=ROOT, check=True, input=tracked)
    subprocess.run(["tar", "xf", archive], cwd=checkout, check=True)
    made = subprocess.run([sys.executable, "-m", "build", "-o", out, checkout], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return {path.suffix: path for path in out.iterdir()}


def test_both_hold_what_is_needed(built):
    wheel = set(zipfile.ZipFile(built[".whl"]).namelist())
    assert {
        "rcsd_jax/py.typed", "rcsd_jax/report/template.html.j2", "rcsd_jax/world/base/model.safetensors", "rcsd_jax/shipped/configs/tiny.py",
        "rcsd_jax/plan/histograms/rar_science.json",
    } <= wheel  # fmt: skip
    assert {name.split("/")[0] for name in wheel} == {"rcsd_jax", f"rcsd_jax-{rcsd_jax.__version__}.dist-info"}
    with tarfile.open(built[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "setup.py",
        "pyproject.toml",
        "configs/tiny.py",
        "rcsd_jax/world/base/model.safetensors",
    } <= names


def test_the_main_job_runs_outside_the_repository(built, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, built[".whl"]], check=True
    )
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )

    where = run("-c", "import rcsd_jax; print(rcsd_jax.__file__)")
    assert where.stdout.strip().startswith(str(site)), where
    job = run("-m", "rcsd_jax.main", "--config=tiny", "--noreport", *SHORT)
    assert job.returncode == 0 and "trained student" in job.stdout, job.stderr
    assert (tmp_path / "runs" / "tiny" / "stage2" / "export" / "model.safetensors").exists()
    again = run("-m", "rcsd_jax.main", "--config=wrld:grpo", "--workdir=x")
    assert again.returncode == 2 and "did you mean 'world'" in again.stderr
    for name in ("embedded_world", "own_data"):  # a notebook that finds the release finds its configs, too
        cells = [cell.source for cell in test_notebooks.read(name).cells if cell.cell_type == "code"][:2]
        found = run(
            "-c", IN_A_NOTEBOOK, "\n".join((*cells, "from configs import stage2, tiny", "print(tiny.__file__)"))
        )
        assert found.stdout.strip().startswith(str(site)), found
    other = run("-m", "rcsd_jax.main", "--config=world:grpo", "--workdir=x", "--config.train.steps=0")
    assert other.returncode == 2 and "train.steps" in other.stderr, other.stderr  # it was read, with its neighbours
