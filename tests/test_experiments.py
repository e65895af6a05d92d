"""Arms are configurations that can run, runs by several processes, and the statistics of tables against scipy."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console
import scipy.stats

from configs import world as world_config
from experiments import (
    arms,
    bases,
    cells,
    cost,
    curves,
    derived,
    divergences,
    diversity,
    english,
    family,
    larger_teacher,
    leakage,
    learning_rates,
    main_table,
    noise,
    rubrics,
    scale,
    staleness,
    statistics,
    tables,
    workers,
)  # fmt: skip
from experiments.world import make_base
from rcsd_jax import world
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.losses.emphasis import KINDS
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import check
from rcsd_jax.world import documents
from tests.small_tasks import nothing, work


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_arm_passes_the_checks(name, tmp_path):
    for quick in (False, True):
        check(arms.stage2(name, 3, tmp_path, quick=quick))
        writer = arms.ARMS[name].writer
        if not writer.startswith("base"):
            check(arms.stage1(writer, 3, tmp_path, quick=quick))


def test_arms_differ_and_tables_name_arms_that_exist(tmp_path):
    texts = [keys.to_json(arms.stage2(name, 0, tmp_path, quick=False)) for name in arms.ARMS]
    assert len(set(texts)) == len(texts)
    assert set(scale.ARMS) <= set(arms.ARMS) and {arm.size for arm in arms.ARMS.values()} == {"medium", *bases.SIZES}
    for table in (main_table, divergences, rubrics, curves):
        assert set(table.ARMS) <= set(arms.ARMS) and "rcsd" in table.ARMS
    assert cost.main_table is main_table and noise.arms is arms
    assert set(staleness.ARMS) <= set(arms.ARMS) and len(set(staleness.ARMS)) == 8 and staleness.FRESH == "rcsd_true"
    assert {*family.ARMS, *family.LEAKS.values(), *family.FLAWLESS.values()} <= set(arms.ARMS)
    assert {family.SELF, *family.QUICK, *family.LEAKS} <= set(family.ARMS) and set(family.FLAWLESS) < set(family.LEAKS)
    assert set(arms.EMPHASES) | {"alike", "credit"} == set(KINDS)
    assert set(larger_teacher.ARMS) <= set(arms.ARMS) and larger_teacher.SELF == "rcsd_true"
    assert {arms.flawed(m, x) for m in derived.METHODS for x in arms.FLAWED} <= set(arms.ARMS)
    assert set(main_table.ARMS) | set(curves.ARMS) == set(arms.CURVES)  # cost is of the former


def test_rows_of_published_methods_are_plain_forms_and_the_page_says_so():
    page = (Path(arms.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name, variant in (
        ("opsd", "reference"),
        ("sdft", "reference_ema"),
        ("sdpo", "success"),
        ("sdpo_feedback", "feedback"),
    ):
        assert arms.ARMS[name].variant == variant and re.search(rf"`(configs/world\.py:)?{variant}`", page)
        loss = world_config.get_config(variant).loss
        assert (loss.beta, loss.top_k, loss.importance_clip) == (0.0, None, None)
        assert f"{arms.ARMS[name].label}: {variant}" in tables.forms([name])
    assert world_config.get_config("opsd").loss.beta == world_config.get_config("sdpo").loss.beta == 0.5


def test_a_larger_teacher_is_the_large_base_and_what_it_sees_is_all_that_differs(tmp_path):
    self, with_rubric, without = (
        keys.flat(arms.stage2(name, 0, tmp_path, quick=False)) for name in larger_teacher.ARMS
    )
    differing = lambda one, other: (
        {key for key in one if one[key] != other[key]} - {"eval.roles", "eval.every", "eval.every_splits"}
    )
    assert differing(self, with_rubric) == {"teacher.path"} and differing(with_rubric, without) == {"teacher.fields"}
    assert with_rubric["teacher.path"] == str(bases.directory("large", tmp_path))
    assert without["teacher.fields"] == ["question"] and "teacher" in without["eval.roles"]


def test_arms_in_english_pass_the_checks_and_differ_only_in_their_method(tmp_path):
    made = {name: english.config(name, 0, tmp_path, tmp_path, quick=False) for name in english.ARMS}
    for config in made.values():
        check(config)
    assert len({keys.to_json(c) for c in made.values()}) == len(made)
    own, *others = (keys.flat(made[name]) for name in ("rcsd_true", *(set(made) - {"rcsd_true"})))
    differing = {key for other in others for key in own if own[key] != other[key]} - {"eval.roles"}
    sections = {key.partition(".")[0] for key in differing}
    assert sections <= {"method", "teacher", "reward", "policy", "loss", "sampling"}, differing
    assert {key for key in differing if key.startswith("sampling.")} == {"sampling.group", "sampling.source"}
    assert [name for name, c in made.items() if "base" in c.eval.roles] == ["rcsd_true"]
    assert english.config("rcsd_true", 1, tmp_path, tmp_path, quick=True).eval.roles == ("trained",)


def test_rows_in_english_have_the_means_of_their_seeds_and_differences():
    def cell(accuracy, *roles):
        sampled = {"accuracy": accuracy, "pass@4": 2 * accuracy, "rubric_score": 0.5, "leak": 0.0, "length": 40.0}
        metrics = [{"student_entropy": float(step)} for step in range(8)]
        at_step = {"step_4": {"in_distribution": {"sampled": {"accuracy": accuracy / 2}}}}
        done = {role: {"in_distribution": {"sampled": sampled}} for role in (*roles, "trained")}
        return cells.Cell(at_step | done, [], metrics, 0)

    runs = {
        "rcsd_true": [cell(0.25, "base", "teacher"), cell(0.35)],
        "grpo": [cell(0.125), cell(0.325)],
    }
    found = english.of_split("in_distribution", runs)
    assert list(found) == ["(base)", "(teacher)", "RCSD, true rubrics", "GRPO"]
    assert {score: round(e.mean, 9) for score, e in found["RCSD, true rubrics"].items()} == {
        "accuracy": 30.0, "pass@4": 60.0, "criterion score": 50.0, "leak": 0.0, "length": 40.0, "entropy": 4.5
    }  # fmt: skip
    assert found["GRPO"]["accuracy: difference"].mean == -7.5 and "entropy" not in found["(base)"]
    curve = english.over_steps(runs)["GRPO"]
    assert {step: round(e.mean, 9) for step, e in curve.items()} == {0: 25.0, 4: 11.25, 8: 22.5}
    assert "GRPO" in english.figure(english.over_steps(runs))


def test_results_in_english_come_from_files_and_no_finished_cell_runs_again(tmp_path, monkeypatch, capsys):
    ran = []

    def finished(task):
        accuracy = 0.25 + 0.25 * (task.config.seed - 300) + 0.125 * task.name.startswith("grpo")
        sampled = {"accuracy": accuracy, "pass@4": accuracy, "rubric_score": 0.5, "leak": 0.0, "length": 40.0}
        of_role = {split: {"sampled": sampled} for split in cells.SPLITS}
        step = {"step": 1, "student_entropy": 1 / 3, "completion_tokens": 7, "step_seconds": 2.0, "grad_norm": 1.0}
        scores = dict.fromkeys((*task.config.eval.roles, "step_8"), of_role)
        return cells.Cell(scores, [{"text": "x"}], [step], task.config.seed)

    def table(*flags):
        arguments = [
            "english",
            f"--workdir={tmp_path}/runs",
            f"--results={tmp_path}/kept",
            "--only=rcsd_true,grpo",
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        english.main()
        return json.loads((tmp_path / "runs/tables/english/table.json").read_text())["rows"]

    monkeypatch.setattr(cells, "run_task", lambda task, console, stop: ran.append(task.name))
    monkeypatch.setattr(cells, "read", finished)
    table("--seeds=1")
    assert ran == ["rcsd_true/seed0", "grpo/seed0"]
    (tmp_path / "kept/grpo_seed0.json").unlink()
    rows = table("--seeds=2")
    assert ran[2:] == ["grpo/seed0", "rcsd_true/seed1", "grpo/seed1"]
    assert rows == table("--seeds=2", "--model=elsewhere/smollm2") and len(ran) == 5
    assert rows["GRPO, out of distribution"]["accuracy: difference"]["mean"] == 12.5

    kept = json.loads((tmp_path / "kept/grpo_seed1.json").read_text())
    assert kept["metrics"] == [{"step": 1, "student_entropy": 0.333333, "completion_tokens": 7, "step_seconds": 2.0}]
    with pytest.raises(SystemExit) as stopped:
        table("--seeds=2", "--model=other")
    assert (
        stopped.value.code == 2
        and "rcsd_true_seed0.json: holds a run with other settings: model.path" in capsys.readouterr().err
    )


@pytest.mark.parametrize("method", derived.METHODS)
@pytest.mark.parametrize("share", arms.FLAWED)
def test_an_arm_has_the_share_of_flawed_references_that_it_names(method, share, tmp_path):
    name = arms.flawed(method, share)
    configs_of_run = [arms.stage2(name, 0, tmp_path, quick=False)]
    if method != "opsd":
        stage1 = arms.stage1(arms.ARMS[name].writer, 0, tmp_path, quick=False)
        configs_of_run.append(stage1)
        assert (stage1.data.path, stage1.method) == (
            ("stage1:derived", "sft") if method == "rcsd_derived" else ("stage1", "self_distillation")
        )
    assert {documents.FLAWED if c.data.flawed is None else c.data.flawed for c in configs_of_run} == {share}


@pytest.mark.parametrize("name", main_table.ARMS)
def test_the_rate_of_an_arm_lies_between_others_that_are_tried(name, tmp_path):
    chosen, tried = arms.stage2(name, 0, tmp_path, quick=False).optimizer.learning_rate, arms.rates(name)
    assert chosen in tried and min(tried) < chosen < max(tried) and list(tried) == sorted(set(tried))


def test_rcsd_s_rate_is_tried_with_rubrics_of_its_own_stage_1(tmp_path):
    writers, tasks = learning_rates.tasks_of(("rcsd", "rcsd_ema", "sft"), None, tmp_path)
    assert [(task.name, task.config.task) for task in writers] == [("stage1/seed90", "write_rubric")]
    assert [rate for name, rate in tasks if name == "sft"] == ["5e-05", "0.00015", "0.00045", "0.00135"]
    config = tasks["rcsd", "0.00015"].config
    assert config.rubric.writer == str(writers[0].place / "export") and config.optimizer.learning_rate == 1.5e-4
    assert tasks["rcsd_ema", "0.00015"].config.rubric.source == "data"
    _, given = learning_rates.tasks_of(("sft",), [1e-5], tmp_path)
    assert list(given) == [("sft", "1e-05")]
    for task in (*writers, *tasks.values()):
        check(task.config)


def test_tokens_before_a_run_are_those_of_stage_1_and_of_the_texts_that_its_writer_wrote(tmp_path):
    config = arms.stage2("rcsd", 0, tmp_path, quick=False)
    stage1, place = Path(config.rubric.writer).parent, tmp_path / "rcsd" / "seed0"
    for folder in (stage1, place):
        folder.mkdir(parents=True)
    texts = ['[" Important Criteria: box answer "," Optional Criteria: check units "]', "answer 1 2", "check " * 200]
    (place / "rubrics.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    of_texts = (
        (1 + 4 + 1 + 4 + 1 + 1) + (3 + 1) + config.rubric.max_new_tokens
    )  # marks and words, and an end where it was not cut
    assert cells.tokens_before(config, place) == of_texts  # an untrained writer has no Stage I
    (stage1 / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "completion_tokens": 100 + i}) + "\n" for i in range(3))
    )
    assert cells.tokens_before(config, place) == 303 + of_texts
    assert cells.tokens_before(arms.stage2("rcsd_true", 0, tmp_path, quick=False), place) == 0


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("batches", arms.ROLLOUTS)
def test_an_arm_has_the_rollouts_that_it_names(batches, weighted, tmp_path):
    config = arms.stage2(arms.stale(batches, weighted=weighted), 0, tmp_path, quick=False)
    assert (config.train.batches_per_rollout, config.train.passes_per_rollout) == (batches, 1)
    assert config.loss.importance_clip == (2.0 if weighted else None) and config.teacher.fields == (
        "question",
        "rubric",
    )


def test_a_number_that_only_the_flawed_reference_holds_is_found_where_it_is_used(tmp_path):
    assert leakage.numbers("so 5 * 1 1 = 5 5 ; answer \\boxed{ 1 1 0 g }") == {5, 11, 55, 110}
    config = arms.stage2(arms.leaking("opsd"), 0, tmp_path, quick=False)
    assert config.data.flawed == 1.0 and dict(config.eval.splits)["trained_on"] == config.data.path
    examples = world.examples("stage2", 30, seed=config.seed, flawed=1.0)
    telling = [e for e in examples if leakage.only_there(e)]
    assert len(telling) > 5 and not any(
        leakage.only_there(e) for e in world.examples("stage2", 30, seed=config.seed, flawed=0.0)
    )
    told = {e.id for e in telling[:2]}
    text = lambda e: e.reference if e.id in told else world.documents.careful_solution(e.extra["problem"])
    records = [dict(split="trained_on", mode="sampled", id=e.id, text=text(e)) for e in examples]
    cell = cells.Cell({}, records, [], config.seed)
    assert leakage.share(cell, "trained on", flawed=1.0) == pytest.approx(100 * 2 / len(telling))


def test_arms_of_a_leak_see_flawed_references_or_none(tmp_path):
    for name, leaking in family.LEAKS.items():
        one, other = (keys.flat(arms.stage2(n, 0, tmp_path, quick=False)) for n in (name, leaking))
        differing = {key for key in one if one[key] != other[key]} - {"eval.every", "eval.every_splits", "eval.roles"}
        assert differing == {"data.flawed"}
        assert ("reference" in one["teacher.fields"]) == (name in arms.SHOWN_REFERENCES)
        if name in family.FLAWLESS:
            flawless = arms.stage2(family.FLAWLESS[name], 0, tmp_path, quick=False)
            assert (flawless.data.flawed, other["data.flawed"]) == (0.0, 1.0)


def test_different_right_texts_are_counted_by_question():
    right = dict(accuracy=1.0, id="a")
    records = [
        right | dict(text="x  y"),
        right | dict(text="x y "),
        right | dict(text="z"),
        right | dict(text="w", accuracy=0.0),
    ]
    assert diversity.different_right_texts(records) == 2.0
    assert diversity.different_right_texts([*records, dict(id="b", text="v", accuracy=0.0)]) == 1.0


def test_the_evaluation_for_diversity_asks_the_trained_student_and_passes_the_checks(tmp_path):
    run = cells.task("rcsd_true", 0, tmp_path, quick=False)
    asked = diversity.task(run, quick=False)
    check(asked.config, trains=False)
    assert asked.config.model.path == str(run.place / "export") and asked.place.parent == run.place
    assert (asked.config.eval.count, asked.config.eval.samples, asked.config.eval.roles) == (64, 16, ("base",))
    assert dict(asked.config.eval.splits) == {"in_distribution": "eval"} and not asked.config.eval.every
    assert dict(run.config.eval.splits) != dict(asked.config.eval.splits)  # the run's own stays as it is


def test_metrics_over_steps_are_means_of_a_few_steps():
    found = family.over_steps({"opsd": [cells.Cell({}, [], [{"x": float(i)} for i in range(12)], 0)]}, "x")
    steps, values = found["OPSD"]
    assert steps.tolist() == [5, 10] and values.tolist() == [[2.0, 7.0]]


def test_all_methods_have_the_same_budget(tmp_path):
    made = [arms.stage2(name, 0, tmp_path, quick=False) for name in arms.ARMS]
    assert len({(c.train.steps, c.train.batch_size, c.sampling.max_new_tokens, c.eval.count) for c in made}) == 1


@pytest.mark.slow
def test_a_shortened_table_makes_the_base_of_another_size(tmp_path):
    for _ in range(2):  # the second time it is there
        bases.ensure(arms.ARMS["rcsd_small"], tmp_path, quick=True)
    config = read_config(bases.directory("small", tmp_path), dtype="float32")
    assert (config.hidden_size, config.num_layers) == (72, 3)


@pytest.mark.parametrize("steps", (1, 12, 1600))
def test_a_base_may_be_made_in_few_steps(steps):
    optimizer = make_base.make_optimizer(learning_rate=1e-3, steps=steps)
    params = {"w": np.ones(3, np.float32)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert np.isfinite(updates["w"]).all()


def test_unknown_variants_of_the_world_are_named():
    with pytest.raises(ValueError, match="grpo_rubric"):
        world_config.get_config("nothing")


def test_intervals_are_student_s():
    values = np.array([1.0, 4.0, 2.5, 3.0, 7.0])
    found = statistics.estimate(values)
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    np.testing.assert_allclose([found.mean - found.half_width, found.mean + found.half_width], [low, high])
    assert np.isnan(statistics.estimate([2.0]).half_width) and str(statistics.estimate([2.0])) == "2.0"


def test_paired_differences_do_not_see_what_seeds_have_in_common():
    common = np.array([10.0, 50.0, 90.0])
    found = statistics.paired(common + [1.0, 2.0, 3.0], common)
    assert found.mean == 2.0 and found.half_width < 3


def test_order_is_told_pair_by_pair():
    agree, differ = statistics.same_order({"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 9.0, "b": 8.0, "c": 7.0, "d": 1.0})
    assert agree == ["a over b (+2.0)", "a over c (+1.0)"] and differ == ["b over c (-1.0)"]
    assert statistics.same_order({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}) == ([], [])


def test_workers_share_the_cores_and_tell_what_went_wrong(tmp_path, capfd):
    def run(*names):
        tasks = [workers.Task(keys.stage(), tmp_path / name, name) for name in names]
        with StopRequest() as stop:
            workers.run_all(tasks, work, nothing, count=2, console=rich.console.Console(stderr=True), stop=stop)

    run("one", "two", "three")
    half = [max(len(workers.usable_cores()[i::2]), 1) for i in range(2)]
    assert all(int((tmp_path / name).read_text()) in half for name in ("one", "two", "three"))
    assert "3 of 3" in capfd.readouterr().err
    with pytest.raises(UserError, match="bad.*it is bad; do better"):
        run("bad")
    with pytest.raises(UserError, match="ended with status 7"):
        run("killed")


@pytest.mark.slow
def test_the_program_ends_although_tasks_are_left(tmp_path):
    """More of them than a pipe holds."""
    script = f"""
import pathlib, rich.console
from experiments import workers
from rcsd_jax.settings import keys
from rcsd_jax.host.preemption import StopRequest
from tests.small_tasks import nothing, work
if __name__ == "__main__":
    tasks = [workers.Task(keys.stage(), pathlib.Path({str(tmp_path)!r}) / "one", name) for name in ["bad"] + ["slow"] * 100]
    with StopRequest() as stop:
        workers.run_all(tasks, work, nothing, count=2, console=rich.console.Console(), stop=stop)
"""
    (tmp_path / "script.py").write_text(script)
    root = Path(arms.__file__).parents[1]
    path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300, env=os.environ | path
    )
    assert ended.returncode == 1 and "it is bad" in ended.stderr


MODULES = sorted(p for p in Path(arms.__file__).parent.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_every_experiment_can_be_imported(path):
    root = Path(arms.__file__).parents[1]
    assert importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts)).__doc__


@pytest.mark.slow
def test_the_benchmarks_step_trains():
    from experiments.bench import setting

    step = setting.random_step(setting.Sizes(batch=2, prompt=8, teacher_prompt=16, completion=8))
    before = float(step.whole()["loss"])
    assert np.isfinite([before, float(step.train()["loss"])]).all()
