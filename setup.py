"""Packaging: `pip install -e .`; extras: `test` (peers the tests compare with), `judge`, `hub`, `experiments`, `notebooks`,
`tpu`, `gcs`, `gguf`, `docs`, `lint`, `lm_eval`, and a tracker each: `wandb`, `mlflow`, `trackio`.
"""

import pathlib
import re
import shutil

import setuptools
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Installs `configs/` inside the package, where `--config=NAME` finds them without a checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "rcsd_jax" / "shipped" / "configs"
            shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def version() -> str:
    """The package's, read without importing it."""
    return re.search(r'^__version__ = "(.+?)"', pathlib.Path("rcsd_jax/__init__.py").read_text("utf-8"), re.M)[1]


setuptools.setup(
    cmdclass={"build_py": BuildWithConfigs},
    name="rcsd_jax",
    version=version(),
    description="Rubric-conditioned self-distillation of language models in JAX",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=setuptools.find_packages(include=["rcsd_jax", "rcsd_jax.*"]),
    package_data={
        "rcsd_jax": ["py.typed"],
        "rcsd_jax.plan": ["histograms/*.json"],
        "rcsd_jax.report": ["*.j2", "*.css", "script/*.js"],
        "rcsd_jax.world": ["base/*"],
    },
    license="Apache-2.0",
    install_requires=[
        "absl-py",
        "array-record>=0.8",
        "etils[epath]>=1.9",  # paths, also of gs://
        "flax>=0.12",
        "grain>=0.2.12",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jax>=0.7.1",
        "jinja2",  # chat templates
        "math-verify>=0.9",  # equality of expressions
        "ml-collections>=1.1",
        "numpy>=2",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pint>=0.25",  # units of answers
        "pyarrow>=17",  # Parquet
        "qwix>=0.1.8",
        "rich>=14",
        "safetensors>=0.6",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "transformers>=5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.7.1"],
        "gcs": ["gcsfs"],  # workdirs in gs:// buckets
        "gguf": ["accelerate", "gguf>=0.10", "torch"],  # GGUF files as model directories
        "hub": ["datasets>=3"],  # data sets of the Hugging Face hub
        "judge": ["openai>=1.56"],  # judges at endpoints
        "lm_eval": ["lm_eval>=0.4.12"],  # EleutherAI's harness
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3"],  # the client without a server
        "trackio": ["trackio>=0.40"],
        "experiments": ["matplotlib", "scipy"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0"],
        "notebooks": ["ipykernel", "matplotlib", "nbclient", "nbformat"],  # to execute them, outside Colab
        "lint": ["import-linter>=2.17", "mypy>=2", "ruff"],
        # torch is pinned because a CPU build of it is the one the parity tests were measured with.
        "test": [
            "build",
            "datasets>=3",
            "gguf>=0.10",
            "hypothesis>=6",
            "import-linter>=2.17",
            "ipykernel",
            "lm_eval>=0.4.12",
            "matplotlib",
            "nbclient",
            "nbformat",
            "openai>=1.56",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "selenium>=4",
            "torch==2.13.0",
            "trackio>=0.40",
            "trl>=1.0",
            "peft>=0.18",
            "scipy",
            "fsspec",
            "pyyaml",
        ],
    },
)
