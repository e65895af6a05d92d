"""Runs a script in a process of its own, which has eight CPU devices."""

import json

from tests import forked_program, xla_flags

# Otherwise collectives that do not depend on each other can wait for each other, until XLA ends the process.
FLAGS = xla_flags.with_devices(8) + " --xla_cpu_enable_concurrency_optimized_scheduler=false"


def run(script, *arguments, timeout=500):
    """What the last line that `script` prints is as JSON; None if it prints nothing. It must end well."""
    code, out, err = forked_program.start_script(script, *arguments, XLA_FLAGS=FLAGS).result(timeout)
    assert code == 0, err[-3000:]
    lines = out.splitlines()
    return json.loads(lines[-1]) if lines else None
