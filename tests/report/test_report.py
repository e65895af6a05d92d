"""What a report is made of: a run's files, and what both roles say of tokens."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from rcsd_jax.checkpoints import loading
from rcsd_jax.data import sources
from rcsd_jax.evaluate.questions import evaluation_questions
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import contract, rollout, step
from rcsd_jax.methods.networks import BASE, Better, Network, Networks
from rcsd_jax.methods.state import init_state
from rcsd_jax.models import quantization, sharding
from rcsd_jax.report import __main__ as command
from rcsd_jax.report import collect, scored_completions
from rcsd_jax.report import tokens as tokens_module
from rcsd_jax.report.tokens import TOP, score_tokens
from rcsd_jax.roles import contexts
from rcsd_jax.roles.opened_model import open_model
from rcsd_jax.rubrics.schema import Rubric
from rcsd_jax.run import checkpoints, training_state
from rcsd_jax.run.batch import make_batch
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.export import export
from rcsd_jax.run.recipe import loss_options, recipe_of, rollout_options
from rcsd_jax.run.rows import encode_all
from rcsd_jax.sampling import Samples
from tests.plain_logits import logits_after
from tests.run.test_stage import config_for, run
from tests.settings_for_tests import settings_of


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


def plain_logits(model, variables, prompt, ids):
    """[N, V] float64, of each token of a completion, by one pass over all of it."""
    return logits_after(model.decoder, variables, prompt, ids).astype(np.float64)


def plain_log_probs(model, variables, prompt, ids, temperature):
    """[N, V] float64: what a role says of each token of a completion."""
    return scipy.special.log_softmax(plain_logits(model, variables, prompt, ids) / temperature, axis=-1)


def exact(user_dir, **changes):
    """A configuration in float32, its model and the weights of it."""
    config = config_for(user_dir)
    config.model.update(dtype="float32", param_dtype="float32")
    config.update(changes)
    config = settings_of(config)
    model = open_model(config.model.path, config.model, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha)
    return config, model, loading.load_model(model.directory, dtype=jnp.float32)[1]


def test_scores_of_tokens_against_plain_arithmetic(user_dir):
    config, model, params = exact(user_dir)
    student = {"params": params}
    teacher = {"params": jax.tree.map(lambda x: x * 1.1, params)}
    rng = np.random.default_rng(0)
    rows = [
        [rng.integers(5, 500, size=n).astype(np.int32) for n in lengths]
        for lengths in ((3, 7, 5), (9, 4, 6), (2, 8, 4))
    ]
    empty = contract.Without(np.zeros((3, 0, 0), np.int32), np.zeros((3, 0, 0), bool), np.zeros((3, 0), np.float32))
    nothing = np.zeros((3, 0), np.int32)
    prompts = [x for prompts in rows[:2] for x in contexts.pad_left(prompts, 12, 0)]
    batch = rollout.Batch(np.arange(3), *prompts, nothing, nothing, nothing.astype(bool), empty)
    tokens, mask = contexts.pad_right(rows[2], 8, 0)
    samples = Samples(tokens, mask, np.zeros(tokens.shape, np.float32), np.zeros(3, bool))
    options, loss = rollout_options(config, model), dataclasses.replace(loss_options(config, model), temperature=1.3)
    networks = Networks(Network(model.decoder, student), Network(model.decoder, teacher))
    loss = dataclasses.replace(loss, emphasis=contract.Emphasis("gap", 0.5))
    found = score_tokens(networks, batch, samples, None, options, loss, batch_size=2)
    assert len(found) == 3
    for i, scores in enumerate(found):
        s, t = (
            plain_log_probs(model, variables, prompts[i], rows[2][i], 1.3)
            for variables, prompts in ((student, rows[0]), (teacher, rows[1]))
        )
        at = np.arange(len(rows[2][i])), rows[2][i]
        np.testing.assert_allclose(scores.student_log_prob, s[at], atol=2e-4)
        np.testing.assert_allclose(scores.teacher_log_prob, t[at], atol=2e-4)
        np.testing.assert_allclose(scores.divergence, (np.exp(t) * (t - s)).sum(-1), atol=2e-4)
        gap = 1 - np.exp(-np.abs(t[at] - s[at]))
        np.testing.assert_allclose(scores.weight, np.where(scores.completion_mask, 0.5 + 0.5 * gap, 0), atol=2e-4)
        assert scores.target is None
        for log_probs, top in ((s, scores.student_top), (t, scores.teacher_top)):
            check_top(log_probs, top)


def check_top(log_probs, top):
    ids, probabilities = top
    np.testing.assert_allclose(probabilities, np.sort(np.exp(log_probs))[:, : -TOP - 1 : -1], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(np.exp(log_probs), ids, axis=1), probabilities, atol=1e-4)


def better_of_two(teacher, student, at):
    """The logits [N, V] and the weights [N] of DOPD's rule, one token after the other."""
    logits, weights = [], []
    for i, token in zip(*at, strict=True):
        p, q = (np.exp(scipy.special.log_softmax(x[i] / 1.3))[token] for x in (teacher, student))
        far, confident = max(p, q) > 2 * min(p, q), p + q >= 1
        logits.append(teacher[i] if (far and p >= q) or (not far and confident) else student[i])
        weights.append(1.0 if far and p >= q else 0.6 if far or confident else 0.3)
    return np.stack(logits), np.asarray(weights)


