"""starts.py: what a later start of a run may change, and that its effects happen."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs import stage2, tiny
from rcsd_jax.cli.job import with_workdir
from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import read_json, write_json
from rcsd_jax.host.metrics import read_metrics
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.run import evaluation, starts
from rcsd_jax.run.environment import Run
from rcsd_jax.settings import decides, keys
from rcsd_jax.settings.unpack import choices
from tests.chat_templates import tokenizer_with
from tests.run.test_stage import config_for, run
from tests.settings_for_tests import settings_of, value_of

LEAVES = [k for k in keys.all_keys(keys.stage()) if not isinstance(value_of(keys.stage(), k), ConfigDict)]
MODES = {"sampled": {"questions": 2}, "greedy": {"questions": 2}}
LABELS = ("base", "trained", "step_1")


@pytest.fixture
def config():
    config = stage2.get_config("ground_truth")
    config.model.path, config.data.path = "model", "rows.jsonl"
    config.eval.update(grader="boxed", path="held_out.jsonl", every=1)
    config.eval.benchmarks.update(piqa="", rar="")
    config.judge.model = "judge"
    config.train.steps = 4
    return config


def workdir_of(config, folder, *, steps=2, complete=False):
    """As a run leaves it that made so many steps, and evaluated every set before and after."""
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    (folder / "config.json").write_text(keys.to_json(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n}) + "\n" for n in range(steps)))
    for label in LABELS:
        write_json(folder / f"evaluation_{label}.json", {name: MODES for name in ("eval", "piqa", "rar")})
        records = [{"split": s, "mode": m, "text": f"{label} \u2028"} for s in ("eval", "piqa", "rar") for m in MODES]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / f"completions_{label}.jsonl").write_text("".join(lines))
    for name in ("summary.json", "report_tokens.json") if complete else ():
        write_json(folder / name, {})
    return folder


def set_key(config, key, value):
    section, _, name = key.rpartition(".")
    place = value_of(config, section) if section else config
    with place.ignore_type():
        place[name] = value


def another(value):
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else value + ("x",) if isinstance(value, tuple) else f"{value}x"


def held(folder, label):
    """(set, mode) of the scores, and of the texts."""
    scores = {
        (split, mode) for split, modes in read_json(folder / f"evaluation_{label}.json").items() for mode in modes
    }
    lines = [json.loads(x) for x in (folder / f"completions_{label}.jsonl").read_text().split("\n") if x]
    return scores, {(line["split"], line["mode"]) for line in lines}


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEAVES)
def test_it_is_said_of_every_key_what_hangs_on_it(key):
    listed = [k for keys in decides.DECIDES.values() for k in keys if key == k or key.startswith(f"{k}.")]
    assert len(listed) == 1, "put the key into settings.decides.DECIDES, under what hangs on it"


def test_the_table_names_no_other_keys_and_stands_for_sections_only_where_users_name_the_keys():
    named = [key for keys in decides.DECIDES.values() for key in keys]
    assert set(named) <= set(keys.all_keys(keys.stage())) and len(named) == len(set(named))
    sections = {key for key in named if isinstance(value_of(keys.stage(), key), ConfigDict)}
    of_teachers = {"teacher.paths", "teacher.of_sources"}
    assert sections == {"prompts", "eval.splits", "eval.benchmarks", "judge.extra"} | of_teachers


def test_what_decides_what_is_learnt_may_not_change(config, tmp_path):
    folder = workdir_of(config, tmp_path)
    before = (folder / "config.json").read_bytes()
    learnt = [key for key in LEAVES if decides.decides(key, config) == "learning"]
    assert {"loss.beta", "seed", "prompts.solve.request", "sampling.top_k"} <= set(learnt)
    for key in learnt:
        changed = config.copy_and_resolve_references()
        set_key(changed, key, another(value_of(config, key)))
        with pytest.raises(UserError, match="with another config") as error:
            starts.begin(folder, changed)
        assert key in str(error.value)
    assert (folder / "config.json").read_bytes() == before


def test_what_nothing_hangs_on_may_change_and_a_complete_run_stays_so(config, tmp_path):
    folder = workdir_of(config, tmp_path, steps=4, complete=True)
    for key in decides.DECIDES["nothing"]:
        set_key(config, key, another(value_of(config, key)))
    assert starts.begin(folder, config) == ()
    assert read_json(folder / "config.json") == json.loads(keys.to_json(config))
    assert (folder / "summary.json").exists() and held(folder, "trained")[0] == held(folder, "base")[0]


def test_a_judge_that_rewards_decides_what_is_learnt(config, tmp_path):
    config.reward.grader = "judge"
    folder = workdir_of(config, tmp_path)
    config.judge.concurrency = 1
    assert starts.begin(folder, config) == ()
    config.judge.reasks = 0
    with pytest.raises(UserError, match=r"judge\.reasks"):
        starts.begin(folder, config)


def test_a_folder_in_which_nothing_was_made_takes_any_config(config, tmp_path):
    starts.begin(tmp_path, config)
    (tmp_path / "rubrics.jsonl").write_text("")
    config.data.path = "spelt_right.jsonl"
    assert starts.begin(tmp_path, config) == ()
    assert read_json(tmp_path / "config.json")["data"]["path"] == "spelt_right.jsonl"


# -- length ------------------------------------------------------------------------------------------------------------


def test_a_longer_run_keeps_the_scores_of_the_step_that_was_its_last(config, tmp_path):
    folder = workdir_of(config, tmp_path, steps=4, complete=True)
    (folder / "unfinished_trained.jsonl").write_text("of the fourth step")
    before = (folder / "completions_trained.jsonl").read_bytes()
    config.train.steps = 8
    assert starts.begin(folder, config) == ("train.steps",)
    assert (folder / "summary.json").exists() and (folder / "evaluation_trained.json").exists()  # until it goes on
    assert starts.apply(folder, config) == "train.steps is 8 and was 4"
    gone = ("summary.json", "evaluation_trained.json", "unfinished_trained.jsonl", "report_tokens.json")
    assert not any((folder / name).exists() for name in gone)
    assert (folder / "completions_step_4.jsonl").read_bytes() == before and held(folder, "base")[0]
    assert starts.begin(folder, config) == () and not list(folder.glob("earlier_*"))


@pytest.mark.parametrize("schedule", sorted(set(choices()["optimizer.schedule"]) - {"constant"}))
def test_a_length_on_which_rates_hang_is_kept(config, tmp_path, schedule):
    config.optimizer.update(schedule=schedule, warmup_steps=1)
    folder = workdir_of(config, tmp_path)
    config.train.steps = 8
    with pytest.raises(UserError, match=rf"the 2 steps .*optimizer\.schedule={schedule}.* was 4; set it to 4"):
        starts.begin(folder, config)
    (folder / "checkpoints" / "2").rename(
        folder / "checkpoints" / "not_a_step"
    )  # before the first one everything is free
    assert starts.begin(folder, config) == ("train.steps",)


def test_rates_of_a_constant_schedule_do_not_hang_on_the_length():
    rates = {
        (schedule, steps): make_optimizer(learning_rate=1.0, schedule=schedule, warmup_steps=3, steps=steps)[1](
            np.arange(6)
        )
        for schedule in choices()["optimizer.schedule"]
        for steps in (6, 60)
    }
    same = {s for s, steps in rates if np.array_equal(rates[s, 6], rates[s, 60])}
    assert same == {"constant"}


def test_a_run_is_made_shorter_only_to_what_was_not_made_yet(config, tmp_path):
    folder = workdir_of(config, tmp_path)
    config.train.steps = 1
    with pytest.raises(UserError, match="2 steps were already made; set at least 2"):
        starts.begin(folder, config)
    config.train.steps = 2
    assert starts.begin(folder, config) == ("train.steps",)


def test_a_complete_run_without_checkpoints_is_not_trained_anew(config, tmp_path):
    folder = workdir_of(config, tmp_path, steps=4, complete=True)
    (folder / "checkpoints" / "4").rmdir()
    assert starts.begin(folder, config) == ()
    config.eval.count = 7
    with pytest.raises(UserError, match="checkpoints are gone"):
        starts.begin(folder, config)
    (folder / "metrics.jsonl").unlink()  # of `rcsd_jax.evaluate`, which trains nothing
    assert starts.begin(folder, config) == ("eval.count",)


# -- scores ------------------------------------------------------------------------------------------------------------

ALL = {(name, mode) for name in ("eval", "piqa", "rar") for mode in MODES}
STALE = {
    "eval.count": (7, ALL),
    "eval.max_new_tokens": (9, ALL),
    "eval.thinking": (False, ALL),
    "eval.grader": ("rubric", {x for x in ALL if x[0] == "eval"}),
    "eval.path": ("others.jsonl", {x for x in ALL if x[0] == "eval"}),
    "eval.benchmarks.piqa": ("piqa.jsonl", {x for x in ALL if x[0] == "piqa"}),
    "eval.benchmarks.medmcqa": ("", set()),
    "eval.splits": ({"more": "more.jsonl"}, set()),
    "eval.temperature": (0.5, {x for x in ALL if x[1] == "sampled"}),
    "eval.samples": (4, {x for x in ALL if x[1] == "sampled"}),
    "judge.model": ("another", {x for x in ALL if x[0] == "rar"}),
    "eval.greedy": ((True,), set()),
    "eval.roles": (("base",), set()),
    "export.merged": (False, set()),
}


@pytest.mark.parametrize("key", STALE)
def test_scores_made_otherwise_are_set_aside_and_made_again(config, tmp_path, key):
    folder = workdir_of(config, tmp_path, steps=4, complete=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    value, stale = STALE[key]
    set_key(config, key, ConfigDict(value) if isinstance(value, dict) else value)
    assert starts.begin(folder, config)
    starts.apply(folder, config)
    assert not (folder / "summary.json").exists()
    for label in LABELS:
        if stale == ALL:
            assert not list(folder.glob(f"*_{label}.json*"))
        else:
            assert held(folder, label) == (ALL - stale, ALL - stale)
        kept = {path.name for path in folder.glob(f"earlier_1/*_{label}.json*")}
        assert len(kept) == (2 if stale else 0)
        assert all((folder / "earlier_1" / name).read_bytes() == before[name] for name in kept)
    if stale:
        assert (folder / "earlier_1" / "config.json").read_bytes() == before["config.json"]


def test_a_start_that_is_killed_while_it_sets_aside_is_repeated(config, tmp_path, monkeypatch):
    folder = workdir_of(config, tmp_path, steps=4, complete=True)
    config.train.steps, config.eval.count = 8, 7
    changed = starts.begin(folder, config)
    with monkeypatch.context() as patch:
        patch.setattr(starts, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            starts.apply(folder, config)
    assert starts.begin(folder, config) == changed == ("eval.count", "train.steps")
    starts.apply(folder, config)
    assert starts.begin(folder, config) == () and not list(folder.glob("evaluation_*"))
    assert (folder / "earlier_1" / "evaluation_step_4.json").exists() and not (folder / "earlier_2").exists()


def test_sets_and_modes_that_are_there_are_not_evaluated_again(config, tmp_path, monkeypatch):
    workdir_of(config, tmp_path)
    graded, asked = {"questions": 3}, []

    def evaluate(examples, *_, samples, **__):
        asked.append((examples, samples))
        return graded, [{"text": "new"}]

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    config.eval.samples = 5
    run = Run(settings_of(config), tmp_path, None, rich.console.Console(quiet=True), None, "")
    model = SimpleNamespace(eos_ids=(1,), pad_id=0, decode=None, decoder=None, tokenizer=tokenizer_with("llama3"))
    questions = {name: Questions(name, [], np.zeros(0), "boxed") for name in ("piqa", "medmcqa")}
    found = evaluation.evaluate_role("base", questions, model, None, run)
    assert found == {"piqa": MODES, "medmcqa": {"sampled": graded, "greedy": graded}}
    assert asked == [("medmcqa", 5), ("medmcqa", 1)]
    assert held(tmp_path, "base") == (wanted := ALL | {("medmcqa", mode) for mode in MODES}, wanted)
    config.eval.greedy = (True,)
    run = run._replace(config=settings_of(config))
    assert evaluation.evaluate_role("base", {"rar": questions["piqa"]}, model, None, run) == {
        "rar": {"greedy": MODES["greedy"]}
    }
    assert len(asked) == 2 and held(tmp_path, "base") == (wanted, wanted)


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key, value", [("train.steps", 60), ("export.dtype", "bfloat16"), ("eval.count", 7)])
def test_a_stage_is_not_changed_under_a_later_one_that_read_it(tmp_path, key, value):
    stages = [(name, with_workdir(c, tmp_path)) for name, c in keys.stages_of(tiny.get_config())]
    for name, stage in stages:
        workdir_of(stage, tmp_path / name)
    starts.check_later_stages(stages, tmp_path)
    set_key(stages[0][1], key, value)
    if key == "eval.count":
        starts.check_later_stages(stages, tmp_path)
        return
    with pytest.raises(UserError, match=rf"{tmp_path}/stage2: .*stage1\.{key}.*delete it") as error:
        starts.check_later_stages(stages, tmp_path)
    assert error.value.value == value
    (tmp_path / "stage2").rename(tmp_path / "stage2_before")
    starts.check_later_stages(stages, tmp_path)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(user_dir, tmp_path_factory):
    """A run of four steps, and one of two that was complete and then was made as long, and given an evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    config = config_for(user_dir)
    config.train.update(batch_size=2, steps=4)
    run(config, folder / "at_once")
    config.train.steps = 2
    before = run(config, folder / "longer")
    config.train.steps = 4
    config.eval.update(grader="boxed", path=config.data.path, count=2, roles=("trained",), greedy=(True,))
    after = run(config, folder / "longer")
    return SimpleNamespace(folder=folder, config=config, before=before, after=after)


