"""Runs `python -m rcsd_jax.main` many times for one import of what it needs: in forks of a process that has imported it.

Only for runs that end before JAX computes. Each is a process of its own: flags, environment, output and exit status are those
of the program.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ForkedProgram:
    """The process that forks; `run` as `tests.cli.test_main.run`."""

    def __init__(self, folder):
        self._folder = folder
        command = [sys.executable, "-m", "tests.forked_program"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def run(self, *arguments, **environment):
        out, err = self._folder / "stdout", self._folder / "stderr"
        asked = dict(arguments=list(map(str, arguments)), environment=environment, out=str(out), err=str(err))
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), out.read_text(), err.read_text()

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _serve():
    from rcsd_jax.cli.run_program import without_torch

    without_torch()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Everything that the program imports late, but not its own module, which defines flags.
    from rcsd_jax.cli import job  # noqa: F401
    from rcsd_jax.run import stage  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become_the_program(**asked)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become_the_program(arguments, environment, out, err):
    status = 1
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(environment)
        sys.argv = ["rcsd_jax.main", *arguments]
        runpy.run_module("rcsd_jax.main", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
