"""The worded problems in English: physics against pint, disjoint splits, graders with mutants, flaws, leaks, and the files of rows."""

import dataclasses
import json
import random
import re

import pint
import pytest

from configs import smollm2, stage2
from rcsd_jax import world
from rcsd_jax.data import sources
from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.graders import GRADERS, check_rows
from rcsd_jax.host.errors import UserError
from rcsd_jax.roles.contexts import Role, messages
from rcsd_jax.rubrics.schema import from_records
from rcsd_jax.settings.unpack import check
from rcsd_jax.world import __main__ as writer
from rcsd_jax.world.english import criteria, problems, references, rows
from rcsd_jax.world.english.problems import Problem
from rcsd_jax.world.english.prompts import PROMPTS

MOTION = Problem("motion", (3, 5), (False, True), (0, 7), (1, 2, 0), False)


def _problems(split, count=600, seed=0):
    return [problems.generate(split, seed, i) for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    writer.main([str(folder), "--count=120"])
    return folder


def test_a_worked_problem_by_hand():
    assert problems.question(MOTION) == (
        "A cart moves with a time of 5 min, a height of 7 cm and a speed of 3 m/s. Find the distance."
    )
    assert references.careful_answer(MOTION) == (
        r"5 min = 300 s. distance = speed × time = 3 m/s × 300 s = 900 m. \boxed{900 m}"
    )
    assert criteria.rubric(MOTION, gives=False) == (
        "Essential Criteria: States distance = speed × time.",
        "Essential Criteria: Converts 5 min to 300 s.",
        "Essential Criteria: Shows 3 m/s × 300 s.",
        "Important Criteria: Gives the unit m.",
        "Pitfall Criteria: Uses the height of 7 cm.",
        "Important Criteria: Ends in a box.",
    )
    assert criteria.rubric(MOTION, gives=True)[2:4] == (
        "Essential Criteria: Shows 3 m/s × 300 s.",
        "Essential Criteria: Finds 900 m.",
    )


def test_answers_and_units_are_those_of_physics():
    registry = pint.UnitRegistry()

    def quantity(text):
        return registry(re.sub(r"(?<=[a-z])([23])", r"**\1", text).replace("kg m/s", "kg*m/s"))

    assert {p.kind for p in _problems("train")} == set(problems.LAWS)
    for p in (*_problems("train"), *_problems("ood")):
        a, b = quantity(p.shown(0)), quantity(p.shown(1))
        found = (a * b if p.law.operator == "×" else a / b).to(quantity(f"1 {p.law.unit}").units)
        assert found.magnitude == pytest.approx(p.result, rel=1e-12), p
        for i in range(2):
            assert p.shown(i) in problems.question(p)


def test_splits_share_no_question_and_evaluation_holds_out_numbers():
    found = {split: _problems(split, 1500) for split in problems.SPLITS}
    assert not {problems.question(p) for p in found["train"]} & {
        problems.question(p) for split in ("eval", "ood") for p in found[split]
    }
    pairs = {split: {(p.kind, p.values) for p in some} for split, some in found.items()}
    assert not pairs["train"] & (pairs["eval"] | pairs["ood"])
    assert all(p.other_sentence == (split == "ood") for split, some in found.items() for p in some)
    assert found["eval"] == _problems("eval", 1500) != _problems("eval", 1500, seed=1)
    with pytest.raises(ValueError, match="unknown split"):
        problems.generate("test", 0, 0)


# Each spelling is one that a careful writer may choose.
SPELLINGS = {
    "times": lambda t: t.replace("×", r"\times"),
    "star": lambda t: t.replace("×", "*"),
    "x": lambda t: t.replace("×", "x"),
    "close": lambda t: t.replace(" × ", "×"),
    "formula": lambda t: f"${t}$",
    "units": lambda t: re.sub(r"(\d) ([A-Za-z][\w/]*)", r"\1\\,\\text{\2}", t),
    "powers": lambda t: t.replace("m2", "m^2").replace("cm3", "cm³"),
    "powers in braces": lambda t: re.sub(r"(?<=m|s)([23])\b", r"^{\1}", t),
    "powers behind text": lambda t: re.sub(r"([A-Za-z/]*[A-Za-z])([23])\b", r"\\text{ \1}^{\2}", t),
    "fractions": lambda t: re.sub(r"(?<== )([^=/]+) / ([^=/]+?)(?= =)", r"\\frac{\1}{\2}", t),
    "parentheses": lambda t: re.sub(r"(?<== )(\d[^=×/]*(?:/[A-Zs]\d?)?) ([×/]) (\d[^=×]*?)(?= =)", r"(\1) \2 (\3)", t),
    "Omega": lambda t: t.replace("ohm", r"\Omega"),
    "commas in braces": lambda t: re.sub(r"\b(\d{1,3})(\d{3})\b", r"\1{,}\2", t),
    "commas": lambda t: re.sub(r"\b(\d{1,3})(\d{3})\b", r"\1,\2", t),
    "capital": lambda t: f"The {t}.",
    "lines": lambda t: t.replace(". ", ".\n").replace(" = ", "\n= "),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_graders_accept_careful_answers_in_every_spelling(spelling):
    for p in _problems("ood", 200):
        text = SPELLINGS[spelling](references.careful_answer(p))
        for gives in (False, True):
            assert all(criteria.careful(p, text, gives=gives).values()), text
        assert criteria.answer_correct(p, text) and not criteria.leaks(p, text), text


def _mutants(p):
    """Step -> texts that fail it and nothing else."""
    text = references.careful_answer(p)
    law, last = problems.law_in_words(p), f"{p.used(0)} {p.law.operator} {p.used(1)}"
    unit = f" {p.law.unit}}}"
    b_unit = p.law.b.unit
    other = "kg" if b_unit != "kg" else "V"
    found = {
        "law": [
            text.replace(law, p.law.result),
            text.replace(law, law.replace(p.law.operator, "+")),
            text.replace(law, f"{law} × 7"),
        ],
        "calculation": [
            *(text.replace(f" = {last}", ""), text.replace(last, last.replace(p.law.operator, "+"))),
            *(
                text.replace(last, f"{last} × 7"),
                text.replace(last, f"7 × {last}"),
                text.replace(last, f"{last[: -len(b_unit)]}{other}"),
            ),
        ],
        "unit": [text.replace(unit, "}"), text.replace(unit, " mol}"), text.replace(unit, f"{unit[:-1]}2}}")],
        "box": [f"{text} So it is large"],
    }
    if any(p.converted):
        i = p.converted.index(True)
        found["convert"] = [text.replace(f"{p.shown(i)} = {p.used(i)}. ", "")]
    if p.not_needed:
        name, value = p.not_needed
        found["distractor"] = [f"The {name} is there. {text}", f"{value} is given. {text}"]
    return found


def test_graders_catch_every_single_lapse():
    caught = set()
    for p in _problems("ood", 400):
        for step, texts in _mutants(p).items():
            for text in texts:
                done = criteria.careful(p, text, gives=False)
                assert {name for name, fine in done.items() if not fine} == {step}, text
                assert criteria.answer_correct(p, text) == (step != "unit"), text
            caught.add(step)
        for wrong in (p.result + 1, p.result * 10, f"{p.result}.5", f"-{p.result}"):
            text = re.sub(r"\{\d+", lambda _, wrong=wrong: f"{{{wrong}", references.careful_answer(p))
            assert not criteria.answer_correct(p, text) and not criteria.met(p, text, gives=True)["value"], text
    assert caught | {"value"} == set(criteria.CLASSES)


def test_the_last_box_counts_and_nonsense_is_wrong():
    p = Problem("charge", (3, 4), (False, False), None, (0, 1), False)
    assert criteria.answer_correct(p, r"\boxed{7 C} or \boxed{12 C}")
    assert not criteria.answer_correct(p, r"\boxed{12 C} or \boxed{7 C}")
    assert not criteria.answer_correct(p, r"\boxed{12 C}, and so \boxed{\frac{1}{2}}")
    for text in ("", r"\boxed{", r"\boxed{}", r"\boxed{C 12}", "12 C", "× = /", r"\boxed{\boxed{12 C}", "= 12 C" * 500):
        assert not any(criteria.met(p, text, gives=True)[step] for step in ("law", "calculation")), text
    assert not criteria.met(p, "charge = current × time = 13 A × 4 s", gives=False)["calculation"]
    assert not criteria.met(p, "charge = current × time = 3 A × 41 s", gives=False)["calculation"]


def test_flawed_references_end_right_and_fail_the_step_that_is_wrong():
    failing = {"law": {"law", "calculation"}, "convert": {"convert", "calculation"}}
    failing["distractor"] = {"law", "calculation", "distractor"}
    seen = set()
    for p in _problems("train", 400):
        for flaw in references.flaws(p):
            text = references.flawed_answer(p, flaw)
            wrong = {step for step, fine in criteria.careful(p, text, gives=False).items() if not fine}
            assert criteria.answer_correct(p, text) and wrong - {"convert"} == failing[flaw] - {"convert"}, text
            assert ("convert" in wrong) >= (flaw == "convert")
            seen.add(flaw)
    assert seen == set(failing)
    for share in (0.0, 0.35, 1.0):
        rng = random.Random(0)
        some = [(p, references.reference(p, rng, flawed=share)) for p in _problems("train", 500)]
        flawed = sum(not all(criteria.careful(p, text, gives=False).values()) for p, text in some) / len(some)
        assert flawed == pytest.approx(share, abs=0.06)


def test_rubrics_give_the_answer_away_only_if_they_say_so():
    for p in _problems("eval", 300):
        for gives in (False, True):
            listed = criteria.rubric(p, gives=gives)
            assert (f"Essential Criteria: Finds {problems.answer(p)}." in listed) == gives
            assert len(listed) == len(criteria.met(p, "", gives=gives)) >= 4
        shown = {p.used(0), p.used(1), *p.shown(0).split(), *p.shown(1).split()} | set(p.not_needed or ())
        if not shown & {problems.answer(p), str(p.result)}:
            assert not re.search(
                rf"\b{p.result}\b(?! {'|'.join((p.quantities[0].unit, p.quantities[1].unit))})",
                " ".join(criteria.rubric(p, gives=False)),
            )


def test_leaks_are_answers_without_a_calculation_and_mentions_of_what_was_shown():
    for p in _problems("eval", 50):
        careful = references.careful_answer(p)
        boxed = rf"\boxed{{{problems.answer(p)}}}"
        assert not criteria.leaks(p, careful) and not criteria.leaks(p, rf"\boxed{{{p.result + 1}}}")
        assert criteria.leaks(p, boxed) and criteria.leaks(p, f"The criteria ask for the law. {careful}")


def test_the_files_hold_rows_that_a_run_reads(files):
    for split in problems.SPLITS:
        lines = (files / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        examples = sources.read(str(files / f"{split}.jsonl"))
        assert [json.loads(line)["id"] for line in lines] == [e.id for e in examples]
        assert len({e.question for e in examples}) == 120
        for e, line in zip(examples, lines, strict=True):
            row = json.loads(line)
            p = problems.from_facts(row["facts"])
            assert e.question == problems.question(p) and e.answer == problems.answer(p)
            assert [f"{c.kind} Criteria: {c.description}" for c in e.rubric.criteria] == list(
                criteria.rubric(p, gives=row["gives"])
            )
            careful = GRADERS["english"].grade(e, references.careful_answer(p))
            assert careful == dict(accuracy=1.0, rubric_score=1.0, parsed=1.0, leak=0.0)
            nothing = GRADERS["english"].grade(e, "I do not know.")
            assert nothing == dict(accuracy=0.0, rubric_score=0.0, parsed=0.0, leak=0.0)
            assert GRADERS["english"].feedback(e, references.careful_answer(p)) is None
            bare = references.careful_answer(p).partition(r" \boxed")[
                0
            ]  # no box: neither the unit nor the value is there
            missing = [row["rubric"][-1], next(c for c in row["rubric"] if " Finds " in c or " Gives " in c)]
            assert json.loads(GRADERS["english"].feedback(e, bare)) == missing[::-1]
            assert sum(GRADERS["english"].criteria(e, bare)) == len(row["rubric"]) - 2 - (p.distractor is not None)
        assert 0.35 < sum(json.loads(line)["gives"] for line in lines) / 120 < 0.65


def test_the_worked_examples_show_a_rubric_as_the_roles_do(files):
    example = sources.read(str(files / "train.jsonl"))[0]
    student = messages(example, Role(("question",)), PROMPTS, "solve")
    teacher = messages(example, Role(("question", "rubric")), PROMPTS, "solve")
    assert [turn["role"] for turn in student] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert student[:-1] == teacher[:-1] and student[-1]["content"] == example.question
    form = r"{}\nCriteria:\n\[(\"(Essential|Important|Pitfall) Criteria: [^\"]+\.\"(, )?)+\]"
    assert re.fullmatch(form.format(re.escape(example.question)), teacher[-1]["content"])
    assert re.fullmatch(form.format(r"A box has .*\."), student[3]["content"])
    assert not {question for question, *_ in (rows.PLAIN_EXAMPLE, rows.GUIDED_EXAMPLE)} & {example.question}


def test_rows_without_facts_and_bad_flags_end_with_a_line(tmp_path, capsys):
    rubric = world.examples("eval", 1)[0].rubric
    with pytest.raises(UserError, match=r"facts.*rcsd_jax\.world"):
        GRADERS["english"].grade(Example("1", "Why?", None, rubric, None, "rows.jsonl:1"), "So.")
    facts = dict(
        kind="motion", values=[3, 5], converted=[False, False], distractor=None, order=[0, 1], other_sentence=False
    )
    of_facts = from_records(list(criteria.rubric(problems.from_facts(facts), gives=True)))
    good = Example("1", "Why?", None, of_facts, None, "rows.jsonl:1", extra=dict(facts=facts, gives=True))
    check_rows("english", [good])
    for name, extra in {
        "gives": dict(facts=facts),
        "facts": dict(facts=dict(kind="motion"), gives=True),
        "facts' = 'x": dict(facts="x", gives=True),
        "facts' =": dict(facts=facts | {"kind": "none"}, gives=True),
    }.items():
        with pytest.raises(UserError, match=rf"rows\.jsonl:1.*field '{name}.*rcsd_jax\.world"):
            check_rows("english", [good, dataclasses.replace(good, extra=extra)])
    with pytest.raises(UserError, match=r"rows\.jsonl:1.*field 'rubric': has 5 criteria, the one of its facts has 4"):
        check_rows("english", [dataclasses.replace(good, rubric=rubric)])
    for flag in ("--flawed=1.5", "--giving=x", "--count=0"):
        with pytest.raises(SystemExit, match="2"):
            writer.main([str(tmp_path), flag])
        assert f"argument {flag.partition(chr(61))[0]}: " in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        writer.main([str(tmp_path / "file")])
    assert re.fullmatch(r"error: \S+: cannot be written .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("variant", smollm2.VARIANTS)
def test_every_variant_of_the_recipe_passes_the_checks_and_is_graded_by_these_programs(variant):
    config = smollm2.get_config(variant)
    config.model.path, config.rubric.writer = "model", config.rubric.writer or "writer"
    check(config)
    assert (config.eval.grader, config.prompts.rubric_style) == ("english", config.rubric.style)
    of_method = stage2.get_config(variant).reward.grader
    assert config.reward.grader == (of_method if of_method in ("", "majority") else "english")
    assert config.model.dtype == config.model.param_dtype == "float32"
