"""Runs graded by a judge, at an endpoint or here, and models on benchmarks without training."""

import json
import re

import pytest
import rich.console

from configs import evaluate as evaluate_config
from rcsd_jax.checkpoints import loading
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.report import summary
from rcsd_jax.rubrics.schema import from_records
from rcsd_jax.run.environment import Run
from rcsd_jax.run.evaluate_model import evaluate_model
from rcsd_jax.run.judge import judges_of
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import check
from tests.evaluate.test_benchmarks import ROWS
from tests.judge_server import JudgeServer
from tests.run.test_stage import config_for, run
from tests.settings_for_tests import settings_of

KEY = "sk-very-secret-9876543210"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as server:
        server.misbehave = first_is_met
        yield server


def first_is_met(handler, prompt, nth):
    """Of every rubric the first criterion alone is met, and no fault is made."""
    asked = re.findall(r"^(\d+)\. \((met|fault)\) (\w+)", prompt, re.M)
    verdicts = [{"criterion": int(i), "reason": "so", name: title == "Formula"} for i, name, title in asked]
    return handler.say(json.dumps({"verdicts": verdicts}))


def judged(config, server):
    config.judge.update(model="wise", base_url=server.url, input_price=2.0, output_price=10.0)
    return config


def texts_below(folder):
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("per_call, calls", [pytest.param("criterion", 4, marks=pytest.mark.slow), ("rubric", 1)])
def test_a_run_is_evaluated_by_a_judge_and_asks_nothing_twice(user_dir, tmp_path, server, per_call, calls):
    config = judged(config_for(user_dir), server)
    config.judge.per_call = per_call
    config.judge.second_model = "other"
    config.eval.update(grader="judge", path=config.data.path, count=3, roles=("trained",), greedy=(True,))
    scores = run(config, tmp_path / "run")["evaluation"]["trained"]["eval"]["greedy"]
    assert scores["rubric_score"] == pytest.approx(10 / 26) and scores["judged"] == 1.0 and "ungraded" not in scores
    assert scores["second_score"] == scores["rubric_score"] and scores["agreement"]["kappa"] == 1.0
    texts = (tmp_path / "run" / "completions_trained.jsonl").read_text().splitlines()
    assert [[v["met"] for v in json.loads(line)["verdicts"]] for line in texts] == [[1.0, 0.0, 0.0, 0.0]] * 3
    asked = sum(server.asked.values())
    files = [tmp_path / "run" / name for name in ("verdicts.jsonl", "verdicts_second.jsonl")]
    assert asked == 2 * 3 * calls and [len(file.read_text().splitlines()) for file in files] == [3 * calls] * 2
    assert KEY not in texts_below(tmp_path)
    for name in ("summary.json", "evaluation_trained.json"):
        (tmp_path / "run" / name).unlink()
    assert run(config, tmp_path / "run")["evaluation"]["trained"]["eval"]["greedy"] == scores
    assert sum(server.asked.values()) == asked


def test_a_second_judge_is_asked_the_same_of_another_model(tmp_path, server):
    rubric = from_records(["Essential Criteria: Formula.", "Essential Criteria: Unit."], min_criteria=1)
    example = Example("1", "How much?", None, rubric, None, "rows:1")
    config = judged(keys.stage(), server)
    config.judge.update(second_model="other", per_call="rubric")
    config.eval.update(grader="judge", path="rows.jsonl")
    with StopRequest() as stop:
        environment = Run(settings_of(config), tmp_path, None, rich.console.Console(quiet=True), stop, "run")
        with judges_of(environment) as judges:
            (first,) = judges.first([example], ["3 N"], "met")
            server.misbehave = lambda handler, prompt, nth: handler.say("no")
            (second,) = judges.second([example], ["3 N"], "met")
    assert first.met == (True, False) and second.met == (None, None)
    first_body, *others = server.bodies
    assert first_body["model"] == "wise" and {body["model"] for body in others} == {"other"} and len(others) == 3
    assert others[0] == first_body | {"model": "other"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"judge.second_model": "wise"}, "judge.second_model.*is the first judge"),
        ({"judge.second_model": "other", "judge.second_checkpoint": "model"}, "judge.second_model.*at most one judge"),
        ({"judge.second_checkpoint": "model", "eval.grader": "boxed"}, "judge.second_checkpoint.*no judge evaluates"),
    ],
)
def test_a_second_judge_that_cannot_be_compared(server, changes, said):
    config = judged(keys.stage(), server)
    config.eval.update(grader="judge", path="rows.jsonl")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        settings_of(config)


