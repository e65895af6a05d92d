"""Checkpoints come back bit for bit, on any mesh; a damaged one is found, named and passed over."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcsd_jax.host.errors import UserError, WriteFailed
from rcsd_jax.models import sharding
from rcsd_jax.run.checkpoints import Checkpoints, newest_step
from tests import eight_devices


def state_of(step):
    return {
        "kernel": jax.random.normal(jax.random.key(step), (64, 48)),
        "half": jax.random.normal(jax.random.key(step + 100), (32,), jnp.bfloat16),
        "step": jnp.int32(step),
    }


def save(directory, *steps, keep=5):
    checkpoints = Checkpoints(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, state_of(step), {"data_position": step})
    checkpoints.close()


def restore(directory, like=None):
    checkpoints = Checkpoints(directory, keep=5)
    restored = checkpoints.restore_newest(state_of(0) if like is None else like)
    checkpoints.close()
    return restored


def assert_is(restored, step):
    assert restored.step == step and restored.position == {"data_position": step}
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(step))


def test_the_newest_comes_back_and_old_ones_go(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2, 3, keep=2)
    assert_is(restore(tmp_path), 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    for name in ("damaged_7", "damaged_7_again", "8.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path) == 3 and newest_step(tmp_path / "none") == newest_step(tmp_path / "damaged_7") == 0


@pytest.mark.parametrize("waits", [True, False])
def test_storage_that_takes_nothing(waits, tmp_path):
    told = r"run: a checkpoint cannot be written \(NotADirectoryError: .*\); check the storage"
    with (
        pytest.raises(WriteFailed, match=told),
        contextlib.closing(Checkpoints(tmp_path / "run", keep=2)) as checkpoints,
    ):
        checkpoints.save(1, state_of(1), {"data_position": 1})
        checkpoints.wait()
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("no folder")
        checkpoints.save(2, state_of(2), {"data_position": 2})
        if waits:
            checkpoints.wait()


def torn(data):
    return data[: len(data) // 2]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def data_file(folder):
    """Where the large array's bytes are."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


DAMAGE = {
    "torn data": (data_file, torn),
    "one bit of the data": (data_file, flipped),  # orbax does not notice
    "torn position": (lambda f: f / "position" / "metadata", torn),
    "one bit of the position": (lambda f: f / "position" / "metadata", flipped),
    "torn manifest": (lambda f: f / "state" / "manifest.ocdbt", torn),
    "empty names": (lambda f: f / "state" / "_METADATA", lambda _: b""),
    "another name": (lambda f: f / "state" / "_METADATA", lambda data: data.replace(b"kernel", b"kernal")),
}


