"""Executes every bash and python block of the README, in order; the first failure ends it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time


def install_what_tests_need() -> None:
    """The TPU compiler, the documentation's builder and a browser for the report's page: without them tests are skipped."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".[tpu,docs]"], check=True)
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium", "chromium-driver"], check=True)


sys.path.insert(0, os.getcwd())
from tests import xla_flags

readme = pathlib.Path("README.md").read_text(encoding="utf-8")
for language, code in re.findall(r"```(bash|python)\n(.*?)```", readme, re.S):
    if "$MODEL" in code and not os.path.exists(os.environ["MODEL"]):
        subprocess.run([sys.executable, "-m", "tests.user_inputs", os.environ["MODEL"], os.environ["DATA"]], check=True)
    if code.rstrip().endswith("python -m pytest"):
        install_what_tests_need()
    print(f"::: {language}\n{code}", flush=True)
    began = time.monotonic()
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    subprocess.run(command, check=True)
    print(f"::: {time.monotonic() - began:.0f} s", flush=True)
    # The first command trains and evaluates both stages, and compiles as users do. From here on all compile as the tests.
    os.environ["XLA_FLAGS"] = xla_flags.FLAGS
