"""Rubrics: reading the formats in the wild, parsing what models write, scoring, variants and the cache."""

import json
import random

import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics import cache, parsing, schema, scoring, variants
from rcsd_jax.rubrics.parsing import Parsed, parse
from rcsd_jax.rubrics.schema import Criterion, Rubric, RubricError

OBJECTS = [
    {"title": "Final value", "description": "Essential Criteria: States 0.228.", "weight": 5},
    {"title": "Comparison", "description": "Important Criteria: Compares it with 0.75.", "weight": 4},
    {"title": "Overclaim", "description": "Pitfall Criteria: Says that this disproves Mendel.", "weight": -1},
]


def rubric_of(*descriptions, kind="Essential"):
    return Rubric(tuple(Criterion("", text, schema.DEFAULT_WEIGHTS[kind], kind) for text in descriptions))


# --- schema ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, kind, rest",
    [
        ("Essential Criteria: A.", "Essential", "A."),
        ("Essential : A.", "Essential", "A."),
        ("Essential: A.", "Essential", "A."),
        ("  IMPORTANT  criteria :A.", "Important", "A."),
        ("**Optional Criterion:** A.", "Optional", "A."),
        ("Negative Criteria: A.", "Pitfall", "A."),
        ("Critical: A.", "Essential", "A."),
        ("Pitfall Criteria: ratio 1:2.", "Pitfall", "ratio 1:2."),
        ("Essential parts are named: A.", None, "Essential parts are named: A."),
    ],
)
def test_class_prefixes(text, kind, rest):
    assert schema.split_class(text) == (kind, rest)


def test_a_key_that_says_nothing_yields_to_the_next():
    row = {
        "title": None,
        "name": "Unit",
        "description": "",
        "criterion": "Gives the unit.",
        "weight": None,
        "points": 5,
    }
    (criterion,) = schema.from_records([row], min_criteria=1).criteria
    assert (criterion.title, criterion.description, criterion.weight) == ("Unit", "Gives the unit.", 5.0)


def test_objects_strings_and_points_are_read():
    objects = schema.from_records(OBJECTS)
    assert [c.kind for c in objects.criteria] == ["Essential", "Important", "Pitfall"]
    assert objects.criteria[0] == Criterion("Final value", "States 0.228.", 5.0, "Essential")
    strings = schema.from_records([record["description"] for record in OBJECTS])
    assert [c.weight for c in strings.criteria] == [10.0, 7.0, -9.0]
    assert [c.description for c in strings.criteria] == [c.description for c in objects.criteria]
    points = schema.from_records([{"criterion": f"Point {p}.", "points": p} for p in (10, 8, 5, 3, -4)])
    assert [c.kind for c in points.criteria] == ["Essential", "Important", "Important", "Optional", "Pitfall"]


@pytest.mark.parametrize(
    "weights, kinds",
    [
        ((5, 4, 3, 2, -1), ["Essential", "Important", "Important", "Optional", "Pitfall"]),
        ((10, 9, 8, 5, 4), ["Essential", "Essential", "Important", "Important", "Optional"]),
        ((1.0, 0.7, 0.3, -0.9), ["Essential", "Important", "Optional", "Pitfall"]),
        ((40, 20, 10), ["Essential", "Important", "Optional"]),
    ],
)
def test_a_missing_class_follows_from_the_weight_and_the_scale_in_use(weights, kinds):
    records = [{"description": f"Number {i}.", "weight": weight} for i, weight in enumerate(weights)]
    assert [c.kind for c in schema.from_records(records).criteria] == kinds


@pytest.mark.parametrize(
    "record, weight, kind",
    [
        ({"description": "Pitfall Criteria: A.", "weight": 3}, -3, "Pitfall"),
        ({"description": "Critical: fails to A.", "weight": -1}, -1, "Pitfall"),
        ({"description": "Optional: A."}, 3, "Optional"),
        ({"description": "A."}, 7, "Important"),
        ({"description": "A.", "weight": "8"}, 8, "Important"),
        ({"description": "A.", "weight": "9/10"}, 9, "Essential"),
        ({"description": "A.", "weight": "Essential"}, 10, "Essential"),
        ({"description": "A.", "weight": 2, "category": "Essential"}, 2, "Essential"),
        ({"Description ": "A.", "Weight": "-2 points"}, -2, "Pitfall"),
    ],
)
def test_class_and_weight_complete_each_other(record, weight, kind):
    criterion = schema.criterion_from(record)
    assert (criterion.weight, criterion.kind) == (weight, kind)


