"""A teacher behind an endpoint in a run: what it says reaches the loss, is asked once, and what it cannot do is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.models import sharding
from rcsd_jax.run import endpoint_teacher
from rcsd_jax.settings.unpack import check, unpack
from tests.judge import test_prompt_scores
from tests.judge.test_prompt_scores import log_probs_of, server  # noqa: F401
from tests.methods.test_packed_learning import completions_of
from tests.run.test_stage import config_for, run


def config_of(user_dir, url, **loss):
    config = config_for(user_dir)
    config.model.update(dtype="float32", param_dtype="float32")
    config.sampling.temperature = 1.0
    config.loss.update(loss or dict(divergence="sampled_token"))
    config.teacher_endpoint.update(model="teacher", base_url=url, retries=1)
    return config


@pytest.fixture
def large_vocabulary(monkeypatch):
    monkeypatch.setattr(test_prompt_scores, "VOCABULARY", 40)


def test_every_completion_is_scored_after_its_teacher_s_prompt_once(server, user_dir, tmp_path, large_vocabulary):  # noqa: F811
    config = unpack(config_of(user_dir, server.url, top_k=3))
    completions, mesh = completions_of(), sharding.make_mesh(devices=jax.devices()[:1])
    completions = completions._replace(completion_mask=completions.completion_mask.at[2].set(False))
    examples = [Example(str(i), "?", None, None, None, f"rows:{i}") for i in range(8)]
    with StopRequest() as stop:
        this = types.SimpleNamespace(
            config=config, workdir=as_path(tmp_path), mesh=mesh, console=rich.console.Console(quiet=True), stop=stop, name="run"
        )  # fmt: skip
        for _ in range(2):
            found = endpoint_teacher.scored(completions, examples, 4, 40, this)
    assert len(server.bodies) == 6  # not the empty one, not the one that is left out, and none again
    tokens, mask = np.asarray(completions.samples.tokens), np.asarray(completions.samples.mask)
    for row in (0, 1, 4, 5, 6, 7):
        prompt = np.asarray(completions.teacher_tokens)[row][np.asarray(completions.teacher_mask)[row]]
        answer = tokens[row][mask[row]]
        wanted = log_probs_of((*prompt, *answer))[len(prompt) :]
        for place, (token, of_place) in enumerate(zip(answer, wanted, strict=True)):
            ids, values = (np.asarray(x[row, place]) for x in found.known)
            assert token in ids and set(np.argsort(-of_place)[:3]) <= set(ids)
            np.testing.assert_allclose(values[ids >= 0], of_place[ids[ids >= 0]], rtol=1e-5)
        assert (np.asarray(found.known.tokens)[row][~mask[row]] == -1).all()
    assert (np.asarray(found.known.tokens)[[2, 3]] == -1).all()
    assert jax.tree.structure(endpoint_teacher.unknown(tokens.shape, config)) == jax.tree.structure(found.known)
    shapes = [x.shape for x in endpoint_teacher.unknown(tokens.shape, config)]
    assert shapes == [x.shape for x in found.known] == [(*tokens.shape, 4)] * 2

    server.misbehave = lambda handler, prompt, nth: handler.send(400, {"error": {"message": "too long"}})
    other = completions._replace(teacher_tokens=jnp.flip(completions.teacher_tokens, axis=1))
    with StopRequest() as stop, pytest.raises(UserError, match=r"rows:\d.*too long") as error:
        this.stop = stop
        endpoint_teacher.scored(other, examples, 5, 40, this)
    assert error.value.field == "teacher_endpoint.model"


@pytest.mark.slow
def test_a_run_learns_from_it(server, user_dir, tmp_path, monkeypatch):  # noqa: F811
    size = read_config(user_dir / "model", dtype="float32").vocab_size
    monkeypatch.setattr(test_prompt_scores, "VOCABULARY", size)
    config = config_of(user_dir, server.url, top_k=3, tail="bucket")
    config.lora.rank = 2
    config.train.update(steps=2, passes_per_rollout=2)
    run(config, tmp_path / "run")
    rows = read_metrics(as_path(tmp_path / "run"))
    assert [np.isfinite(row["loss"]) and row["loss"] > 0 for row in rows] == [True, True] and len(server.bodies) == 4
    assert (tmp_path / "run" / "teacher_scores" / "0.jsonl").exists()


REFUSED = {
    "loss.top_k": dict(loss=dict(divergence="vocabulary")),
    "loss.top_k_support": dict(loss=dict(divergence="vocabulary", top_k=3, top_k_support="student")),
    "sampling.temperature": dict(sampling=dict(temperature=1.2)),
    "teacher.path": dict(teacher=dict(path="other")),
    "teacher.weights": dict(teacher=dict(weights="live")),
    "teacher.guidance": dict(teacher=dict(guidance=1.0)),
    "teacher.reason_tokens": dict(teacher=dict(reason_tokens=8)),
    "sampling.source": dict(sampling=dict(source="teacher")),
    "eval.roles": dict(eval=dict(grader="boxed", path="rows")),
    "teacher_endpoint.model": dict(method="sft", sampling=dict(source="reference")),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_it_cannot_give_is_refused(user_dir, key):
    config = config_of(user_dir, "http://127.0.0.1:1/v1")
    check(config)
    config.update(REFUSED[key])
    with pytest.raises(UserError) as error:
        check(config)
    assert error.value.field == key and error.value.remedy