@pytest.mark.parametrize("kind", ["purified", "better of two"])
def test_the_target_is_shown_next_to_the_teacher(kind, user_dir):
    """The last row has no further context: there the purified target is the teacher."""
    config, model, params = exact(user_dir)
    grown = lambda factor: {
        "params": jax.tree.map(lambda x: factor * x, params)
    }  # else random weights look at no context
    student, teacher = grown(2.0), grown(3.0)
    rng = np.random.default_rng(0)
    random_rows = lambda *lengths: [rng.integers(5, 400, size=n).astype(np.int32) for n in lengths]
    of_student, of_teacher, of_further, written = (
        random_rows(*lengths) for lengths in ((3, 7, 5), (9, 4, 6), (5, 6, 3), (4, 8, 6))
    )
    further, further_mask = (x[:, None] for x in contexts.pad_left(of_further, 12, 0))
    without = contract.Without(further, further_mask, np.asarray([[1.0], [1.0], [0.0]], np.float32))
    nothing = np.zeros((3, 0), np.int32)
    prompts = [x for rows in (of_student, of_teacher) for x in contexts.pad_left(rows, 12, 0)]
    batch = rollout.Batch(np.arange(3), *prompts, nothing, nothing, nothing.astype(bool), without)
    tokens, mask = contexts.pad_right(written, 8, 0)
    samples = Samples(tokens, mask, np.zeros(tokens.shape, np.float32), np.zeros(3, bool))
    changes = dict(guidance=0.7, target="purified") if kind == "purified" else {}
    loss = dataclasses.replace(loss_options(config, model), temperature=1.3, **changes)
    network = Network(model.decoder, teacher)
    networks = Networks(
        Network(model.decoder, student), network if changes else Better(network, Network(model.decoder, student))
    )
    found = score_tokens(networks, batch, samples, None, rollout_options(config, model), loss, batch_size=3)
    apart = []
    for i, scores in enumerate(found):
        at = np.arange(len(written[i])), written[i]
        logits = lambda variables, rows: plain_logits(model, variables, rows[i], written[i])  # noqa: B023
        own, weights = logits(teacher, of_teacher), np.ones(len(written[i]))
        if kind == "better of two":
            target, weights = better_of_two(own, logits(student, of_teacher), at)
        elif i < 2:
            target = logits(teacher, of_student) + 0.7 * (own - logits(teacher, of_further))
        else:
            target = own
        s, t, u = (scipy.special.log_softmax(x / 1.3, axis=-1) for x in (logits(student, of_student), own, target))
        np.testing.assert_allclose(scores.teacher_log_prob, t[at], atol=5e-4)
        np.testing.assert_allclose(scores.target.log_prob, u[at], atol=5e-4)
        apart.append((np.exp(u) * (u - t)).sum(-1))
        np.testing.assert_allclose(scores.target.divergence, apart[-1], atol=5e-4)
        np.testing.assert_allclose(scores.divergence, (np.exp(u) * (u - s)).sum(-1), atol=5e-4)
        np.testing.assert_allclose(scores.weight, weights, atol=1e-6)
        check_top(t, scores.teacher_top)
        check_top(u, scores.target.top)
    assert max(map(np.max, apart)) > 0.05 and (kind != "purified" or not apart[2].any())