@pytest.mark.parametrize(
    "record, code",
    [
        ("No prefix here.", "no_class"),
        ({"title": "T", "weight": 3}, "no_description"),
        ({"description": "...", "weight": 3}, "no_description"),
        ({"description": "Essential Criteria: ", "weight": 3}, "no_description"),
        ({"description": "A.", "weight": 0}, "bad_weight"),
        ({"description": "A.", "weight": "heavy"}, "bad_weight"),
        ({"description": "A.", "weight": True}, "bad_weight"),
        ({"description": "A.", "weight": float("nan")}, "bad_weight"),
        ({"description": "A.", "weight": float("inf")}, "bad_weight"),
        ({"description": "A.", "weight": [5]}, "bad_weight"),
        (7, "bad_record"),
    ],
)
def test_bad_criteria_are_named(record, code):
    with pytest.raises(RubricError) as error:
        schema.criterion_from(record)
    assert error.value.code == code


def test_rubric_bounds_are_arguments():
    with pytest.raises(RubricError, match="too_few: 2 usable criteria, at least 3"):
        schema.from_records(OBJECTS[:2])
    assert len(schema.from_records(OBJECTS[:2], min_criteria=2)) == 2
    many = [{"description": f"Number {i}.", "weight": 5} for i in range(26)]
    with pytest.raises(RubricError, match="too_many"):
        schema.from_records(many)
    assert len(schema.from_records(many[:25])) == 25
    with pytest.raises(RubricError, match="not_a_list"):
        schema.from_records({"rubric": OBJECTS})
    with pytest.raises(RubricError, match="no_positive_weight"):
        schema.from_records([{"description": f"Number {i}.", "weight": -1} for i in range(3)])


def test_repeated_criteria_count_once():
    repeated = [*OBJECTS, {"description": "essential criteria:  states  0.228", "weight": 9}]
    assert schema.from_records(repeated) == schema.from_records(OBJECTS)


def test_criteria_check_themselves():
    for bad in (
        ("", "A.", 1.0, "Vital"),
        ("", "A.", -1.0, "Essential"),
        ("", "A.", 1.0, "Pitfall"),
        ("", " ", 1.0, "Optional"),
    ):
        with pytest.raises(RubricError):
            Criterion(*bad)


def test_json_round_trip():
    rubric = schema.from_records([*OBJECTS, {"description": "Optional: uses “π ≈ 3.14” \\(r^2\\).", "weight": 2.5}])
    text = schema.to_json(rubric)
    assert schema.from_records(json.loads(text)) == rubric
    assert parse(text) == Parsed(rubric, "strict", "ok: 4 criteria")
    assert '"weight": 5}' in text and "“π" in text
    strings = schema.from_records(json.loads(schema.to_json(rubric, style="strings")))
    assert [(c.kind, c.description) for c in strings.criteria] == [(c.kind, c.description) for c in rubric.criteria]
    with pytest.raises(ValueError, match="yaml"):
        schema.to_json(rubric, style="yaml")


# --- parsing ---------------------------------------------------------------------------------------------------------

ARRAY = json.dumps(OBJECTS)
EXPECTED = schema.from_records(OBJECTS)


@pytest.mark.parametrize(
    "text",
    [
        ARRAY,
        f"Here it is:\n```json\n{ARRAY}\n```\nDone.",
        f"<think>first [1] then {ARRAY[:60]}</think>\n{ARRAY}",
        f"the block was opened by the template </think>{ARRAY}",
        f'{{"rubric": {ARRAY}}}',
        f'As in [1] and ["a", "b"]: {ARRAY}',
        f"{ARRAY} and once more {json.dumps(OBJECTS[::-1])}",
        ARRAY.replace(": 5", ': "5"'),
        ARRAY.replace("}, {", "},\n{").replace("0.228.", "0.228.\n"),
    ],
)
def test_whole_arrays_are_strict(text):
    assert parse(text) == Parsed(EXPECTED, "strict", "ok: 3 criteria")


@pytest.mark.parametrize(
    "text, note",
    [
        (ARRAY.replace("}]", "},]"), "removed spare commas: 1"),
        (ARRAY.replace("5}", "5,}").replace("}, {", "},, {"), "removed spare commas: 3"),
        (ARRAY.replace('", "weight": 4', '" "weight": 4'), "inserted missing commas: 1"),
        (ARRAY.replace("}, {", "} {"), "inserted missing commas: 2"),
    ],
)
def test_commas_are_mended(text, note):
    assert text != ARRAY
    assert parse(text) == Parsed(EXPECTED, "salvaged", f"repaired: 3 criteria; {note}")


