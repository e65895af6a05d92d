"""Room on the disk, and a checkpoint that is written and read back: both as they should be, and not."""

import collections
import errno

import jax
import jax.numpy as jnp
import optax
import pytest

from rcsd_jax.check import storage
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK
from rcsd_jax.check.storage import Room
from rcsd_jax.host.files import as_path
from rcsd_jax.methods.state import init_state
from rcsd_jax.models import sharding
from rcsd_jax.run.checkpoints import Checkpoints

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def state():
    return init_state({"w": jnp.arange(6.0).reshape(2, 3), "v": jnp.ones(4)}, optax.adam(0.1), ema=False)


@pytest.fixture
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def test_a_checkpoint_comes_back_and_leaves_nothing(tmp_path, state, mesh):
    found = storage.check_checkpoint(tmp_path / "run", state, mesh)
    assert found.verdict == OK and found.numbers["bytes"] == 3 * (6 + 4) * 4 + 2 * 4  # w, v, their moments; two counts
    assert list((tmp_path / "run").iterdir()) == []


def test_of_a_large_state_a_part_is_written(tmp_path, state, mesh, monkeypatch):
    monkeypatch.setattr(storage, "LARGEST", 20)
    found = storage.check_checkpoint(tmp_path, state, mesh)
    assert found.verdict == OK and found.numbers["bytes"] == 16
    assert found.numbers["bytes_of_a_checkpoint"] == 128


def test_a_bit_that_differs_is_found(tmp_path, state, mesh, monkeypatch):
    restore = Checkpoints.restore_newest

    def with_a_bit(*arguments, **named):
        restored = restore(*arguments, **named)
        return restored._replace(state=jax.tree.map(lambda x: x.at[-1].add(1e-6) if x.ndim else x, restored.state))

    monkeypatch.setattr(Checkpoints, "restore_newest", with_a_bit)
    found = storage.check_checkpoint(tmp_path, state, mesh)
    assert found.verdict == FAILED and "is not what was written" in found.measured


def test_a_disk_that_fills_up_while_writing(tmp_path, state, mesh, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    found = storage.check_checkpoint(tmp_path, state, mesh)
    assert found.verdict == FAILED and "No space left" in found.measured and list(tmp_path.iterdir()) == []


def test_room_is_that_of_one_checkpoint_more_than_are_kept(tmp_path, monkeypatch):
    rooms = {"one": Room(checkpoint=100, keep=2, exports=50), "two": Room(checkpoint=10, keep=1, exports=0)}
    for free, verdict in ((370, OK), (369, FAILED)):
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda place, free=free: Usage(0, 0, free))
        found = storage.check_room(tmp_path / "not" / "there", rooms)
        assert (found.verdict, found.numbers["needed"]) == (verdict, 370)


def test_what_an_earlier_start_left_needs_no_room_again(tmp_path):
    (tmp_path / "one" / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "one" / "checkpoints" / "20" / "state").write_bytes(bytes(120))
    found = storage.check_room(tmp_path, {"one": Room(checkpoint=100, keep=2, exports=50)})
    assert found.numbers["needed"] == 350 - 120


def test_a_bucket_says_no_limit():
    found = storage.check_room(as_path("gs://bucket/run"), {"": Room(100, 2, 50)})
    assert found.verdict == NOT_CHECKED and found.numbers["needed"] == 350
