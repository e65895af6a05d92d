"""Runs our programs, and scripts that use JAX, for one import of what they need: in forks of a process that has imported it.

Each is a process of its own: flags, environment, output, signals and exit status are those of `python -m PROGRAM`. JAX begins in
the fork: the process that forks has imported it and computes nothing. What JAX reads from the environment when it is imported,
such as `JAX_COMPILATION_CACHE_DIR`, is the same in all forks; `XLA_FLAGS` is read later.
"""

import atexit
import functools
import gc
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(program, *arguments, **environment):
    """`python -m program arguments`, with more environment."""
    return _forks().start(dict(program=program), arguments, environment)


def start_script(code, *arguments, **environment):
    """`python -c code arguments`, with more environment."""
    return _forks().start(dict(code=code), arguments, environment)


def run(program, *arguments, **environment):
    """(exit status, stdout, stderr) of `python -m program arguments`."""
    return start(program, *arguments, **environment).result()


class Forked:
    """One process, as `subprocess.Popen` with text pipes."""

    def __init__(self, forks, pid, arguments, out, err):
        self._forks, self._out, self._err = forks, out, err
        self.pid, self.args, self.returncode = pid, arguments, None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._forks.ask(dict(wait=self.pid))
        return self.returncode

    def communicate(self, timeout=600):
        """(stdout, stderr) when it has ended.

        Raises:
          subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(min(0.01, left))
        return self._out.read_text(), self._err.read_text()

    def result(self, timeout=600):
        """(exit status, stdout, stderr); ends the process that takes longer."""
        try:
            out, err = self.communicate(timeout)
        finally:
            self.kill()
        return self.returncode, out, err

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)


@functools.cache
def _forks():
    """This process's own, from its first use to its end."""
    forks = _Forks()
    atexit.register(forks.close)
    return forks


class _Forks:
    """The process that forks."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._numbers = itertools.count()
        command = [sys.executable, "-m", "tests.forked_program"]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes)

    def ask(self, question):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, what, arguments, environment):
        number = next(self._numbers)
        out, err = (Path(self._folder.name, f"{number}.{name}") for name in ("out", "err"))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
        asked = what | dict(arguments=list(map(str, arguments)), environment=environment, out=str(out), err=str(err))
        return Forked(self, self.ask(asked), asked["arguments"], out, err)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._folder.cleanup()


def _serve():
    """Forks for every question that asks for it; returns in the forks, with what is asked of them."""
    from rcsd_jax.cli.run_program import without_torch

    without_torch()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Everything that the programs import late, but not their own modules, which define flags.
    from rcsd_jax.cli import job  # noqa: F401
    from rcsd_jax.run import stage  # noqa: F401

    gc.collect()
    gc.freeze()  # else the first collection of each fork would copy all that it shares with this process
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            pid, status = os.waitpid(asked["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return asked
        print(json.dumps(answer), file=answers, flush=True)
    sys.exit()


def _become(arguments, environment, out, err, program=None, code=None):
    """Runs what was asked for, in a fork."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    if program is None:
        sys.argv = ["-c", *arguments]
        sys.orig_argv = [sys.executable, "-c", code, *arguments]
        exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        sys.orig_argv = [sys.executable, "-m", program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(**_serve())