@pytest.mark.parametrize(
    "latex",
    [
        r"\( \mu \)",
        r"$\frac{1}{2}$",
        r"$\times \theta \text{K}$",
        r"$\beta \rho \nu \nabla$",
        r"$\underline{x}$",
        r"\hbar",
    ],
)
def test_latex_backslashes_survive(latex):
    parsed = parse(ARRAY.replace("0.228", latex))
    assert (parsed.status, parsed.code) == ("salvaged", "repaired")
    assert "escaped LaTeX backslashes" in parsed.reason
    assert parsed.rubric.criteria[0].description == f"States {latex}."
    escaped = parse(ARRAY.replace("0.228", latex.replace("\\", "\\\\")))
    assert escaped.status == "strict" and escaped.rubric == parsed.rubric


def test_proper_escapes_are_left_alone():
    parsed = parse(ARRAY.replace("0.228", r"\u03c0 \"x\" a\/b\nNot so"))
    assert parsed.status == "strict"
    assert parsed.rubric.criteria[0].description == 'States π "x" a/b Not so.'


def test_unterminated_arrays_give_their_complete_criteria():
    records = [{"title": f"T{i}", "description": f"Number {i}.", "weight": 5} for i in range(5)]
    text = json.dumps(records)
    fourth = text.index(', {"title": "T4"')
    for cut in (fourth, fourth + 3, fourth + 30, len(text) - 2):
        parsed = parse("Sure: " + text[:cut])
        assert (parsed.status, parsed.code) == ("salvaged", "unterminated")
        assert parsed.rubric == schema.from_records(records[:4])
    assert parse(text[:-1]).rubric == schema.from_records(records)
    assert "4 complete elements" in parse(text[:fourth]).reason
    strings = json.dumps([f"Essential: number {i}" for i in range(4)])
    assert len(parse(strings[:-8]).rubric) == 3


def test_a_whole_array_is_preferred_to_a_longer_broken_one():
    broken = json.dumps([{"description": f"Draft {i}.", "weight": 5} for i in range(9)])[:-20]
    assert parse(f"Draft: {broken}\n\nFinal: {ARRAY}") == Parsed(EXPECTED, "strict", "ok: 3 criteria")


def test_of_two_broken_arrays_the_fuller_one_is_taken():
    drafts = [
        json.dumps([{"description": f"{name} {i}.", "weight": 5} for i in range(5)]) for name in ("Draft", "Final")
    ]
    for cuts, name, size in (((-70, -30), "Final", 4), ((-30, -70), "Draft", 4), ((-30, -30), "Draft", 4)):
        parsed = parse("\n\n".join(draft[:cut] for draft, cut in zip(drafts, cuts, strict=True)))
        assert (len(parsed.rubric), parsed.rubric.criteria[0].description) == (size, f"{name} 0.")


def test_unusable_and_repeated_criteria_are_dropped_and_counted():
    parsed = parse(json.dumps([*OBJECTS, {"title": "Empty", "weight": 2}, OBJECTS[0]]))
    assert (parsed.rubric, parsed.status, parsed.code) == (EXPECTED, "salvaged", "dropped_criteria")
    assert "dropped 1 unusable" in parsed.reason and "dropped 1 repeated" in parsed.reason


@pytest.mark.parametrize(
    "text, code",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>I would write [", "only_thinking"),
        (f"<think>{ARRAY}", "only_thinking"),
        ("I cannot do that.", "no_array"),
        ("[1, 2, 3]", "no_array"),
        ('["a", "b", "c"]', "too_few"),
        (json.dumps(OBJECTS[:2]), "too_few"),
        (ARRAY[: ARRAY.index("}, {")], "too_few"),
        (json.dumps([{"description": f"N {i}.", "weight": 1} for i in range(26)]), "too_many"),
        (json.dumps([{"description": f"N {i}.", "weight": -1} for i in range(4)]), "no_positive_weight"),
    ],
)
def test_rejections_have_a_code(text, code):
    parsed = parse(text)
    assert (parsed.rubric, parsed.status, parsed.code) == (None, "rejected", code)
    assert parsed.reason.startswith(f"{code}: ") and len(parsed.reason) > len(code) + 2


def test_bounds_reach_the_parser():
    assert parse(json.dumps(OBJECTS[:1]), min_criteria=1).status == "strict"
    assert parse(ARRAY, max_criteria=2).code == "too_many"