def test_the_likeliest_of_several_chunks_and_a_rest():
    hidden, head = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((2, 7, 4), (4, 11)))
    ids, probabilities = tokens_module._likeliest(hidden, head, temperature=0.7, chunk_size=3)
    want = scipy.special.softmax(hidden @ head / 0.7, axis=-1)
    np.testing.assert_array_equal(ids, np.argsort(-want, axis=-1)[..., :TOP])
    np.testing.assert_allclose(np.take_along_axis(want, np.asarray(ids), axis=-1), probabilities, rtol=1e-5)


SETTINGS = {
    "guided, averaged": dict(
        teacher=dict(weights="ema", guidance=0.7),
        loss=dict(beta=0.5, skip_first=3, token_clip=0.02),
        train=dict(batch_size=3, microbatches=3),
    ),
    "guided by criteria, live": dict(
        teacher=dict(weights="live", guidance=0.5, guidance_by="criteria"), loss=dict(divergence="sampled_token")
    ),
    "reasons first": dict(teacher=dict(weights="fixed", reason_tokens=4), loss=dict(top_k=5)),
    "better of two": dict(teacher=dict(weights="fixed", better_of_two=True)),
}


SLOW = ("guided by criteria, live", "reasons first", "better of two")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SETTINGS])
def test_numbers_are_the_train_steps(name, user_dir, monkeypatch):
    """A report of a batch's completions shows what the step that trains on them computes."""
    monkeypatch.setattr(scored_completions, "_attribution", lambda *_: None)
    changes = SETTINGS[name] | {"sampling": dict(source="reference", max_new_tokens=64)}
    config, model, params = exact(user_dir, **changes)
    teacher = config.teacher.weights
    grown = lambda factor: jax.tree.map(lambda x: factor * x, params)  # else random weights look at no context
    optimizer = optax.set_to_zero()
    state = init_state(grown(4.0), optimizer, ema=False)
    state = state.replace(step=jnp.asarray(config.train.steps), ema=grown(3.0) if teacher == "ema" else None)
    frozen = {BASE: {"params": grown(2.0)}} if teacher == "fixed" else {}
    rows = sources.read_as(config.data.path, config.reading(require=()))[:3]
    data = encode_all(rows, model.tokenizer, config.encoding, config.limits)
    batch = make_batch([0, 1, 2], data, config, model.pad_id)
    recipe = recipe_of(config, model, optimizer)

    @jax.jit
    def run_step(state, frozen, batch):  # the second row has no teacher's context
        completions = step.draw(recipe, state, frozen, batch, np.uint32(config.seed))
        completions = completions._replace(taught=jnp.asarray([True, False, True]))
        return step.learn(recipe, state, frozen, completions)[1], completions.completion_mask

    metrics, completion_mask = run_step(state, frozen, batch)
    networks = recipe.roles.at(state, frozen)
    chosen = [(example, {"trained": (example.reference, False)}) for example in rows]
    shown = [one["trained"] for one in scored_completions.scored_by(model, {"trained": networks}, config, chosen)]
    counted = [np.asarray([x is not None for x in one["divergence"]]) for one in shown]
    assert [c.sum() for c in counted] == completion_mask.sum(axis=1).tolist()
    divergence = [np.asarray(one["divergence"], float)[keep] for one, keep in zip(shown, counted, strict=True)]
    np.testing.assert_allclose([divergence[0].sum(), 0.0, divergence[2].sum()], metrics["row_loss"], rtol=1e-3)
    mean = np.concatenate(divergence[::2]).mean()
    np.testing.assert_allclose(metrics["divergence"], mean, rtol=1e-3)
    weight = [np.asarray(one["weight"])[keep] for one, keep in zip(shown, counted, strict=True)]
    weighted = np.concatenate([w * d for w, d in zip(weight, divergence, strict=True)][::2])
    np.testing.assert_allclose(metrics["loss"], weighted.mean(), rtol=1e-3)
    target = "target_log_prob" if "target_log_prob" in shown[0] else "teacher_log_prob"
    assert (target == "target_log_prob") == bool(config.teacher.guidance or config.teacher.better_of_two)
    gaps = [np.subtract(x[target], x["student_log_prob"])[c] for x, c in zip(shown, counted, strict=True)]
    np.testing.assert_allclose(np.concatenate(gaps[::2]).mean(), metrics["teacher_advantage"], rtol=1e-3)
    # After its prompt alone, without what the case is about, the teacher says something else.
    ids = scored_completions._pieces(model, rows[0].reference, False)[0]
    teacher = networks.teacher.teacher if config.teacher.better_of_two else networks.teacher
    plain = plain_log_probs(model, teacher.variables, data.teacher[0], ids, 1.0)[np.arange(len(ids)), ids]
    assert np.abs(plain - shown[0][target]).max() > 0.05


