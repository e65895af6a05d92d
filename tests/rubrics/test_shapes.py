"""Rubrics of every shape in which rows hold them."""

import json

import pytest

from rcsd_jax.rubrics import schema, shapes
from rcsd_jax.rubrics.schema import RubricError
from rcsd_jax.rubrics.shapes import rubric_from

TEXTS = ("States 4 V.", "Names Ohm's law.", "Gives the unit.")


def read(value, **bounds):
    """(class, weight, title, description) of each criterion."""
    return [(c.kind, c.weight, c.title, c.description) for c in rubric_from(value, **bounds).criteria]


def of(weights, kinds, titles=("", "", ""), texts=TEXTS):
    return list(zip(kinds, weights, titles, texts, strict=True))


@pytest.mark.parametrize("description", ["description", "criterion", "criteria", "text", "requirement", "rubric_item"])
@pytest.mark.parametrize("weight", ["weight", "points", "score"])
def test_objects_under_any_of_their_keys(description, weight):
    rows = [{description: text, weight: w, "note": "x"} for text, w in zip(TEXTS, (10, 5, -8), strict=True)]
    assert read(rows) == of((10, 5, -8), ("Essential", "Important", "Pitfall"))
    assert [c.extra for c in rubric_from(rows).criteria] == [{"note": "x"}] * 3


def test_other_keys_are_kept_and_do_not_tell_criteria_apart():
    rows = [{"criterion": text, "points": 3, "tags": [f"axis:{i}"]} for i, text in enumerate(TEXTS)]
    tagged, plain = rubric_from(rows), rubric_from([{"criterion": text, "points": 3} for text in TEXTS])
    assert [c.extra["tags"] for c in tagged.criteria] == [["axis:0"], ["axis:1"], ["axis:2"]]
    assert tagged == plain and schema.to_json(tagged) == schema.to_json(plain)


@pytest.mark.parametrize("weights, read_as", [
    (("10", "-10", "2.5"), (10, -10, 2.5)),
    ((".5", "+1", "1e-1"), (0.5, 1, 0.1)),
    (("5 points", "8/10", "3pts"), (5, 8, 3)),
    ((230, 0.25, -124), (230, 0.25, -124)),
    (("Essential", "important", None), (10, 7, 7)),
])  # fmt: skip
def test_weights_of_any_scheme_and_form(weights, read_as):
    rows = [{"criterion": text, "points": w} for text, w in zip(TEXTS, weights, strict=True)]
    rubric = rubric_from(rows)
    assert [c.weight for c in rubric.criteria] == list(read_as)
    assert all((c.weight < 0) == (c.kind == "Pitfall") for c in rubric.criteria)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 0, "heavy", "nan", True, [5], {"a": 1}])
def test_a_weight_without_meaning_names_its_criterion(weight):
    rows = [{"criterion": text, "points": 3} for text in TEXTS]
    rows[1]["points"] = weight
    with pytest.raises(RubricError, match="bad_weight: criterion 2: weight"):
        rubric_from(rows)


def test_strings_without_a_class_weigh_alike():
    assert read(list(TEXTS)) == of((1, 1, 1), ["Important"] * 3)
    mixed = ["Essential Criteria: States 4 V.", *TEXTS[1:]]
    assert read(mixed) == of((10, 7, 7), ("Essential", "Important", "Important"))
    with pytest.raises(RubricError, match="no_class"):  # a model must keep to the form
        schema.from_records(list(TEXTS))


