"""Chains of steps: problems against arithmetic, disjoint splits, what is read from known solutions, graders, habits, tokenizer, rows, configs."""

import argparse
import json
import random
import re

import numpy as np
import pytest

from configs import chains as chains_config
from configs import stage2
from experiments import cells, tables
from experiments import chains as experiment
from experiments.workers import Task
from experiments.world.make_base import WORLDS, batches
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data import sources
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles.contexts import Role, encode_role, user_message
from rcsd_jax.rubrics import sources as rubric_sources
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.schema import to_json
from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import check
from rcsd_jax.world.chains import criteria, documents, problems, reading, rows
from rcsd_jax.world.chains.documents import Work
from rcsd_jax.world.chains.problems import Problem, Step
from rcsd_jax.world.chains.vocabulary import vocabulary
from rcsd_jax.world.prompts import PROMPTS
from rcsd_jax.world.tokenizer import save_tokenizer

BY_HAND = Problem(7, (Step("take", 4), Step("times", 5), Step("from", 2), Step("add", 9), Step("twice", 3)), 2)


def _problems(split, count=300, seed=0):
    return [problems.generate(split, seed, i) for i in range(count)]


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory, vocabulary())
    return load_tokenizer(directory)


# --- problems ----------------------------------------------------------------------------------------------------


def test_a_worked_problem_by_hand():
    assert problems.question(BY_HAND) == "start 7 c take 4 d times 5 e from 2 f add 9 g twice 3 end ?"
    assert BY_HAND.values == (7, 3, 4, 9, 7, 2)
    assert documents.careful_solution(BY_HAND) == (
        "c 7 take 4 = 3 ; d 3 times 5 = 4 ; check 3 times 5 = 4 ok ; e 4 from 2 = 9 ; check 4 from 2 = 9 ok ; f 9 add 9 = 7 ; "
        "g 7 twice 3 = 2 ; check 7 twice 3 = 2 ok ; answer \\boxed{ 2 }"
    )
    assert criteria.true_rubric(BY_HAND) == (
        "Essential Criteria: multiply at times",
        "Important Criteria: check every times",
        "Essential Criteria: number minus value at from",
        "Important Criteria: check every from",
        "Essential Criteria: add two numbers at twice",
        "Important Criteria: check every twice",
        "Important Criteria: box answer",
    )


def test_every_step_is_a_bijection_and_slips_are_other_values_nearly_always():
    for kind in problems.KINDS:
        slips = 0
        for number in problems.NUMBERS:
            step = Step(kind, number)
            results = [step.result(value) for value in range(problems.MODULUS)]
            assert sorted(results) == list(range(problems.MODULUS))
            slips += sum(step.slip(value) != results[value] for value in range(problems.MODULUS))
        assert slips >= 0.9 * problems.MODULUS * len(problems.NUMBERS)