@pytest.mark.parametrize(
    "weights, rank, int8, better",
    [
        ("ema", 0, False, False),
        ("ema", 2, True, False),
        ("live", 0, False, False),
        ("fixed", 2, False, False),
        ("fixed", 2, False, True),
        ("ema", 0, False, True),
    ],
)
def test_weights_of_both_roles_are_those_of_training(weights, rank, int8, better, user_dir, tmp_path):
    model, teacher = dict(quantization="int8" if int8 else "none"), dict(weights=weights, better_of_two=better)
    config, model, params = exact(user_dir, teacher=teacher, lora=dict(rank=rank), model=model)
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        setup = training_state.setup(model, params, config, mesh)
        frozen = quantization.on_mesh(model.decoder.config, params, mesh) if int8 else params
        first = training_state.first_state(model, jax.tree.map(jnp.copy, params), config, setup)
        moved = jax.tree.map(lambda x: x + 0.01, first.trained)
        state = first.replace(trained=moved, ema=None if first.ema is None else jax.tree.map(lambda x: x / 3, moved))
        plain = setup.recipe.roles.student.at(state, setup.frozen)
        export(plain.variables, model, config, tmp_path)
        kept = Checkpoints(tmp_path / "checkpoints", keep=1)
        kept.save(1, state, {})
        kept.close()
        found = scored_completions._networks(config, tmp_path, mesh)
    expected = setup.recipe.roles.at(state, {BASE: {"params": frozen}})
    jax.tree.map(np.testing.assert_array_equal, found[-1], expected)
    assert isinstance(found[-2].teacher, Better) == better
    for untrained in jax.tree.leaves(found[-2], is_leaf=lambda x: isinstance(x, Network)):
        jax.tree.map(np.testing.assert_array_equal, untrained.variables["params"], frozen)
        assert "lora" not in untrained.variables  # new adapters add nothing, and are left out

    assert scored_completions.has_weights(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert scored_completions.has_weights(config, tmp_path) == (weights != "ema")
    with pytest.raises(UserError, match="no ema .* can be read"):
        checkpoints.read_part(tmp_path / "checkpoints", {"ema": first.trained})


def test_the_attribution_of_a_teacher_that_reasons_keeps_its_analysis(user_dir):
    """Criterion k's row is what the log-probabilities after prompt, analysis and transition lose without it."""
    config, model, params = exact(user_dir, teacher=dict(reason_tokens=4))
    teacher = Network(model.decoder, {"params": jax.tree.map(lambda x: 3.0 * x, params)})
    example = sources.read_as(config.data.path, config.reading(require=()))[0]
    loss = loss_options(config, model)
    analysis, ids = np.asarray([7, 300, 41, model.eos_ids[0]], np.int32), np.asarray([9, 11, 250], np.int32)
    role, prompts = config.encoding.teacher, config.encoding.texts

    def log_probs(example):
        prompt, transition = contexts.encode_reason_first(model.tokenizer, example, role, prompts, config.task)
        whole = np.concatenate([prompt, analysis[:-1], transition])
        return plain_log_probs(model, teacher.variables, whole, ids, loss.temperature)[np.arange(3), ids], transition

    whole, transition = log_probs(example)
    matrix = scored_completions._attribution(model, teacher, example, ids, analysis, transition, loss, config)
    less = dataclasses.replace(example, rubric=Rubric(example.rubric.criteria[:1] + example.rubric.criteria[2:]))
    np.testing.assert_allclose(matrix[1], whole - log_probs(less)[0], atol=1e-3)
    assert np.abs(matrix[1]).max() > 0.01


def test_scores_that_were_kept_in_another_way_are_made_again(user_dir, tmp_path, monkeypatch):
    config = settings_of(config_for(user_dir))
    (tmp_path / "export").mkdir()
    one = sources.read_as(config.data.path, config.reading(require=()))[0]
    made = []
    monkeypatch.setattr(collect, "scored_completions", lambda *_: made.append(1) or [{}])
    ask = lambda: collect._scored(config, tmp_path, [("eval", one.id)], [one], [{}], None)
    (tmp_path / "report_tokens.json").write_text(json.dumps({"examples": [["eval", one.id]], "completions": []}))
    assert ask() == [{}] and ask() == [{}] and made == [1]


def test_pieces_are_the_text(user_dir):
    config = config_for(user_dir)
    model = open_model(config.model.path, config.model)
    for text in ("A plain one.", "ü–中文 🙂 two", " spaces  \n", "", "a\u0301 🏳️‍🌈"):
        ids, pieces = scored_completions._pieces(model, text, False)
        assert len(ids) == len(pieces) and pieces[-1] == scored_completions.END and "".join(pieces[:-1]) == text
        assert ids[-1] in model.eos_ids
        if text:
            assert "".join(scored_completions._pieces(model, text, True)[1]) == text


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
            assert "".join(one["tokens"]).rstrip(scored_completions.END) == one["text"]
            assert len(one["divergence"]) == len(one["student_top"]) == len(one["teacher_top"]) == count
            assert np.shape(one["attribution"]) == (4, count) and min(one["divergence"]) > -1e-5
            assert all(len(top) == TOP and all(0 <= p <= 1 for _, p in top) for top in one["teacher_top"])
    json.dumps(data, allow_nan=False)
    assert "jax" in data["versions"]


@pytest.mark.slow
def test_base_and_trained_are_scored_as_they_are(finished):
    """The teacher of a run with a fixed one is the base under the rubric; the trained student has moved away from it."""
    config, workdir, data = finished
    model = open_model(config.model.path, config.model)
    example = data["stages"][0]["examples"][0]
    text = next(c for c in example["completions"] if c["role"] == "base")
    params = loading.load_model(model.directory, dtype=jnp.float32)[1]
    asked = settings_of(config)
    said = asked.eval, asked.reading(), asked.encoding, asked.limits
    questions = evaluation_questions(*said, model.tokenizer)["base"]["eval"]
    prompt = questions.prompts[[e.id for e in questions.examples].index(example["id"])]

    def as_base(one):
        ids, _ = scored_completions._pieces(model, one["text"], one["cut"])
        log_probs = plain_log_probs(model, {"params": params}, prompt, ids, config.sampling.temperature)
        return log_probs[np.arange(len(ids)), ids]

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
    model = open_model(config.model.path, config.model)
    ids = model.tokenizer("of the density", add_special_tokens=False)["input_ids"]
    assert "".join(scored_completions._piece(model, i) for i in ids) == "of the density"
    assert scored_completions._piece(model, model.eos_ids[0]) == scored_completions.END