@pytest.mark.parametrize(
    "value, expected",
    [
        ({"Value": TEXTS[0], "Law": TEXTS[1], "Unit": TEXTS[2]}, of((7, 7, 7), ["Important"] * 3, ("Value", "Law", "Unit"))),
        ({TEXTS[0]: 5, TEXTS[1]: 3, TEXTS[2]: -2}, of((5, 3, -2), ("Essential", "Important", "Pitfall"))),
        (
            {"Value": {"description": TEXTS[0], "weight": 5}, "Law": {"criterion": TEXTS[1], "points": "3"}, TEXTS[2]: {"score": -2}},
            of((5, 3, -2), ("Essential", "Important", "Pitfall"), ("Value", "Law", "")),
        ),
        (
            {"essential": [TEXTS[0]], "Optional Criteria": [{"text": TEXTS[1], "weight": 2}], "Pitfalls": TEXTS[2]},
            of((10, 2, -9), ("Essential", "Optional", "Pitfall")),
        ),
        ({"criteria": list(TEXTS), "max_score": 3}, of((1, 1, 1), ["Important"] * 3)),
        ({"rubric": {"Value": TEXTS[0], "Law": TEXTS[1], "Unit": TEXTS[2]}}, of((7, 7, 7), ["Important"] * 3, ("Value", "Law", "Unit"))),
    ],
)  # fmt: skip
def test_objects(value, expected):
    assert read(value) == expected
    assert read(json.dumps(value)) == expected and read(repr(value)) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"1. {TEXTS[0]}\n2) {TEXTS[1]}\n3: {TEXTS[2]}", of((1, 1, 1), ["Important"] * 3)),
        (f"A good answer:\n\n- {TEXTS[0]}\n* {TEXTS[1]}\n• {TEXTS[2]}\n", of((1, 1, 1), ["Important"] * 3)),
        (
            f"1. {TEXTS[0]} [Hard Rule]\n2. {TEXTS[1]} [Principle]\n3. [hard rule] {TEXTS[2]}",
            of((10, 7, 10), ("Essential", "Important", "Essential")),
        ),
        (
            f"1. Essential Criteria: {TEXTS[0]}\n2. {TEXTS[1]} (5 points)\n3. {TEXTS[2]} [weight: -2]",
            of((10, 5, -2), ("Essential", "Essential", "Pitfall")),
        ),
        (
            f"## Essential Criteria\n- {TEXTS[0]}\n\n**Important:**\n- Names\n  Ohm's law.\n\nPitfalls\n- {TEXTS[2]}",
            of((10, 7, -9), ("Essential", "Important", "Pitfall")),
        ),
        (f"1. States\n   - 4 V.\n2. {TEXTS[1]}\n3. {TEXTS[2]}", of((1, 1, 1), ["Important"] * 3)),
    ],
)
def test_numbered_and_bulleted_texts(text, expected):
    assert read(text) == expected


def test_a_number_in_a_requirement_is_no_weight():
    assert read("- Gives 3 (three) of 5 [2].\n- B.\n- C.")[0] == ("Important", 1, "", "Gives 3 (three) of 5 [2].")


def test_json_in_strings():
    objects = [{"criterion": text, "points": 5} for text in TEXTS]
    expected = read(objects)
    assert read(json.dumps(objects)) == read([json.dumps(one) for one in objects]) == expected
    assert read(f"```json\n{json.dumps(objects)}\n```") == expected


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, "[]"])
def test_nothing_is_no_rubric(value):
    assert rubric_from(value) is None


@pytest.mark.parametrize(
    "value, code",
    [
        ({"GT": list(TEXTS), "learned": "raw"}, "several"),
        ({"first": json.dumps(list(TEXTS)), "second": "So: " + json.dumps(list(TEXTS))}, "several"),
        ({"a": True, "b": "B.", "c": "C."}, "several"),
        ("no rubric", "no_array"),
        (5, "not_a_list"),
        ([1, 2, 3], "bad_record"),
        (list(TEXTS[:2]), "too_few"),
        ({"description": TEXTS[0], "weight": 5}, "too_few"),
        ([f"Number {i}." for i in range(26)], "too_many"),
        ({text: -1 for text in TEXTS}, "no_positive_weight"),
    ],
)
def test_what_is_refused(value, code):
    with pytest.raises(RubricError) as error:
        rubric_from(value)
    assert error.value.code == code


def test_shapes_in_words():
    objects = [{"tags": [], "points": 5, "criterion": "A."}]
    assert shapes.described(objects) == "criterion, points"
    assert shapes.described(json.dumps(objects)) == "JSON: criterion, points"
    assert shapes.described({"rubrics": objects}) == "criterion, points"
    assert shapes.described([json.dumps(objects[0])]) == "criterion, points"
