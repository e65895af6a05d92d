"""Runs a script in a process of its own, which has eight CPU devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_force_host_platform_device_count=8",
    # Otherwise collectives that do not depend on each other can wait for each other, until XLA ends the process.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)


def run(script, *arguments, timeout=500):
    """What the last line that `script` prints is as JSON; None if it prints nothing. It must end well."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(FLAGS),
        },
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None
