"""What one of several processes gets from the others, with the exchange itself replaced."""

import pytest

from rcsd_jax.host import multihost
from rcsd_jax.host.errors import Preempted, UserError, WriteFailed
from rcsd_jax.host.shared_log import held_by_all
from tests.host.test_keyed_log import opened


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two; `sent` is what the first one sends."""
    sent = []
    monkeypatch.setattr(multihost, "is_main", lambda: False)
    monkeypatch.setattr(multihost, "from_main", lambda make: sent.pop(0))
    monkeypatch.setattr(multihost, "gather", lambda value: [sent.pop(0), value])
    return sent


def test_a_log_of_which_another_process_keeps_the_file(second, tmp_path):
    second += [None, [("a", 1), ("b", 2)]]
    with held_by_all(opened, tmp_path / "log.jsonl") as log:
        log.put_batch([("c", 3)])
        assert dict(log.items()) == {"a": 1, "b": 2, "c": 3} and log.path is None
    assert not list(tmp_path.iterdir())


def test_a_log_of_one_process(tmp_path):
    for _ in range(2):
        with held_by_all(opened, tmp_path / "log.jsonl") as log:
            log.put("a", 1)
    assert (tmp_path / "log.jsonl").read_text() == '{"key": "a", "value": 1}\n'


def problem_of(error):
    """What a process sends of an error that ended its part."""
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multihost, "gather", lambda value: sent.append(value) or [None])

        def fail():
            raise error

        multihost.agreed(fail, everywhere=True)
    return sent[0]


def test_an_error_of_one_process_is_raised_in_all(second, tmp_path):
    place = dict(file="rows.jsonl", row=3, field="question", value="")
    for error in (UserError("is empty", remedy="fill it in", **place), WriteFailed("is full", remedy="free some")):
        second.append(problem_of(error))
        with pytest.raises(type(error)) as raised:
            multihost.agreed(lambda: "fine here", everywhere=True)
        assert str(raised.value) == str(error) and type(raised.value) is type(error)
    second.append((None, problem_of(Preempted("saved at step 3", signal=15))))
    with pytest.raises(Preempted, match="saved at step 3") as stopped:
        multihost.agreed(lambda: pytest.fail("the first process does this"))
    assert stopped.value.signal == 15
    second.append(("made there", None))
    assert multihost.agreed(lambda: pytest.fail("the first process does this")) == "made there"