@pytest.fixture(scope="module")
def of_two_steps(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2; tests copy it, which is quicker than writing them."""
    folder = tmp_path_factory.mktemp("of_two_steps")
    save(folder, 1, 2)
    return folder


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_kept(case, of_two_steps, tmp_path, capfd):
    find, damage = DAMAGE[case]
    shutil.copytree(of_two_steps, tmp_path, dirs_exist_ok=True)
    file = find(tmp_path / "2")
    file.write_bytes(damage(file.read_bytes()))
    restored = restore(tmp_path)
    assert_is(restored, 1)
    ((moved, problem),) = restored.damaged
    assert moved == tmp_path / "damaged_2" and moved.is_dir() and len(problem.splitlines()) == 1
    assert "Traceback" not in capfd.readouterr().err
    save(tmp_path, 2)  # the run goes on, and reaches the step again
    again = restore(tmp_path)
    assert_is(again, 2)
    assert not again.damaged


def rollout_of(step):
    return {
        "samples.tokens": jax.random.randint(jax.random.key(step), (8, 300), 0, 1000),
        "samples.mask": jax.random.bernoulli(jax.random.key(step), shape=(8, 3)),
        "advantages": jax.random.normal(jax.random.key(step), (8,)),
    }


def test_a_rollout_in_use_is_part_of_a_checkpoint(tmp_path):
    rows = sharding.batch_sharding(sharding.make_mesh())
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step, rollout in ((1, None), (2, rollout_of(2)), (3, rollout_of(3))):
        checkpoints.save(step, state_of(step), {"data_position": step}, rollout)
    for step in (3, 2, 1):
        checkpoints.wait()
        restored = checkpoints.restore_newest(state_of(0), rows=rows)
        assert_is(restored, step)
        if step == 1:
            assert restored.rollout is None
            break
        jax.tree.map(np.testing.assert_array_equal, restored.rollout, rollout_of(step))
        assert {x.sharding for x in restored.rollout.values()} == {rows}
        file = data_file(tmp_path / str(step) / "rollout")
        file.write_bytes((flipped if step == 3 else torn)(file.read_bytes()))
    assert [path.name for path, _ in restored.damaged] == ["damaged_2"]
    checkpoints.close()


def test_two_damaged_ones_and_none_that_is_intact(tmp_path):
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        data_file(tmp_path / str(step)).write_bytes(b"")
    restored = restore(tmp_path)
    assert_is(restored, 1)
    assert [folder.name for folder, _ in restored.damaged] == ["damaged_3", "damaged_2"]
    data_file(tmp_path / "1").unlink()
    with pytest.raises(UserError, match=r"none of the 1 checkpoints can be used \(the newest: .*\); restore .* delete"):
        restore(tmp_path)
    assert (tmp_path / "1").is_dir()


def test_another_model_is_no_damage(of_two_steps, tmp_path):
    shutil.copytree(of_two_steps, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"kernel is \(64, 48\) and the run has \(64, 40\)"):
        restore(tmp_path, like=state_of(0) | {"kernel": jnp.zeros((64, 40))})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_storage_that_does_not_answer_is_no_damage(of_two_steps, tmp_path, monkeypatch):
    shutil.copytree(of_two_steps, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: (_ for _ in ()).throw(ValueError("UNAVAILABLE: try later")))
    with pytest.raises(UserError, match="cannot be read now .*UNAVAILABLE"):
        restore(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


SCRIPT = """
import json, sys
import jax, numpy as np
from configs import stage2
from pathlib import Path
from rcsd_jax.data import sources
from rcsd_jax.run import training_state
from rcsd_jax.run.rows import encode_all
from rcsd_jax.settings.unpack import unpack
from rcsd_jax.run.batch import make_batch
from rcsd_jax.methods.state import shardings_of
from rcsd_jax.methods.step import jit_step
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import load_weights, open_model

user, workdir, moves = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
losses = []
for shape in moves:
    config = stage2.get_config("ground_truth")
    config.model.update(path=str(user / "model"), dtype="float32", param_dtype="float32", remat="none")
    config.lora.rank = 4
    config.data.path = str(user / "rows.jsonl")
    config.sampling.update(max_new_tokens=12, temperature=1.0)
    config.train.update(batch_size=8, steps=6)
    config.optimizer.learning_rate = 1e-2
    config = unpack(config)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        model = open_model(config.model.path, config.model, lora_rank=4, lora_alpha=8.0)
        params = load_weights(model, mesh)
        examples = sources.read_as(config.data.path, config.reading(require=("question", "rubric")))
        data = encode_all(examples, model.tokenizer, config.encoding, config.limits)
        setup = training_state.setup(model, params, config, mesh)
        checkpoints = Checkpoints(workdir, keep=1)
        restored = checkpoints.restore_newest(setup.abstract)
        start = 0 if restored is None else restored.step
        state = training_state.first_state(model, params, config, setup) if restored is None else restored.state
        devices = {d for x in jax.tree.leaves(state) for d in x.devices()}
        assert len(devices) == mesh.size, (len(devices), mesh.size)
        step = jit_step(setup.recipe, shardings_of(setup.abstract)).train_step
        for i in range(start, start + 2):
            batch = make_batch(list(range(8 * i, 8 * i + 8)), data, config, model.pad_id)
            state, metrics, _ = step(state, setup.frozen, sharding.to_mesh(batch, mesh), 0)
            losses.append(float(metrics["loss"]))
        checkpoints.save(start + 2, state, {})
        checkpoints.close()
print(json.dumps(losses))
"""


@pytest.mark.cluster
def test_a_checkpoint_of_one_mesh_goes_on_on_another(user_dir, tmp_path):
    def losses(name, moves):
        return eight_devices.run(SCRIPT, user_dir, tmp_path / name, json.dumps(moves))

    unmoved = losses("unmoved", [(1, 1, 1)] * 3)
    assert len(unmoved) == 6 and len(set(unmoved)) == 6
    np.testing.assert_allclose(losses("moved", [(1, 1, 1), (2, 2, 2), (1, 2, 1)]), unmoved, rtol=0, atol=1e-5)