def test_lengths_and_kinds_are_those_of_the_split():
    for split, (fewest, most) in problems.LENGTHS.items():
        found = _problems(split)
        assert {len(p.steps) for p in found} == set(range(fewest, most + 1))
        assert {step.kind for p in found for step in p.steps} == set(problems.KINDS)
        assert all(sum(step.kind in problems.HARD for step in p.steps) == len(p.steps) // 2 for p in found)
    assert {label for p in _problems("train") for label in p.labels} == set(problems.LABELS)


def test_evaluation_has_pairs_of_steps_that_training_lacks_and_training_has_their_steps():
    pairs = {split: [set(problems.pairs(p)) for p in _problems(split, 1000)] for split in problems.SPLITS}
    trained = set.union(*pairs["train"])
    for split in ("eval", "ood"):
        unseen = [one - trained for one in pairs[split]]
        assert all(any(problems.held_out(*pair) for pair in some) for some in unseen)
    assert not any(problems.held_out(*pair) for pair in trained)
    assert {step for pair in trained for step in pair} == {Step(k, n) for k in problems.KINDS for n in problems.NUMBERS}


def test_generation_is_deterministic_and_indexed():
    assert _problems("eval", 20) == _problems("eval", 20) != _problems("eval", 20, seed=1)
    assert documents.document(0, 5) == documents.document(0, 5) != documents.document(1, 5)
    assert rows.examples("train", 10) == rows.examples("train", 20)[:10]
    with pytest.raises(ValueError, match="unknown split"):
        problems.generate("stage2", 0, 0)


# --- reading -----------------------------------------------------------------------------------------------------


def _slips(problem):
    """The steps at which a first wrong turn gives another value."""
    values = problem.values
    return [i for i, step in enumerate(problem.steps) if step.slip(values[i]) != step.result(values[i])]


@pytest.mark.parametrize("checks, overlooks", [(False, False), (True, False), (True, True)])
def test_a_known_wrong_turn_is_found_where_it_is(checks, overlooks):
    for p in _problems("eval", 60):
        for i in _slips(p):
            work = [Work()] * len(p.steps)
            work[i] = Work(wrong=True, checks=checks, overlooks=overlooks)
            text = documents.write_solution(p, work)
            steps = reading.read(p, text)
            repaired = checks and not overlooks
            assert [step.wrong for step in steps] == [j == i for j in range(len(p.steps))], text
            assert (reading.wrong_turns(steps), reading.checks(steps)) == (1, int(checks))
            assert reading.repairs(steps) == int(repaired) and reading.unrepaired(steps) != repaired
            assert ("wait" in text) == repaired
            assert reading.correct(p, text) == reading.sound(p, text) == repaired and not reading.unfounded(p, text)


def test_many_wrong_turns_are_counted_one_by_one():
    rng = random.Random(0)
    seen = set()
    for p in _problems("ood", 200):
        work = [Work(*(rng.random() < 0.4 for _ in range(3))) for _ in p.steps]
        text, value, wrong, repaired = documents.write_solution(p, work), p.start, 0, 0
        for step, one in zip(p.steps, work, strict=True):
            right = step.result(value)
            value = step.slip(value) if one.wrong else right
            wrong += value != right
            if one.checks and not one.overlooks:
                repaired += value != right
                value = right
        steps = reading.read(p, text)
        assert (len(steps), reading.wrong_turns(steps), reading.repairs(steps)) == (len(p.steps), wrong, repaired), text
        assert reading.checks(steps) == sum(one.checks for one in work) and reading.answer(text) == value
        seen.add((wrong > repaired, value == p.result))
    assert {(True, False), (True, True)} <= seen  # some cancel each other


def test_other_faults_are_read_as_what_they_are():
    short = documents.short_solution(BY_HAND)
    read = lambda text: reading.read(BY_HAND, text)
    jump = short.replace("e 4 from 2 = 9", "e 5 from 2 = 8").replace("f 9 add 9 = 7", "f 8 add 9 = 6")
    assert [step.jumps for step in read(jump)] == [False, False, True, False, True] and not reading.wrong_turns(
        read(jump)
    )
    assert not reading.sound(BY_HAND, jump) and reading.unfounded(BY_HAND, jump)
    missing = short.replace("d 3 times 5 = 4 ; ", "")
    assert len(read(missing)) == 4 and reading.unfounded(BY_HAND, missing)
    other = short.replace("d 3 times 5 = 4", "d 3 add 5 = 8")
    assert [step.wrong for step in read(other)] == [False, True, False, False, False]
    unknown = short.replace("f 9", "s 9")
    assert [step.wrong for step in read(unknown)] == [False, False, False, True, False]
    spoilt = short.replace("c 7 take 4 = 3 ;", "c 7 take 4 = 3 ; check 7 take 4 = 2 wait ;")
    assert (read(spoilt)[0].wrong, read(spoilt)[0].repaired) == (True, False)
    astray = short.replace("c 7 take 4 = 3 ;", "c 7 take 4 = 3 ; check 8 take 4 = 4 wait ;")
    assert (read(astray)[0].wrong, read(astray)[0].repaired, read(astray)[1].jumps) == (True, False, True)
    again = short.replace("c 7 take 4 = 3 ;", "c 7 take 4 = 0 ; c 7 take 4 = 3 ;")
    assert (read(again)[0].repaired, len(read(again)), reading.sound(BY_HAND, again)) == (True, 5, True)
    twice = short.replace("d 3", "check 7 take 4 = 3 ok ; check 7 take 4 = 3 ok ; d 3")
    assert (read(twice)[0].checks, reading.checks(read(twice))) == (2, 2)
    for text in ("", "check 1 add 2 = 3 ok", "; ; =", "c take = ;", "answer \\boxed{ }", "\\boxed{ 2", "c 7 take 4 ="):
        assert not read(text) and reading.answer(text) is None and not reading.sound(BY_HAND, text)
    assert (
        reading.answer(r"\boxed{ 3 } \boxed{ 1 2 } \boxed{ x }") is None
        and reading.answer(r"\boxed{3} \boxed{ 10 }") == 10
    )


def test_references_end_right_and_a_flawed_one_goes_on_from_its_wrong_step():
    for thorough in (False, True):
        flawed = 0
        for e in rows.examples("train", 250, kind=rows.THOROUGH if thorough else ""):
            p, steps = e.extra["problem"], reading.read(e.extra["problem"], e.reference)
            assert reading.correct(p, e.reference) and len(steps) == len(p.steps)
            assert reading.unfounded(p, e.reference) == reading.unrepaired(steps)
            assert sum(step.wrong and not step.repaired for step in steps) <= 1
            assert not any(step.jumps for step in steps) and (reading.checks(steps) > 0) == thorough
            flawed += reading.unrepaired(steps)
        assert flawed / 250 == pytest.approx(documents.FLAWED, abs=0.08)
    assert not any(reading.unfounded(e.extra["problem"], e.reference) for e in rows.examples("train", 50, flawed=0.0))
    assert all(reading.unfounded(e.extra["problem"], e.reference) for e in rows.examples("train", 50, flawed=1.0))


# --- criteria ----------------------------------------------------------------------------------------------------


def test_graders_accept_careful_solutions_and_catch_every_single_lapse():
    caught = set()
    for e in rows.examples("ood", 60):
        p = e.extra["problem"]
        text = documents.careful_solution(p)
        whole = GRADERS["chains"].grade(e, text)
        assert whole == dict(accuracy=1.0, rubric_score=1.0, sound=1.0, unfounded=0.0, parsed=1.0)
        assert GRADERS["chains"].feedback(e, text) is None
        careful = [Work(checks=step.kind in problems.HARD) for step in p.steps]
        for i in _slips(p):
            kind = p.steps[i].kind
            if kind in problems.HARD:
                for aspect, lapse in ((criteria.RULE, Work(True, True, True)), (criteria.CHECK, Work())):
                    work = [*careful[:i], lapse, *careful[i + 1 :]]
                    failed = [k for k, met in criteria.met(p, documents.write_solution(p, work)).items() if not met]
                    assert failed == [criteria.description(criteria.Item(aspect, kind))]
                    caught.add((aspect, kind))
        bare = documents.write_solution(p, careful, box=False)
        assert json.loads(GRADERS["chains"].feedback(e, bare)) == ["Important Criteria: box answer"]
        assert GRADERS["chains"].criteria(e, bare) == [True] * (len(e.rubric) - 1) + [False]
        assert not GRADERS["chains"].grade(e, bare)["accuracy"] and not any(GRADERS["chains"].grade(e, "").values())
    assert caught == {(aspect, kind) for aspect in (criteria.RULE, criteria.CHECK) for kind in problems.HARD}


def test_a_repaired_wrong_turn_keeps_the_rule():
    work = [Work(), Work(wrong=True, checks=True), *[Work(checks=True)] * 3]
    assert all(criteria.met(BY_HAND, documents.write_solution(BY_HAND, work)).values())


def test_a_majority_is_of_what_stands_in_the_box():
    answer = GRADERS["chains_majority"].answer
    assert answer("answer \\boxed{ 10 }") == "10" and answer("answer 10") is None
    assert GRADERS["chains_majority"].grade is None and GRADERS["chains_majority"].source == "chains"


# --- documents ---------------------------------------------------------------------------------------------------


def _imitated(split, habits, *, greedy):
    """Accuracy, and the mean of wrong turns and checks, of an author with these habits: what a perfect imitator would score."""
    rng = random.Random(0)
    right, wrong, checks = [], [], []
    for p in _problems(split, 250):
        author = habits(p)
        if greedy:
            text = documents.write_solution(
                p, [Work(author.right[s] < 0.5, author.check[s.kind] > 0.5) for s in p.steps]
            )
        else:
            text = documents.solution_by_chance(p, rng, author)
        steps = reading.read(p, text)
        right.append(reading.correct(p, text))
        wrong.append(reading.wrong_turns(steps))
        checks.append(reading.checks(steps))
    return np.mean(right), np.mean(wrong), np.mean(checks)


def test_habits_leave_the_author_careless_and_a_rubric_makes_him_careful():
    plain = lambda p: documents.HABITS
    guided = lambda p: documents.under(criteria.true_rubric(p))
    for split, floor in (("eval", 0.35), ("ood", 0.25)):
        for greedy in (False, True):
            accuracy, wrong, checks = _imitated(split, plain, greedy=greedy)
            aided, fewer, more = _imitated(split, guided, greedy=greedy)
            assert floor < accuracy < 0.55 and 1 < wrong < 2.2 and checks > 1
            assert aided > accuracy + 0.4 and fewer < 0.4 and more > 2 * checks
    general = _imitated("eval", lambda p: documents.under(criteria.GENERIC), greedy=False)[0]
    assert 0.6 < general < 0.85


def test_a_criterion_changes_what_it_is_about_and_the_rest_falls_below_habit():
    shown = documents.under(("Important Criteria: check every from",))
    assert shown.check["from"] == documents.FOLLOW and shown.check["times"] < documents.HABITS.check["times"]
    hard, easy = Step("from", 4), Step("add", 4)
    assert shown.right[hard] < documents.HABITS.right[hard] and shown.right[easy] == documents.HABITS.right[easy]


def test_documents_of_the_base_copy_references_and_follow_rubrics():
    found = [documents.document(0, i) for i in range(900)]
    copied = [
        d.message.split("\nreference :\n")[1].split("\n")[0] == d.completion
        for d in found
        if "reference" in d.message and "rubric" not in d.message
    ]
    assert len(copied) > 90 and np.mean(copied) > 0.9
    short = [" check " not in d.completion for d in found if "reference" in d.message and "rubric" not in d.message]
    assert 0.55 < np.mean(short) < 0.8
    rubrics = [d.message.split("\nrubric :\n")[1].split("\n")[0] for d in found if "rubric" in d.message]
    assert {parse(text, min_criteria=1).status for text in rubrics} == {"strict"}
    assert json.dumps(list(criteria.GENERIC)) in rubrics


# --- tokenizer, rows, prompts ------------------------------------------------------------------------------------


def test_tokenizer_knows_every_word_and_longest_texts_fit(saved_tokenizer):
    assert len(saved_tokenizer) == len(set(vocabulary())) < 120
    longest = 0
    for split in problems.SPLITS:
        for kind in ("", ":thorough"):
            for e in sources.read(split + kind, source="chains", count=40, seed=1):
                for fields, limit in (
                    (("question",), rows.QUESTION_TOKENS),
                    (("question", "reference", "rubric"), rows.TEACHER_TOKENS),
                ):
                    ids = encode_role(saved_tokenizer, e, Role(fields), PROMPTS, "solve")
                    assert saved_tokenizer.unk_token_id not in ids and len(ids) <= limit
                careful = saved_tokenizer(documents.careful_solution(e.extra["problem"]))["input_ids"]
                assert saved_tokenizer.unk_token_id not in careful
                longest = max(longest, len(careful) + 1, len(saved_tokenizer(e.reference)["input_ids"]) + 1)
    assert 170 < longest <= 181 < rows.SOLUTION_TOKENS and rows.TEACHER_TOKENS + rows.SOLUTION_TOKENS <= 512
    assert (
        saved_tokenizer.unk_token_id
        not in saved_tokenizer(to_json(rows.generic_rubric(), style="strings"))["input_ids"]
    )


def test_documents_fit_a_row_of_the_base_and_are_told_as_the_roles_are(saved_tokenizer):
    few = WORLDS["chains"]._replace(rows=2)
    batch, count = next(batches(saved_tokenizer, few, seed=0))
    assert batch.tokens.shape == (2, 336) and saved_tokenizer.unk_token_id not in batch.tokens
    assert 3 <= batch.segment_ids.max(axis=1).sum() <= count
    e = rows.examples("train", 1)[0]
    shown = {"reference": e.reference, "rubric": to_json(e.rubric, style="strings")}
    composed = user_message(e, Role(("question", "reference", "rubric")), PROMPTS, "solve")
    assert composed == documents.message("solve", e.question, **shown)


def test_rows_have_all_fields_and_places_name_their_kind():
    short, thorough = (sources.read(place, source="chains", count=80) for place in ("eval", "eval:thorough"))
    assert [e.question for e in short] == [e.question for e in thorough] and len({e.question for e in short}) == 80
    assert all(a.reference != b.reference for a, b in zip(short, thorough, strict=True))
    for true, unasked in zip(short, sources.read("eval:unasked", source="chains", count=80), strict=True):
        assert (true.question, true.reference) == (unasked.question, unasked.reference)
        asked = [c.description for c in true.rubric.criteria if c.description.startswith("check")]
        assert 1 <= len(asked) <= 3
        assert [c for c in true.rubric.criteria if c.description not in asked] == list(unasked.rubric.criteria)
        careful = documents.careful_solution(true.extra["problem"])
        assert rows.grade(unasked, careful)["rubric_score"] == 1.0
    for e in short:
        assert (
            e.answer == str(e.extra["problem"].result)
            and 3 <= len(e.rubric) <= 7
            and e.origin.startswith("chains:eval:")
        )
    assert rubric_sources.generic_rubric("chains") == rows.generic_rubric()
    for place, said in (("stage2", "unknown split"), ("eval:other", "SPLIT:thorough or SPLIT:unasked")):
        with pytest.raises(UserError, match=said):
            sources.read(place, source="chains", count=1)


# --- configs and the experiment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", chains_config.VARIANTS)
def test_every_variant_passes_the_checks_and_is_graded_by_these_programs(variant):
    config = chains_config.get_config(variant)
    check(config)
    assert config.eval.grader == "chains" and config.reward.grader in ("", "chains", "chains_majority")
    assert config.data.max_teacher_prompt + config.sampling.max_new_tokens <= 512


def test_variants_leave_out_written_rubrics_only():
    assert set(stage2.VARIANTS) - set(chains_config.VARIANTS) == {"paper", "reason_first", "release", "mixed"}
    with pytest.raises(ValueError, match="unknown variant 'paper'"):
        chains_config.get_config("paper")


def test_arms_differ_only_in_their_method_and_kind_of_rows(tmp_path):
    made = {name: experiment.config(name, 0, tmp_path, quick=False) for name in experiment.ARMS}
    for config in made.values():
        check(config)
    assert len({keys.to_json(c) for c in made.values()}) == len(made)
    assert len({(c.seed, c.train.steps, c.train.batch_size, c.eval.count, c.eval.samples) for c in made.values()}) == 1
    assert [name for name, c in made.items() if "base" in c.eval.roles] == [experiment.SELF]
    assert {experiment.SELF, *experiment.QUICK, *experiment.WITH_TEACHER, *experiment.RATES} <= set(experiment.ARMS)
    thorough = made["opsd_thorough"]
    assert thorough.data.path == "train:thorough" and set(thorough.eval.splits.values()) == {
        "eval:thorough",
        "ood:thorough",
    }
    unasked = made["unasked"]  # scored as the others are
    assert unasked.data.path == "train:unasked" and set(unasked.eval.splits.values()) == {"eval", "ood"}
    assert all(experiment.config(name, 0, tmp_path, quick=True).train.steps == 2 for name in experiment.ARMS)


def test_counts_of_completions_are_those_of_the_texts():
    p = problems.generate("eval", 0, 0)
    i, j = _slips(p)[:2]
    work = lambda **at: [at.get(f"at{n}", Work()) for n in range(len(p.steps))]
    texts = [
        documents.write_solution(p, work(**{f"at{i}": Work(wrong=True, checks=True)})),
        documents.write_solution(p, work(**{f"at{i}": Work(wrong=True)})),
        documents.write_solution(p, work(**{f"at{j}": Work(checks=True)})),
        "",
    ]
    found = experiment.counts({"x": p}, [dict(id="x", text=text) for text in texts])
    assert found == {"steps": 0.75 * len(p.steps), "checks": 0.5, "wrong turns": 0.5, "repaired": 50.0, "left": 25.0}
    assert np.isnan(experiment.counts({"x": p}, [dict(id="x", text="")])["repaired"])


def test_a_row_has_the_differences_seed_by_seed():
    both = {"ours": [{"checks": 1.0}, {"checks": 3.0}], "theirs": [{"checks": 0.5}, {"checks": 2.5}]}
    found = tables.of_seeds(both, "theirs", ["ours"])
    assert found["ours"]["checks"].mean == 2.0 and found["ours"]["checks: difference"][:2] == (0.5, 0.0)
    assert set(found["theirs"]) == {"checks"}


def test_rows_of_a_split_are_read_from_the_runs_files(tmp_path):
    """Of two arms, one of which leaves a wrong turn in half of its completions; base and teacher have rows of their own."""
    tasks = {}
    for name in experiment.QUICK:
        config = experiment.config(name, 0, tmp_path, quick=True)
        tasks[name, 0] = Task(config, tmp_path / name, name)
        tasks[name, 0].place.mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1}\n')
        for role in experiment.roles(name):
            scores = {"accuracy": 0.5, "pass@2": 1.0, "unfounded": 0.25, "rubric_score": 0.75, "length": 90.0}
            modes = {"sampled": scores, "greedy": {"accuracy": 0.125}}
            records = []
            for e in rows.examples("ood", config.eval.count, seed=config.seed):
                p = e.extra["problem"]
                i = _slips(p)[0]
                wrong = [Work(wrong=j == i) for j in range(len(p.steps))]
                texts = documents.careful_solution(p), documents.write_solution(p, wrong)
                texts = texts if (name, role) == ("opsd", "trained") else texts[:1] * 2
                of_split = {"split": "out_of_distribution", "mode": "sampled", "id": e.id}
                records += [of_split | {"text": text} for text in texts] + [of_split | {"mode": "greedy", "text": ""}]
            (tmp_path / name / f"evaluation_{role}.json").write_text(json.dumps({"out_of_distribution": modes}))
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (tmp_path / name / f"completions_{role}.jsonl").write_text(lines)
    found = experiment.of_split("out_of_distribution", tasks, seeds=1)
    assert list(found) == ["(base)", "(teacher: true rubric)", "(teacher: OPSD)", "true rubric", "OPSD"]
    means = {column: estimate.mean for column, estimate in found["OPSD"].items()}
    told = {"accuracy": 50, "greedy": 12.5, "pass@2": 100, "unfounded": 25, "criterion score": 75, "length": 90}
    assert {column: means[column] for column in told} == told
    assert (means["wrong turns"], means["repaired"], means["left"]) == (0.5, 0.0, 50.0)
    assert means["left: difference"] == 50.0 and means["checks: difference"] == -found["true rubric"]["checks"].mean / 2
    assert not any(tables.DIFFERENCE in column for name in list(found)[:-1] for column in found[name])


