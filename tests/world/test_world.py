"""The embedded world: exact problems, disjoint splits, graders that catch every lapse, tokenizer, base model."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.world.make_base import WORLDS, batches
from experiments.world.measure import QUESTION, RUBRIC, completer, solution_scores
from rcsd_jax import world
from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.tokenizer import load_tokenizer
from rcsd_jax.data import sources
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.roles.contexts import Role, user_message
from rcsd_jax.rubrics.parsing import parse
from rcsd_jax.rubrics.schema import to_json
from rcsd_jax.rubrics.scoring import score
from rcsd_jax.world import criteria, documents, problems, tokenizer
from rcsd_jax.world.prompts import PROMPTS

SAMPLES = 1500


def _problems(split, count=SAMPLES, seed=0):
    return [problems.generate(split, seed, i) for i in range(count)]


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_tokenizer(directory, tokenizer.vocabulary())
    return load_tokenizer(directory)


def test_there_are_enough_kinds_and_every_kind_occurs():
    assert len(problems.KINDS) >= 8
    for split in problems.SPLITS:
        assert {p.kind for p in _problems(split, 600)} == set(problems.KINDS)


def test_answers_are_exact():
    for split in problems.SPLITS:
        for p in _problems(split):
            expected = 2 if p.twice else 1
            for value, quantity, converted in zip(p.values, p.quantities, p.converted, strict=True):
                expected *= value * (quantity.factor if converted else 1)
            assert problems.answer(p) == f"{expected} {p.law.unit}"
            words = problems.question(p).split()
            for i in range(2):
                assert p.quantities[i].name in words and p.shown_unit(i) in words


def test_a_worked_problem_by_hand():
    p = problems.Problem("energy", (3, 5), (True, True), ("price", 7, "euro"), True, 0, "motor", (1, 2, 0))
    assert problems.question(p) == (
        "a motor has time 5 min , price 7 euro , power 3 kW , done twice . find the energy ."
    )
    assert problems.answer(p) == "1800000 J"
    assert documents.careful_solution(p) == (
        "law energy = power * time ; power 3 kW = 3 000 W ; time 5 min = 3 0 0 s ; ignore price ; "
        "so 3 000 * 3 0 0 = 9 0 0 000 ; double 1 8 0 0 000 ; check units ; answer \\boxed{ 1 8 0 0 000 J }"
    )
    assert criteria.true_rubric(p) == (
        "Essential Criteria: state energy = power * time",
        "Essential Criteria: convert power to W",
        "Essential Criteria: convert time to s",
        "Pitfall Criteria: use price",
        "Essential Criteria: double the product",
        "Optional Criteria: check units",
        "Important Criteria: give unit J",
        "Important Criteria: box answer",
    )


@pytest.mark.parametrize("value, zeros", [(12000000, 6), (120000, 4), (300, 0), (12000, 3), (700, 2), (500000, 5)])
def test_numbers_keep_their_value_whatever_their_groups(value, zeros):
    assert int(problems.number(value, zeros).replace(" ", "")) == value


def test_generation_is_deterministic_and_indexed():
    assert _problems("eval", 50) == _problems("eval", 50)
    assert problems.generate("ood", 3, 17) == problems.generate("ood", 3, 17)
    assert _problems("eval", 50) != _problems("eval", 50, seed=1)
    assert documents.document(0, 5) == documents.document(0, 5)
    assert world.examples("stage1", 20) == world.examples("stage1", 30)[:20]
    with pytest.raises(ValueError, match="unknown split"):
        world.examples("test", 1)


def test_questions_of_the_splits_are_disjoint():
    seen = {split: {problems.question(p) for p in _problems(split, 5000)} for split in problems.SPLITS}
    assert all(len(questions) > 3000 for questions in seen.values())
    for a in problems.SPLITS:
        for b in problems.SPLITS:
            if a < b and {a, b} != {"eval", "ood"}:
                assert not seen[a] & seen[b], (a, b)


def test_evaluation_holds_out_number_pairs_per_kind_but_no_product():
    pairs = {
        split: {(p.kind, *sorted(p.values)) for p in _problems(split, 5000)} for split in (*problems.SPLITS, "train")
    }
    assert not (pairs["eval"] | pairs["ood"]) & (pairs["stage1"] | pairs["stage2"] | pairs["train"])
    facts = {split: {pair[1:] for pair in found} for split, found in pairs.items()}
    assert facts["eval"] <= facts["train"]  # each product is learnt through other kinds


def test_out_of_distribution_is_new_templates_or_longer_chains():
    for split in ("stage1", "stage2", "train", "eval"):
        for p in _problems(split):
            assert p.template < len(problems.TEMPLATES) and len(p.complications) <= 2
    ood = _problems("ood")
    new = [p for p in ood if p.template >= len(problems.TEMPLATES)]
    long = [p for p in ood if p.template < len(problems.TEMPLATES)]
    assert len(new) > 0.4 * len(ood) and len(long) > 0.4 * len(ood)
    assert all(len(p.complications) >= 3 for p in long)


def test_documents_of_the_base_show_no_question_of_evaluation():
    shown = {documents.document(0, i).message.split("\n")[0] for i in range(8000)}
    for split in ("eval", "ood"):
        assert not shown & {problems.question(p) for p in _problems(split, 4000)}


def test_examples_have_no_question_twice_and_all_fields():
    found = world.examples("eval", 400)
    assert len({e.question for e in found}) == len({e.id for e in found}) == 400
    for e in found:
        assert e.reference and e.answer and 4 <= len(e.rubric) <= 8
        assert e.origin.startswith("world:eval:") and e.extra["kind"] in problems.KINDS


def test_graders_accept_careful_solutions():
    for split in ("stage1", "ood"):
        for e in world.examples(split, 400):
            grade = world.grade_solution(e, documents.careful_solution(e.extra["problem"]))
            assert grade.correct and grade.rubric_score == 1.0
            assert [c.kind != "Pitfall" for c in e.rubric.criteria] == list(grade.criteria_met)


def test_graders_catch_every_single_lapse():
    caught = set()
    for p in _problems("ood"):
        for step in criteria.steps(p):
            done = dict.fromkeys(criteria.steps(p), True) | {step: False}
            text = documents.write_solution(p, done)
            failing = {name for name, fine in criteria.satisfied(p, text).items() if not fine}
            assert failing == {step}, text
            assert criteria.answer_correct(p, text) == (step in ("law", "check")), text
            caught.add(step)
    assert caught == set(criteria.STEPS)


def test_graders_read_the_last_box_and_survive_nonsense():
    p = problems.Problem("motion", (3, 4), (False, False), None, False, 0, "car", (0, 1))
    assert criteria.answer_correct(p, r"answer \boxed{ 7 m } answer \boxed{ 1 2 m }")
    assert not criteria.answer_correct(p, r"answer \boxed{ 1 2 m } answer \boxed{ 7 m }")
    for text in ("", r"\boxed{", r"\boxed{ }", r"\boxed{ m 1 2 }", "so * = ;", "double ;", "answer", "law ; so = ;"):
        assert not criteria.answer_correct(p, text)
        assert not criteria.satisfied(p, text)["law"]


def test_a_careless_solution_is_wrong_where_it_matters():
    for p in _problems("eval", 300):
        for step in p.complications:
            done = dict.fromkeys(criteria.steps(p), True) | {step: False}
            assert not criteria.answer_correct(p, documents.write_solution(p, done))


def test_references_end_right_and_the_flawed_ones_fail_an_essential_step():
    found = world.examples("stage2", 1000)
    flawed = 0
    for e in found:
        p = e.extra["problem"]
        assert world.grade_solution(e, e.reference).correct
        flawed += not all(fine for step, fine in criteria.satisfied(p, e.reference).items() if step != "check")
    assert 0.3 < flawed / len(found) < 0.4
    clean = world.examples("stage2", 200, flawed=0.0)
    for e in clean:
        p = e.extra["problem"]
        assert all(fine for step, fine in criteria.satisfied(p, e.reference).items() if step != "check")


def test_derived_rubrics_inherit_the_flaws_of_references():
    def texts(rubric):
        return {f"{c.kind} Criteria: {c.description}" for c in rubric.criteria}

    for e in world.examples("stage1", 100, flawed=0.0, derived=True):
        assert texts(e.rubric) == set(criteria.true_rubric(e.extra["problem"]))
    misstated, missing = 0, set()
    for e in world.examples("stage1", 300, flawed=1.0, derived=True):
        p = e.extra["problem"]
        (wrong,) = [step for step, fine in criteria.satisfied(p, e.reference).items() if not fine and step != "check"]
        true, found = set(criteria.true_rubric(p)), texts(e.rubric)
        if wrong == "law":
            assert found - true == {f"Essential Criteria: state {criteria.law(p, operator='+')}"}
            misstated += 1
        else:
            assert true - found == {criteria.criterion(p, wrong)} and found < true
            missing.add(wrong)
        assert len(found) >= 3
    assert misstated > 30 and missing == {"convert_a", "convert_b", "distractor", "twice"}


def test_the_model_can_read_derived_rubrics(saved_tokenizer):
    for e in world.examples("stage1", 50, flawed=1.0, derived=True):
        shown = to_json(e.rubric, style="strings")
        tokens = saved_tokenizer(shown)["input_ids"]
        assert saved_tokenizer.unk_token_id not in tokens and json.loads(saved_tokenizer.decode(tokens)) is not None


def test_a_place_of_the_world_names_its_rubrics():
    def read(place):
        return sources.read(place, source="world", count=20, flawed=1.0)

    true, derived = read("stage1"), read("stage1:derived")
    assert [e.reference for e in true] == [e.reference for e in derived] and all(
        a.rubric != b.rubric for a, b in zip(true, derived, strict=True)
    )
    with pytest.raises(UserError, match="stage1:other.*SPLIT:derived"):
        read("stage1:other")


def test_rubric_score_follows_the_package_scoring():
    e = next(e for e in world.examples("eval", 200) if "distractor" in e.extra["complications"])
    p = e.extra["problem"]
    done = dict.fromkeys(criteria.steps(p), True) | {"distractor": False}
    grade = world.grade_solution(e, documents.write_solution(p, done))
    assert not grade.correct and all(grade.criteria_met)
    assert grade.rubric_score == score(e.rubric, grade.criteria_met) < 1


def test_rubrics_as_the_model_writes_them_parse():
    for i in range(300):
        p = problems.generate("train", 0, i)
        texts = documents.write_rubric(p, random.Random(i), mention=0.5, noise=documents.NOISE)
        parsed = parse(documents.rubric_json(texts), min_criteria=1)
        assert parsed.status == "strict" and len(parsed.rubric) == len(texts) >= 3
        assert to_json(parsed.rubric, style="strings") == documents.rubric_json(texts)
    assert parse(to_json(world.generic_rubric(), style="strings")).status == "strict"


def test_rubric_f1_ranks_true_above_noisy_above_rejected():
    e = world.examples("eval", 1)[0]
    noisy = documents.write_rubric(e.extra["problem"], random.Random(0), mention=0.5, noise=(0, 0, 1))
    values = [world.grade_rubric(e, r) for r in (e.rubric, parse(json.dumps(noisy), min_criteria=1).rubric, None)]
    assert values[0] == 1.0 > values[1] > values[2] == 0.0


def test_habits_leave_the_author_careless_in_different_places():
    """What a perfect imitator would score, without any training: the world's dials."""
    rng = random.Random(0)
    found = _problems("eval", 2000)

    def accuracy(chances, greedy):
        right = 0
        for p in found:
            chance = chances(p)
            if greedy:
                text = documents.write_solution(p, {step: c >= 0.5 for step, c in chance.items()})
            else:
                text = documents.solution_by_chance(p, rng, chance)
            right += criteria.answer_correct(p, text)
        return right / len(found)

    def sloppy(p):
        rubric = documents.write_rubric(p, rng, mention=documents.MENTION, noise=documents.NOISE)
        return documents.rubric_chances(p, rubric)

    unaided = accuracy(documents.habit_chances, False), accuracy(documents.habit_chances, True)
    assert all(0.25 < value < 0.5 for value in unaided)
    true = accuracy(lambda p: documents.rubric_chances(p, criteria.true_rubric(p)), False)
    assert true > max(unaided) + 0.3
    assert unaided[0] < accuracy(sloppy, False) < true - 0.2