@pytest.mark.slow
def test_two_steps_and_then_four_are_four_bit_for_bit(runs):
    once, longer = (load_file(runs.folder / name / "export" / "model.safetensors") for name in ("at_once", "longer"))
    assert once.keys() == longer.keys()
    for name in once:
        assert once[name].dtype == np.float32 and once[name].tobytes() == longer[name].tobytes(), name
    rows = [read_metrics(runs.folder / name) for name in ("at_once", "longer")]
    assert [row["step"] for row in rows[1]] == [0, 1, 2, 3]
    for ours, theirs in zip(*rows, strict=True):
        assert {k: v for k, v in ours.items() if "second" not in k and k != "compilations"} == {
            k: v for k, v in theirs.items() if "second" not in k and k != "compilations"
        }


@pytest.mark.slow
def test_a_complete_run_that_is_given_an_evaluation_makes_it(runs, monkeypatch):
    assert not runs.before["evaluation"]
    assert runs.after["evaluation"]["trained"]["eval"]["greedy"]["questions"] == 2
    assert read_json(runs.folder / "longer" / "summary.json")["evaluation"] == runs.after["evaluation"]
    monkeypatch.setattr(starts, "apply", lambda *_: pytest.fail("the run was complete"))
    assert run(runs.config, runs.folder / "longer") == runs.after


@pytest.mark.slow
def test_a_mistake_in_what_is_new_leaves_a_complete_run_as_it_is(runs):
    before = (runs.folder / "at_once" / "summary.json").read_bytes()
    config = runs.config.copy_and_resolve_references()
    config.eval.path = "not/here.jsonl"
    with pytest.raises(UserError, match=r"not/here\.jsonl"):
        run(config, runs.folder / "at_once")
    assert (runs.folder / "at_once" / "summary.json").read_bytes() == before