def test_rates_are_tried_with_a_seed_that_the_table_does_not_use(tmp_path, monkeypatch):
    seeds = set()

    def finish(tasks, flags):
        for task in tasks:
            task.place.mkdir(parents=True)
            mode = {"sampled": {"accuracy": task.config.optimizer.learning_rate * 1000}}
            summary = {"evaluation": {"trained": {"in_distribution": mode}}}
            (task.place / "summary.json").write_text(json.dumps(summary))
            seeds.add(task.config.seed)

    monkeypatch.setattr(cells, "run_tasks", finish)
    flags = argparse.Namespace(rates=[1e-4, 2e-4], quick=False)
    found = experiment.try_rates(["grpo"], flags, tmp_path, tmp_path / "base")
    assert found == {"GRPO": {"0.0001": "10.0", "0.0002": "20.0"}}
    assert len(seeds) == 1 and min(seeds) > 40 + experiment.config("grpo", 9, tmp_path, quick=False).seed


def test_the_columns_that_the_page_explains_are_those_of_the_table():
    explained = set(re.findall(r"^- ([\w@, ]+?):", experiment.__doc__, re.M))
    names = {name.removesuffix(" tokens") for text in explained for name in text.split(", ")} - {"tokens"}
    p = problems.generate("eval", 0, 0)
    of_texts = set(experiment.counts({"x": p}, [dict(id="x", text="")]))
    assert names == {*experiment.PERCENT, *of_texts, "greedy", "length", f"pass@{experiment.SAMPLES}"}