def test_lone_surrogates_do_not_reach_files():
    parsed = parse(ARRAY.replace("0.228", r"\ud800"))
    assert parsed.rubric.criteria[0].description.encode("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[{"a":' * 5_000,
        '["' * 5_000,
        '[{"description": "' + "a" * 100_000,
        '[{"description": "a", "weight": ' + "9" * 5000,
    ],
)
def test_runaway_texts_are_rejected_in_time(text):
    assert parse(text).status == "rejected"


def test_mutated_texts_never_raise():
    rng = random.Random(0)
    pieces = ["[", "]", "{", "}", ",", '"', "\\", "\\u12", "<think>", "</think>", "null", "1e999", "NaN", "\x00", "é"]
    seen = set()
    for _ in range(3000):
        text = list(f"Well. ```json\n{ARRAY}\n```")
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.choice((0, 1, 1, 30))] = rng.choice(pieces)
        parsed = parse("".join(text))
        assert (parsed.rubric is None) == (parsed.status == "rejected") and parsed.reason
        seen.add(parsed.status)
    assert seen == {"strict", "salvaged", "rejected"}


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "met, expected",
    [
        ((True, True, False), 1.0),
        ((True, False, False), 5 / 9),
        ((True, True, True), 8 / 9),
        ((False, False, True), -1 / 9),
        ((False, False, False), 0.0),
    ],
)
def test_score_is_weight_met_over_positive_weight(met, expected):
    assert scoring.score(EXPECTED, met) == pytest.approx(expected)


def test_score_checks_its_input():
    with pytest.raises(ValueError, match="2 judgements for 3"):
        scoring.score(EXPECTED, (True, True))
    with pytest.raises(RubricError, match="no_positive_weight"):
        scoring.score(rubric_of("A.", kind="Pitfall"), (True,))


def test_f1():
    truth = rubric_of("Alpha.", "Beta.", "Gamma.")
    assert scoring.f1(truth, truth) == 1.0
    assert scoring.f1(rubric_of("alpha", "Delta."), truth) == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert scoring.f1(rubric_of("Delta."), truth) == 0.0
    assert scoring.f1(None, truth) == 0.0
    assert scoring.f1(rubric_of("Axe."), truth, key=lambda c: c.description[0]) == pytest.approx(0.5)


# --- variants --------------------------------------------------------------------------------------------------------

POOL = [
    (
        f"q{i}",
        Rubric(
            tuple(
                Criterion(f"T{i}{kind}", f"{kind} of question {i}.", schema.DEFAULT_WEIGHTS[kind], kind)
                for kind in ("Essential", "Essential", "Important", "Optional", "Pitfall")[i % 2 :]
            )
        ),
    )
    for i in range(20)
]


def test_generic_rubric_is_valid_and_fixed():
    rubric = variants.generic_rubric()
    assert schema.from_records(json.loads(schema.to_json(rubric))) == rubric == variants.generic_rubric()
    assert {c.kind for c in rubric.criteria} == set(schema.KINDS)


def test_random_rubric_is_never_the_question_s_own():
    drawn = [variants.random_rubric(POOL, seed=seed, id="q3") for seed in range(200)]
    assert POOL[3][1] not in drawn and len(set(drawn)) > 10
    assert drawn[:5] == [variants.random_rubric(POOL, seed=seed, id="q3") for seed in range(5)]
    assert len({variants.random_rubric(POOL, seed=0, id=f"q{i}") for i in range(20)}) > 5
    with pytest.raises(ValueError, match="no question other"):
        variants.random_rubric(POOL[3:4], seed=0, id="q3")
    assert variants.random_rubric(POOL[3:5], seed=0, id="q3") == POOL[4][1]


@pytest.mark.parametrize("fraction, replaced", [(0.0, 0), (0.1, 1), (0.5, 2), (1.0, 4)])
def test_noisy_replaces_a_fraction_in_place(fraction, replaced):
    own = POOL[3][1]
    for seed in range(20):
        noisy = variants.noisy(own, POOL, seed=seed, id="q3", fraction=fraction)
        changed = [(a, b) for a, b in zip(own.criteria, noisy.criteria, strict=True) if a != b]
        assert len(changed) == replaced
        assert all("question 3." not in b.description for _, b in changed)
        assert all((a.kind, a.weight) == (b.kind, b.weight) for a, b in changed)
        assert len({c.description for c in noisy.criteria}) == len(own)
        assert noisy == variants.noisy(own, POOL, seed=seed, id="q3", fraction=fraction)


