"""Where a process finds the others of its job: flags first, then environment variables."""

import pytest

from rcsd_jax.cli import join_processes as joining
from rcsd_jax.cli.join_processes import Processes, join_processes
from rcsd_jax.host.errors import UserError

SEVERAL = Processes(True, "host:1", None, None, 60)


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(joining.distributed, "start", lambda **settings: calls.append(settings))
    return calls


def test_flags_come_before_variables(started, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    join_processes(SEVERAL._replace(process_id=0))
    assert started == [dict(coordinator="host:1", num_processes=4, process_id=0, heartbeat_timeout=60)]


def test_without_either_jax_finds_them(started, monkeypatch):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    join_processes(SEVERAL)
    assert started == [dict(coordinator="host:1", num_processes=None, process_id=None, heartbeat_timeout=60)]


def test_a_variable_that_is_no_number(started, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="'JAX_PROCESS_ID' = 'first': not a number"):
        join_processes(SEVERAL)


@pytest.mark.parametrize("given", [dict(coordinator="host:1"), dict(num_processes=2), dict(process_id=0)], ids=str)
def test_one_process_joins_nothing(started, given):
    alone = Processes(False, None, None, None, 60)
    join_processes(alone)
    with pytest.raises(UserError, match=f"--{next(iter(given))}.*add --distributed"):
        join_processes(alone._replace(**given))
    assert started == []
