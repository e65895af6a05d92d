"""The forks that tests run programs in are processes as `subprocess` would start them."""

import subprocess

import pytest

from tests import forked_program


def test_arguments_environment_output_status_and_what_is_left_for_the_end():
    code = "import atexit, os, sys; atexit.register(print, 'end'); print(*sys.argv, os.environ['NAMED']); sys.exit(3)"
    process = forked_program.start_script(code, "one", NAMED="two")
    assert process.result() == (3, "-c one two\nend\n", "")


def test_an_error_is_a_traceback():
    code, out, err = forked_program.start_script("print('so far'); 1 / 0").result()
    assert (code, out) == (1, "so far\n") and err.startswith("Traceback") and err.endswith("division by zero\n")


def test_it_is_waited_for_and_killed():
    process = forked_program.start_script("import time; print('begun', flush=True); time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.1)
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert process.returncode == -9