def test_noisy_depends_on_seed_and_id_and_checks_its_input():
    own = POOL[3][1]
    assert len({variants.noisy(own, POOL, seed=seed, id="q3") for seed in range(10)}) > 5
    assert len({variants.noisy(own, POOL, seed=0, id=f"x{i}") for i in range(10)}) > 5
    with pytest.raises(ValueError, match="fraction"):
        variants.noisy(own, POOL, seed=0, id="q3", fraction=1.5)
    with pytest.raises(ValueError, match="no criterion"):
        variants.noisy(own, [("other", own)], seed=0, id="q3")


def test_reduced_keeps_a_part_in_order_with_a_positive_weight():
    rubric = Rubric((*rubric_of("P1.", "P2.", "P3.", kind="Pitfall").criteria, *rubric_of("A.", "B.").criteria))
    for seed in range(50):
        for keep, size in ((1, 1), (2, 2), (0.5, 3), (0.2, 1), (1.0, 5), (9, 5)):
            kept = variants.reduced(rubric, seed=seed, id="q", keep=keep).criteria
            assert len(kept) == size and any(c.weight > 0 for c in kept)
            assert [c for c in rubric.criteria if c in kept] == list(kept)
    assert len({variants.reduced(rubric, seed=seed, id="q", keep=2) for seed in range(50)}) > 3
    assert variants.reduced(rubric, seed=1, id="q") == variants.reduced(rubric, seed=1, id="q")
    for keep in (0, -1, 1.5, 0.0):
        with pytest.raises(ValueError, match="keep"):
            variants.reduced(rubric, seed=0, id="q", keep=keep)


# --- cache -----------------------------------------------------------------------------------------------------------


def written(key, text):
    return cache.Written(key, text, parse(text))


def test_keys_tell_circumstances_apart():
    base = {
        "checkpoint": "run@100",
        "prompt": [1, 2, 3],
        "sampling": {"temperature": 1.2, "top_k": 20},
        "attempt": 0,
        "seed": 7,
    }
    assert cache.key_of(**base) == cache.key_of(
        **base | {"sampling": {"top_k": 20, "temperature": 1.2}, "prompt": (1, 2, 3)}
    )
    changes = (
        {"checkpoint": "run@200"},
        {"prompt": [1, 2]},
        {"prompt": "1 2 3"},
        {"sampling": {}},
        {"attempt": 1},
        {"seed": 8},
    )
    assert len({cache.key_of(**base), *(cache.key_of(**base | change) for change in changes)}) == 1 + len(changes)


def test_cache_survives_reopening(tmp_path):
    path = tmp_path / "deep" / "rubrics.jsonl"
    held = cache.RubricCache(path)
    assert len(held) == 0 and held.get("a") is None
    batch = [written("a", ARRAY), written("b", ARRAY[:-1] + " \ud800 é\u2028"), written("c", "no")]
    held.put_many(batch)
    held.put_many([written("a", "another text for the same key")])
    again = cache.RubricCache(path)
    assert [again.get(w.key) for w in batch] == [held.get(w.key) for w in batch] == batch
    assert dict(again.counts) == dict(held.counts) == {"strict": 1, "salvaged": 1, "rejected": 1}
    assert len(again) == 3 and "a" in again and "d" not in again and again.torn_lines == 0
    assert len(path.read_bytes().splitlines()) == 3


def test_a_torn_last_line_is_cut_off_and_counted(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    cache.RubricCache(path).put_many([written("a", ARRAY), written("b", "no")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first + 1, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        held = cache.RubricCache(path)
        assert (len(held), held.torn_lines) == (1, 1) and path.read_bytes() == whole[:first]
        held.put_many([written("b", "no")])
        assert path.read_bytes() == whole
        again = cache.RubricCache(path)
        assert (len(again), again.torn_lines) == (2, 0)
    path.write_bytes(whole + b"\0" * 40)
    assert (len(cache.RubricCache(path)), path.read_bytes()) == (2, whole)


def test_a_bad_line_in_the_middle_is_the_user_s_to_mend(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    cache.RubricCache(path).put_many([written("a", ARRAY), written("b", "no")])
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"rubrics.jsonl:1: .*remove this line"):
        cache.RubricCache(path)


def test_parsed_code_is_the_reason_s_head():
    assert parsing.Parsed(None, "rejected", "too_few: 2 usable: really").code == "too_few"
