"""A workdir behind a URL, against a stand-in for gs://: objects that cannot be appended to, nor folders of them renamed at once.

All but orbax reach them as a file system of fsspec's, where gcsfs would stand; orbax over HTTP, by tensorstore's own driver.
"""

import contextlib
import json
import sys
from types import SimpleNamespace

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load

from configs import stage2
from rcsd_jax.check import storage
from rcsd_jax.checkpoints import loading, saving
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.host import files, keyed_log
from rcsd_jax.host.errors import UserError, WriteFailed
from rcsd_jax.host.metrics import MetricWriter, read_metrics
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.methods.state import init_state
from rcsd_jax.models import sharding
from rcsd_jax.models.declarations import declarations
from rcsd_jax.roles.opened_model import open_served
from rcsd_jax.rubrics.cache import RubricCache, Written
from rcsd_jax.rubrics.parsing import Parsed
from rcsd_jax.run import stage
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.workdir import claimed
from tests.gcs_server import GcsServer


class Bucket(MemoryFileSystem):
    """Objects in memory under gs://."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]
    refuses = False  # what is to be written

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("gcs://", "").replace("gs://", ""))

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("objects cannot be appended to")
        if "w" in mode and Bucket.refuses:
            raise OSError("Forbidden\nby the bucket")
        return super()._open(path, mode, **options)

    def mv(self, *_, **__):
        raise NotImplementedError("folders cannot be renamed")

    rename = mv


def read_objects():
    return {path.lstrip("/"): file.getvalue() for path, file in list(Bucket.store.items())}


def write_object(path, data):
    if data is None:
        Bucket.store.pop(f"/{path}", None)
    else:
        Bucket().pipe_file(f"/{path}", data)


@pytest.fixture(scope="module")
def server():
    with GcsServer(read_objects, write_object) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        # Orbax asks Google's own client one thing, whether the bucket has folders.
        client = SimpleNamespace(get_bucket=lambda name: SimpleNamespace(hierarchical_namespace_enabled=False))
        patch.setitem(sys.modules, "google.cloud", SimpleNamespace(storage=SimpleNamespace(Client=lambda: client)))
        yield server


@pytest.fixture
def bucket(server, monkeypatch):
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    monkeypatch.setenv("EPATH_USE_TF", "false")
    Bucket.store.clear()
    Bucket.refuses = server.refuses = False
    return epath.Path("gs://bucket")


def test_whole_files_and_growing_ones(bucket):
    file = files.as_path("gs://bucket/run/summary.json")
    files.write_json(file, {"a": "ü"})
    assert files.read_json(file) == {"a": "ü"}
    with pytest.raises(UserError, match="gs://bucket/run/broken.json: not valid JSON"):
        files.write_text(bucket / "run" / "broken.json", "{")
        files.read_json(bucket / "run" / "broken.json")
    files.append(bucket / "log", b"one\n")
    files.append(bucket / "log", b"two\n")
    assert (bucket / "log").read_bytes() == b"one\ntwo\n"


def test_a_log_is_written_now_and_then_and_at_its_end(bucket, monkeypatch):
    log = files.Log(bucket / "log")
    log.write("one")
    assert not (bucket / "log").exists()
    monkeypatch.setattr(files, "_EVERY_S", 0.0)
    log.write("two")
    assert (bucket / "log").read_text() == "one\ntwo\n"
    monkeypatch.undo()
    log.write("three")
    log.close()
    log = files.Log(bucket / "log")
    log.write("four")
    log.close()
    assert (bucket / "log").read_text() == "one\ntwo\nthree\nfour\n"


def test_a_bucket_that_takes_nothing_more(bucket):
    writer = MetricWriter(bucket / "run", first_step=0)
    writer.write(0, {"loss": 0.5})
    Bucket.refuses = True
    with pytest.raises(
        WriteFailed, match=r"metrics.jsonl: cannot be written \(OSError: Forbidden\); check the storage"
    ):
        writer.sync()
    with pytest.raises(WriteFailed, match=r"tensorboard: cannot be written"):
        writer.close()


def test_metrics_and_rubrics(bucket):
    writer = MetricWriter(bucket / "run", first_step=0)
    for step in range(3):
        writer.write(step, {"loss": 0.5})
    writer.close()
    writer = MetricWriter(bucket / "run", first_step=1)
    writer.write(1, {"loss": 0.25})
    assert read_metrics(bucket / "run") == [{"step": 0, "loss": 0.5}]
    writer.sync()
    assert read_metrics(bucket / "run") == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]
    writer.close()
    assert read_metrics(bucket / "run") == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]
    assert all(file.stat().length for file in (bucket / "run" / "tensorboard").iterdir())

    cache = RubricCache("gs://bucket/run/rubrics.jsonl")
    for key in ("a", "b"):
        cache.put_many([Written(key, "text", Parsed(None, "rejected", "reason"))])
    assert [written.key for written in RubricCache("gs://bucket/run/rubrics.jsonl").held()] == ["a", "b"]


def test_a_keyed_log(bucket):
    numbers = keyed_log.Codec("a number", "remove it", lambda value: {"value": value}, lambda record: record["value"])
    path = bucket / "run" / "log.jsonl"
    with keyed_log.KeyedLog(path, numbers, exclusive=True) as log:
        log.put("a", 1)
        assert not path.exists()  # it is written now and then
        log.put_batch([("b", 2)])
        assert path.read_text() == '{"key": "a", "value": 1}\n{"key": "b", "value": 2}\n'
        log.put("c", 3)
    whole = path.read_text()
    path.write_text(whole[:-5])
    with keyed_log.KeyedLog(path, numbers) as log:
        assert (len(log), log.torn_lines) == (2, 1)
        log.put_batch([("c", 3)])
        assert path.read_text() == whole
        Bucket.refuses = True
        with pytest.raises(
            WriteFailed, match=r"log.jsonl: cannot be written \(OSError: Forbidden\); check the storage"
        ):
            log.put_batch([("d", 4)])
        Bucket.refuses = False


def test_a_model_out_and_in(bucket, user_dir):
    config, params = loading.load_model(user_dir / "model", dtype="float32")
    where = saving.save_model("gs://bucket/run/export", config, params, source=user_dir / "model")
    saving.save_model(where, config, params, source=user_dir / "model")  # replaces it
    local = files.fetched(str(where))
    assert local == files.fetched(str(where)) and not files.is_remote(local)
    again, read = loading.load_model(local, dtype="float32")
    assert again == config and set(declarations(config))
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert load_tokenizer(local).chat_template
    (bucket / "run" / "other" / "file").write_text("x")
    with pytest.raises(UserError, match="something other than a model"):
        saving.save_model("gs://bucket/run/other", config, params)


def test_checkpoints(bucket, server, monkeypatch):
    state = {"kernel": jax.random.normal(jax.random.key(0), (64, 48)), "step": jnp.int32(0)}

    def save(*steps):
        with contextlib.closing(Checkpoints(bucket / "run", keep=2)) as checkpoints:
            for step in steps:
                checkpoints.save(step, state | {"step": jnp.int32(step)}, {"data_position": step})

    def restored():
        with contextlib.closing(Checkpoints(bucket / "run", keep=2)) as checkpoints:
            return checkpoints.restore_newest(state)

    save(1, 2, 3)
    assert sorted(folder.name for folder in (bucket / "run").iterdir()) == ["2", "3"]
    assert restored().step == 3 and restored().position == {"data_position": 3}
    jax.tree.map(np.testing.assert_array_equal, restored().state, state | {"step": jnp.int32(3)})

    objects = {path: data for path, data in read_objects().items() if path.startswith("bucket/run/3/state")}
    path, data = max(objects.items(), key=lambda item: len(item[1]))
    write_object(path, data[: len(data) // 2])
    monkeypatch.setattr(Bucket, "rename", MemoryFileSystem.mv)  # as gcsfs has it: object by object
    found = restored()
    assert found.step == 2 and [where.name for where, _ in found.damaged] == ["damaged_3"]
    assert sorted(folder.name for folder in (bucket / "run").iterdir()) == ["2", "damaged_3"]

    server.refuses = True
    with pytest.raises(WriteFailed, match="gs://bucket/run: a checkpoint cannot be written .*; check the storage"):
        save(4)
    server.refuses = False
    assert restored().step == 2


@pytest.mark.parametrize("problem", [ImportError("Please install gcsfs"), OSError("Forbidden\nby the bucket")])
def test_a_bucket_out_of_reach(problem, bucket, monkeypatch):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(Bucket, "info", fail)
    monkeypatch.setattr(Bucket, "exists", fail)
    first = str(problem).partition("\n")[0]
    with pytest.raises(
        UserError, match=rf"gs://bucket/run: the workdir cannot be reached .*{first}\); .*rcsd_jax\[gcs\]"
    ):
        with claimed(bucket / "run", stage2.get_config("paper")):
            pass


@pytest.mark.slow
def test_a_stage_whose_workdir_is_a_url(bucket, user_dir, monkeypatch):
    rows_when_saved, save = [], Checkpoints.save

    def counted(self, step, *rest):
        rows_when_saved.append((step, len(read_metrics(bucket / "run"))))
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", counted)
    config = stage2.get_config("paper")
    config.model.path = config.rubric.writer = str(user_dir / "model")
    config.data.path = str(user_dir / "rows.jsonl")
    config.lora.rank = 2
    config.sampling.max_new_tokens = config.rubric.max_new_tokens = 8
    config.rubric.update(batch_size=8, resample=0, constrained=False)
    config.train.update(steps=2, batch_size=4)
    config.eval.update(
        grader="boxed",
        path=config.data.path,
        count=4,
        batch_size=4,
        roles=("trained",),
        greedy=(True,),
        max_new_tokens=8,
    )

    def run(config, workdir):
        with StopRequest() as stop:
            return stage.run_stage(config, workdir, rich.console.Console(quiet=True), stop)

    summary = run(config, "gs://bucket/run")
    assert summary["paths"]["export"] == "gs://bucket/run/export"
    assert {p.name for p in (bucket / "run").iterdir()} >= {
        "checkpoints", "config.json", "summary.json", "metrics.jsonl", "tensorboard", "rubrics.jsonl", "export", "adapter",
        "evaluation_trained.json", "completions_trained.jsonl",
    }  # fmt: skip
    assert [row["step"] for row in read_metrics(bucket / "run")] == [0, 1]
    assert rows_when_saved == [(2, 2)]
    assert load((bucket / "run" / "adapter" / "adapter_model.safetensors").read_bytes())
    assert run(config, "gs://bucket/run") == json.loads(json.dumps(summary))
    config.loss.beta = 0.5
    with pytest.raises(UserError, match="gs://bucket/run/config.json: .*loss.beta"):
        run(config, "gs://bucket/run")
    writer, _, load_writer = open_served("gs://bucket/run/adapter", config.model, sharding.make_mesh())
    assert load_writer()["lora"]["q"]["b"].any() and writer.decoder.config.lora_scale == 128.0 / 2


def test_the_check_of_a_workdir(bucket):
    """`python -m rcsd_jax.check` writes a checkpoint into the bucket, reads it back, and removes it."""
    state = init_state({"w": jnp.arange(6.0)}, optax.adam(0.1), ema=False)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert storage.check_checkpoint(bucket / "run", state, mesh).verdict == "ok"
    assert not (bucket / "run" / storage.FOLDER).exists()
    Bucket.refuses = True
    found = storage.check_checkpoint(bucket / "run", state, mesh)
    assert found.verdict == "failed" and "Forbidden" in found.measured
