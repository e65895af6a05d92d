"""preemption.py: a signal is heard by all processes, whenever it comes."""

import os
import signal

import pytest

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import Preempted
from rcsd_jax.host.preemption import StopRequest


def test_a_signal_that_comes_while_processes_agree_is_heard_the_next_time(monkeypatch):
    asked = []

    def largest(number):
        asked.append(number)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # this process has said 0 already
        return number

    monkeypatch.setattr(multihost, "largest", largest)
    with StopRequest() as stop:
        assert not stop.is_set()
        assert stop.is_set() and asked == [0, signal.SIGTERM]


def test_what_another_process_received_is_this_ones_status_too(monkeypatch):
    monkeypatch.setattr(multihost, "largest", lambda _: signal.SIGTERM)
    with StopRequest() as stop, pytest.raises(Preempted) as raised:
        stop.raise_if_set("saved")
    assert raised.value.signal == signal.SIGTERM