def test_tokenizer_knows_every_word_and_round_trips(saved_tokenizer):
    assert 100 <= len(saved_tokenizer) <= 200
    longest = {"solve": 0, "write_rubric": 0}
    for i in range(1000):
        one = documents.document(1, i)
        turn = [{"role": "user", "content": one.message}]
        for text in (
            saved_tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True),
            f"{one.completion} {tokenizer.END}",
        ):
            ids = saved_tokenizer(text, add_special_tokens=False)["input_ids"]
            assert saved_tokenizer.unk_token_id not in ids
            assert saved_tokenizer(saved_tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids
        longest[one.task] = max(longest[one.task], len(ids))
        if one.task == "write_rubric":
            decoded = saved_tokenizer.decode(ids, skip_special_tokens=True)
            assert to_json(parse(decoded, min_criteria=1).rubric, style="strings") == one.completion
    assert longest["solve"] <= world.SOLUTION_TOKENS and longest["write_rubric"] <= world.RUBRIC_TOKENS


def test_prompts_fit_their_limits_in_every_split(saved_tokenizer):
    for split in problems.SPLITS:
        for e in world.examples(split, 300):
            fields = {"reference": e.reference, "rubric": to_json(e.rubric, style="strings")}
            for task in ("solve", "write_rubric"):
                for shown, limit in (({}, world.QUESTION_TOKENS), (fields, world.TEACHER_TOKENS)):
                    turn = [{"role": "user", "content": documents.message(task, e.question, **shown)}]
                    text = saved_tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                    ids = saved_tokenizer(text, add_special_tokens=False)["input_ids"]
                    assert saved_tokenizer.unk_token_id not in ids and len(ids) <= limit
            solution = saved_tokenizer(documents.careful_solution(e.extra["problem"]))["input_ids"]
            rubric = saved_tokenizer(fields["rubric"])["input_ids"]
            assert len(solution) < world.SOLUTION_TOKENS and len(rubric) < world.RUBRIC_TOKENS


def test_messages_are_composed_as_the_roles_compose_them():
    e = world.examples("stage2", 1)[0]
    shown = {"reference": e.reference, "rubric": to_json(e.rubric, style="strings")}
    for task in ("solve", "write_rubric"):
        composed = user_message(e, Role(("question", "reference", "rubric")), PROMPTS, task)
        assert composed == documents.message(task, e.question, **shown)


def test_base_directory_loads_and_is_small(saved_tokenizer):
    directory = world.base_directory()
    assert sum(f.stat().st_size for f in directory.iterdir()) <= 8 * 2**20
    config, params = loading.load_model(directory, dtype=jnp.float32)
    assert config.family == "qwen3" and config.vocab_size == len(saved_tokenizer)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert 1_000_000 <= count <= 3_000_000
    own = load_tokenizer(directory)
    assert own.get_vocab() == saved_tokenizer.get_vocab() and own.chat_template == saved_tokenizer.chat_template


def test_base_solves_more_when_shown_the_true_rubric():
    config, params = loading.load_model(world.base_directory(), dtype=jnp.float32)
    complete = completer(Decoder(config), params, load_tokenizer(world.base_directory()))
    found = world.examples("eval", 96)
    unaided, _ = solution_scores(found, complete(found, QUESTION, "solve", temperature=0.0))
    aided, _ = solution_scores(found, complete(found, RUBRIC, "solve", temperature=0.0))
    assert aided > unaided + 25
    assert np.isfinite(jax.tree.leaves(params)[0]).all()


def test_a_changed_kind_changes_the_rubric():
    p = problems.generate("eval", 0, 0)
    other = next(kind for kind in problems.KINDS if kind != p.kind)
    assert criteria.true_rubric(p) != criteria.true_rubric(dataclasses.replace(p, kind=other))


def test_packed_rows_hold_whole_documents_and_weigh_their_completions(saved_tokenizer):
    few = WORLDS["world"]._replace(rows=4)
    stream = batches(saved_tokenizer, few, seed=0)
    batch, next_document = next(stream)
    again, _ = next(batches(saved_tokenizer, few, seed=0))
    np.testing.assert_array_equal(batch.tokens, again.tokens)
    written = set()
    for row in range(4):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            at = np.flatnonzero(batch.segment_ids[row] == segment)
            np.testing.assert_array_equal(batch.positions[row, at], np.arange(len(at)))
            completion = at[batch.weights[row, at] == 1.0]
            assert batch.tokens[row, completion[-1]] == saved_tokenizer.eos_token_id
            written.add(saved_tokenizer.decode(batch.tokens[row, completion[:-1]]))
    solutions = {one.completion for one in map(documents.document, [0] * next_document, range(next_document))}
    assert {text for text in written if not text.startswith("[")} == {t for t in solutions if not t.startswith("[")}
