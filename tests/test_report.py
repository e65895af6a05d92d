"""What a report is made of: a run's files, and what both roles say of tokens."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rcsd_jax import preparation
from rcsd_jax.errors import UserError
from rcsd_jax.models import huggingface
from rcsd_jax.models.decoder import head_matrix
from rcsd_jax.report import __main__ as command
from rcsd_jax.report import collect, examples
from rcsd_jax.report.tokens import TOP, score_tokens
from rcsd_jax.run import open_model
from tests.test_stage import config_for, run


@pytest.fixture(scope="module")
def finished(user_dir, tmp_path_factory):
    """A run of a LoRA with evaluations of all roles."""
    config = config_for(user_dir)
    config.lora.rank = 2
    config.optimizer.learning_rate = 1e-2
    config.model.dtype = "float32"
    config.train.steps = 2
    config.eval.update(grader="boxed", path=config.data.path, count=6, greedy=(False,), every=1)
    workdir = tmp_path_factory.mktemp("run")
    run(config, workdir)
    return config, workdir, collect.collect(workdir)


def test_scores_of_tokens_against_plain_arithmetic(user_dir):
    config = config_for(user_dir)
    config.model.update(dtype="float32", param_dtype="float32")
    decoder = (model := open_model(config.model.path, config)).decoder
    params = huggingface.load(model.directory, dtype=jnp.float32)[1]
    student = {"params": params}
    teacher = {"params": jax.tree.map(lambda x: x * 1.1, params)}
    rng = np.random.default_rng(0)
    rows = [
        [rng.integers(5, 500, size=n).astype(np.int32) for n in lengths]
        for lengths in ((3, 7, 5), (9, 4, 6), (2, 8, 4))
    ]
    found = score_tokens(decoder, student, teacher, *rows, temperature=1.3, batch_size=2, pad_to=4, chunk_size=3)
    for i, scores in enumerate(found):
        log_probs = []
        for variables, prompt in ((student, rows[0][i]), (teacher, rows[1][i])):
            tokens = np.concatenate([prompt, rows[2][i]])[None]
            ones, places = np.ones_like(tokens), np.arange(tokens.shape[1], dtype=np.int32)[None]
            hidden, _ = decoder.apply(variables, tokens, segment_ids=ones, positions=places)
            logits = np.asarray(hidden[0] @ head_matrix(decoder.config, variables["params"]), np.float64) / 1.3
            log_probs.append(scipy.special.log_softmax(logits[len(prompt) - 1 : -1], axis=-1))
        s, t = log_probs
        at = np.arange(len(rows[2][i])), rows[2][i]
        np.testing.assert_allclose(scores.student_log_prob, s[at], atol=2e-4)
        np.testing.assert_allclose(scores.teacher_log_prob, t[at], atol=2e-4)
        np.testing.assert_allclose(scores.divergence, (np.exp(t) * (t - s)).sum(-1), atol=2e-4)
        ids, probabilities = scores.teacher_top
        np.testing.assert_allclose(probabilities, np.sort(np.exp(t))[:, : -TOP - 1 : -1], atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(np.exp(t), ids, axis=1), probabilities, atol=1e-4)


def test_pieces_are_the_text(user_dir):
    config = config_for(user_dir)
    model = open_model(config.model.path, config)
    for text in ("A plain one.", "ü–中文 🙂 two", " spaces  \n", "", "a\u0301 🏳️‍🌈"):
        ids, pieces = examples._pieces(model, text, False)
        assert len(ids) == len(pieces) and pieces[-1] == examples.END and "".join(pieces[:-1]) == text
        assert ids[-1] in model.eos_ids
        if text:
            assert "".join(examples._pieces(model, text, True)[1]) == text


@pytest.mark.slow
def test_what_a_run_left_is_collected(finished):
    config, workdir, data = finished
    (stage,) = data["stages"]
    assert set(stage["evaluation"]) == {"base", "teacher", "trained", "step_1"} and stage["metrics"]["step"] == [0, 1]
    assert stage["config"]["lora.rank"] == 2 and "lora.rank" in stage["config_changed"]
    assert "loss.beta" in stage["config"] and "loss.beta" not in stage["config_changed"]
    assert len(stage["examples"]) == 6 and {len(v) for v in stage["lengths"].values()} == {6}
    for example in stage["examples"]:
        assert {c["role"] for c in example["completions"]} == {"base", "trained", "teacher"} and len(
            example["rubric"]
        ) == 4
        for one in example["completions"]:
            count = len(one["tokens"])
            assert "".join(one["tokens"]).rstrip(examples.END) == one["text"]
            assert len(one["divergence"]) == len(one["student_top"]) == len(one["teacher_top"]) == count
            assert np.shape(one["attribution"]) == (4, count) and min(one["divergence"]) > -1e-5
            assert all(len(top) == TOP and all(0 <= p <= 1 for _, p in top) for top in one["teacher_top"])
    json.dumps(data, allow_nan=False)
    assert "jax" in data["versions"]


@pytest.mark.slow
def test_base_and_trained_are_scored_as_they_are(finished):
    """The teacher of a run with a fixed one is the base under the rubric; the trained student has moved away from it."""
    config, workdir, data = finished
    model = open_model(config.model.path, config)
    example = data["stages"][0]["examples"][0]
    text = next(c for c in example["completions"] if c["role"] == "base")
    decoder, params = model.decoder, huggingface.load(model.directory, dtype=jnp.float32)[1]
    questions = preparation.evaluation_questions(config, model.tokenizer)["base"]["eval"]
    prompt = questions.prompts[[e.id for e in questions.examples].index(example["id"])]

    def as_base(one):
        ids, _ = examples._pieces(model, one["text"], one["cut"])
        base, temperature = {"params": params}, config.sampling.temperature
        return score_tokens(decoder, base, base, [prompt], [prompt], [ids], temperature=temperature)[0].student_log_prob

    np.testing.assert_allclose(text["student_log_prob"], as_base(text), atol=1e-3)
    trained = next(c for c in example["completions"] if c["role"] == "trained")
    assert np.abs(np.subtract(trained["student_log_prob"], as_base(trained))).max() > 0.01


@pytest.mark.slow
def test_scored_tokens_are_kept_and_weights_read_once(finished, monkeypatch):
    _, workdir, data = finished
    monkeypatch.setattr(collect, "scored_completions", lambda *_: pytest.fail("scored again"))
    again = collect.collect(workdir)
    assert again["stages"][0]["examples"] == data["stages"][0]["examples"]


@pytest.mark.slow
def test_an_old_workdir_without_weights_or_data(finished, tmp_path):
    _, workdir, _ = finished
    for name in ("config.json", "metrics.jsonl", "evaluation_trained.json", "completions_trained.jsonl"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    stage = collect.collect(tmp_path)["stages"][0]
    assert "tokens" not in stage["examples"][0]["completions"][0] and stage["examples"][0]["completions"][0]["text"]
    changed = json.loads((tmp_path / "config.json").read_text())
    changed["eval"]["path"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "config.json").write_text(json.dumps(changed))
    stage = collect.collect(tmp_path)["stages"][0]
    assert stage["examples"] == [] and stage["evaluation"]["trained"] and not math.isnan(stage["metrics"]["loss"][0])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no run in it.*name the --workdir"):
        collect.collect(tmp_path)
    with pytest.raises(UserError, match="no run in it"):
        collect.collect(tmp_path / "nothing")


@pytest.mark.slow
def test_the_command_writes_a_page(finished, monkeypatch, capsys):
    _, workdir, _ = finished
    command.main([str(workdir), "--no-tokens"])
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert (
        page.startswith("<!doctype html>")
        and "What is its density?" in page
        and "report.html" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as ended:
        command.main([str(workdir / "nothing")])
    assert ended.value.code == 2 and "no run in it" in capsys.readouterr().err


def test_pieces_of_the_likeliest_keep_their_space(user_dir):
    config = config_for(user_dir)
    model = open_model(config.model.path, config)
    ids = model.tokenizer("of the density", add_special_tokens=False)["input_ids"]
    assert "".join(examples._piece(model, i) for i in ids) == "of the density"
    assert examples._piece(model, model.eos_ids[0]) == examples.END