@pytest.mark.slow
def test_rewards_come_from_the_judge_and_missing_verdicts_are_no_reward(user_dir, tmp_path, server):
    def silent_on_some(handler, prompt, nth):
        return (
            handler.send(400, {"error": {"message": "no"}})
            if "Formula" in prompt
            else first_is_met(handler, prompt, nth)
        )

    config = judged(config_for(user_dir, "grpo_rubric"), server)
    config.train.update(steps=2, batch_size=8)
    config.judge.per_call = "rubric"
    run(config, tmp_path / "good")
    row = json.loads((tmp_path / "good" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["graded_rubric_score"] == pytest.approx(10 / 26) and row["graded_judged"] == 1.0
    assert row["groups_alike"] == 1.0 and "share_graded" not in row

    server.misbehave = silent_on_some
    config.judge.per_call = "criterion"
    run(config, tmp_path / "some")
    row = json.loads((tmp_path / "some" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["graded_judged"] == 0.75 and row["graded_rubric_score"] == 0.0  # of what was judged nothing is met

    server.misbehave = lambda handler, prompt, nth: handler.say("I would rather not.")
    config.judge.update(per_call="rubric", reasks=1)
    run(config, tmp_path / "none")
    row = json.loads((tmp_path / "none" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["share_graded"] == 0.0 and row["graded_rubric_score"] == 0.0 and row["loss"] == 0.0


@pytest.mark.slow
def test_a_checkpoint_as_judge(user_dir, tmp_path):
    config = config_for(user_dir)
    config.judge.update(checkpoint=config.model.path, max_tokens=8, batch_size=4, reasks=0)
    config.eval.update(grader="judge", path=config.data.path, count=2, roles=("trained",), greedy=(True,))
    scores = run(config, tmp_path / "run")["evaluation"]["trained"]["eval"]["greedy"]
    # Random weights write no verdicts: what cannot be read is in no score.
    assert scores["rubric_score"] is None and scores["ungraded"] == 1.0 and scores["judged"] == 0.0
    assert len((tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()) == 8


def test_a_missing_key_is_found_before_weights_are_read(user_dir, tmp_path, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were read"))
    config = judged(config_for(user_dir, "grpo_rubric"), server)
    with pytest.raises(UserError, match="OPENAI_API_KEY.*is not set"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_a_model_on_benchmarks(user_dir, tmp_path, server, capsys):
    config = judged(evaluate_config.get_config("medmcqa,scibench,rar"), server)
    config.model.path = str(user_dir / "model")
    config.sampling.max_new_tokens = 8
    config.eval.update(batch_size=4, samples=3, greedy=(False, True), max_new_tokens=8)
    for name in ("medmcqa", "scibench", "rar"):
        rows = [ROWS[name] | {"id": f"{name}{i}"} for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config.eval.benchmarks[name] = str(tmp_path / f"{name}.jsonl")
    check(config, trains=False)

    def again():
        with StopRequest() as stop:
            return evaluate_model(config, tmp_path / "run", rich.console.Console(quiet=True), stop)

    found = again()
    assert found == again() and set(found) == {"base"} and set(found["base"]) == {"medmcqa", "scibench", "rar"}
    sampled = found["base"]["medmcqa"]["sampled"]
    assert sampled["samples"] == 3 and "pass@3" in sampled and sampled["parsed"] <= 1.0
    assert found["base"]["rar"]["greedy"]["judged"] == 1.0
    lines = (tmp_path / "run" / "completions_base.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 2 * (3 + 1)
    summary.print_evaluation(rich.console.Console(width=200), found)
    shown = capsys.readouterr().out
    assert "medmcqa (2)" in shown and "sampled, 3 each" in shown and "rubric score" in shown and "pass@3" in shown


def test_nothing_to_evaluate(user_dir, tmp_path):
    config = evaluate_config.get_config()
    config.model.path = str(user_dir / "model")
    config.eval.benchmarks.update(dict.fromkeys(config.eval.benchmarks))
    with pytest.raises(UserError, match="nothing to evaluate"), StopRequest() as stop:
        evaluate_model(config, tmp_path / "run", rich.console.Console(quiet=True), stop)
