"""Properties of rubrics, whatever a model writes or a row holds; and what the other property tests share.

Each property is tried on some hundred inputs, and under `-m slow` on more, always the same; with NEW_INPUTS=1 in the
environment on others every time. With THOROUGH=1 all files together try 100,000: 40,000 here, 15,000 in
`test_properties_contexts.py`, 19,000 in `test_properties_answers.py`, 26,000 in `test_properties_data.py`; otherwise an
eighth of them, the first ones.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rcsd_jax.rubrics import parsing, schema
from rcsd_jax.rubrics.cache import RubricCache, Written
from rcsd_jax.rubrics.schema import RubricError, from_records, to_json

THOROUGH = "THOROUGH" in os.environ


def inputs(quick, slow):
    """Parametrizes `count`: how many inputs a test tries, in the default suite and in the slow one."""
    slow = slow if THOROUGH else slow // 8
    return pytest.mark.parametrize("count", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def holds(check, count, *strategies):
    """Calls `check` with `count` generated inputs."""
    chosen = settings(
        max_examples=count,
        deadline=None,
        derandomize="NEW_INPUTS" not in os.environ,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(*strategies)(check))()


# --- what comes in -----------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
TEXT = st.text(max_size=20)


def made_of(*pieces, text=ANY_TEXT, most=12):
    """Texts of these pieces and any others, in any order."""
    return st.lists(st.one_of(st.sampled_from(pieces), text), max_size=most).map("".join)


DEPTHS = st.sampled_from((1, 50, 900, 960, 980, 1000, 3000))  # Python goes 1000 calls deep


def nested(opening, closing):
    return DEPTHS.map(lambda depth: depth * opening + "1" + depth * closing)


DEEP = st.one_of(nested("[", "]"), nested('{"a":', "}"))
NUMBERS = st.one_of(
    st.integers(-12, 12), st.floats(), st.sampled_from((10**4000, -(10**4299), 2_000_000, 0, -0.0, 1e308, 5e-324))
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, ANY_TEXT)
VALUES = st.recursive(
    SCALARS, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(ANY_TEXT, x, max_size=3)), max_leaves=6
)
DESCRIPTIONS = made_of(
    "Essential", "essential criteria", "Pitfall Criterion", "Important", "mınor", "Key", ":", "**", "*", " ", "\n", "\\",
    "\\frac", "\\times", "\\(", '"', "[", "{", ", ", "States 5", "x", most=6,
)  # fmt: skip
WEIGHTS = st.one_of(
    NUMBERS, st.sampled_from(("5", "-3", "2000000", "8/10", "5 points", "critical", "Pitfall", "", "0"))
)
RECORDS = st.one_of(
    DESCRIPTIONS,
    VALUES,
    st.fixed_dictionaries(
        {"description": DESCRIPTIONS},
        optional={
            "title": st.one_of(TEXT, VALUES),
            "weight": st.one_of(WEIGHTS, VALUES),
            "class": st.one_of(st.sampled_from(("Essential", "pitfall", "optional thing")), VALUES),
        },
    ),
    st.dictionaries(
        st.sampled_from(("Title", " description", "POINTS", "criterion", "rubric_item", "category", "weight")), VALUES
    ),
)
USABLE = st.fixed_dictionaries(  # a record that can be used and scored, so that few inputs are drawn in vain
    {"description": DESCRIPTIONS.map("States {}".format), "weight": st.sampled_from((1, 5, "5", "8/10", 0.5))},
    optional={"title": st.one_of(TEXT, VALUES)},
)


@st.composite
def rubrics(draw):
    """One to four records, a usable one among them."""
    records = draw(st.lists(RECORDS, max_size=3))
    records.insert(draw(st.integers(0, len(records))), draw(USABLE))
    return records


RUBRIC_PIECES = (
    "[", "]", "{", "}", "[{", "}]", '["', '"]', '"title": ', '"description": ', '"weight": 5', '"Essential Criteria: a"',
    "Essential Criteria: ", ",", ",}", ",]", ":", '"', "\\", "\\u", "\\frac", "<think>", "</think>", "```json\n", "\n", "NaN",
    '{"description": "a", "weight": 1}', '{"criterion": "b", "points": "critical"}', "crıtical: c",
)  # fmt: skip


def rubric_of(records):
    """The rubric of the records that can be used, if there are any."""
    usable = []
    for record in records:
        try:
            usable.append(schema.criterion_from(record, scale=schema.weight_scale(records)))
        except RubricError:
            continue
    assume(usable)
    return schema.Rubric(schema.without_repeats(usable))


# --- rubrics -----------------------------------------------------------------------------------------------------------


def check_parsed(text):
    parsed = parsing.parse(text, min_criteria=1)
    assert (parsed.rubric is None) == (parsed.status == "rejected")
    assert parsed == parsing.parse(text, min_criteria=1) and parsed.code in parsed.reason
    if parsed.rubric is not None:
        assert 1 <= len(parsed.rubric) <= schema.MAX_CRITERIA


@inputs(400, 24_950)
def test_no_text_stops_the_parser(count):
    holds(
        check_parsed, count, st.one_of(made_of(*RUBRIC_PIECES), DEEP.map('[{{"title": {}, "weight": 1}}, "a"'.format))
    )


@inputs(3, 50)
def test_no_depth_stops_the_parser(count):
    holds(check_parsed, count, st.one_of(nested('[{"a":', "}]"), nested('["', "")))


@inputs(200, 5_000)
def test_no_records_stop_the_parser(count):
    def check(records, cut):
        text = json.dumps(records)
        check_parsed(text)
        check_parsed(text[: int(cut * len(text))])
        try:
            from_records(records)
        except RubricError as error:
            assert error.code and error.detail

    holds(check, count, st.lists(RECORDS, max_size=5), st.floats(0, 1))


@inputs(200, 5_000)
def test_a_rubric_is_read_as_it_was_written(count):
    def check(records):
        rubric = rubric_of(records)
        assume(any(criterion.weight > 0 for criterion in rubric.criteria))  # else there is nothing to score
        bounds = dict(min_criteria=1, max_criteria=len(rubric))
        assert from_records(json.loads(to_json(rubric)), **bounds) == rubric
        strings = from_records(json.loads(to_json(rubric, style="strings")), **bounds)
        assert [(c.kind, c.description) for c in strings.criteria] == [(c.kind, c.description) for c in rubric.criteria]
        text = to_json(rubric)
        # A model that writes "\beta" means LaTeX, and tags are of its thinking.
        if "\\b" not in text and "<" not in text:
            assert parsing.parse(text, **bounds).rubric == rubric

    holds(check, count, rubrics())


@inputs(100, 3_000)
def test_the_order_of_keys_changes_nothing(count):
    def check(records, random):
        shuffled = []
        for record in records:
            if isinstance(record, dict):
                assume(len({str(key).strip().casefold() for key in record}) == len(record))
                keys = list(record)
                random.shuffle(keys)
                record = {key: record[key] for key in keys}
            shuffled.append(record)
        assert repr(rubric_of(records)) == repr(rubric_of(shuffled))

    holds(check, count, rubrics(), st.randoms())


@inputs(50, 2_000)
def test_a_cache_gives_back_what_it_was_given(count, tmp_path):
    path = tmp_path / "rubrics.jsonl"

    def check(texts):
        path.unlink(missing_ok=True)
        batch = [Written(str(i), text, parsing.parse(text, min_criteria=1)) for i, text in enumerate(texts)]
        RubricCache(path).put_many(batch)
        assert RubricCache(path).held() == batch

    rubrics = st.lists(RECORDS, min_size=1, max_size=3).map(json.dumps)
    # As tokenizers write it: no halves of surrogate pairs.
    holds(check, count, st.lists(st.one_of(made_of(*RUBRIC_PIECES, text=TEXT), rubrics), max_size=3))


@pytest.mark.parametrize(
    "record",
    [
        {"description": "**States** 5", "weight": 5},  # bold marks that are the description's own
        {"description": "a", "weight": "2000000"},  # more than a weight may be
        "crıtical: a",  # no ASCII letters
        {"description": "**Essential: States** 5"},
    ],
)
def test_records_that_were_written_otherwise_than_read(record):
    try:
        rubric = from_records([record], min_criteria=1)
    except RubricError:
        return
    assert from_records(json.loads(to_json(rubric)), min_criteria=1) == rubric


def test_bold_classes():
    for text in (
        "**Essential Criteria:** A b",
        "**Essential**: A b",
        "** essential criteria : ** A b",
        "Essential**: A b",
    ):
        assert schema.split_class(text) == ("Essential", "A b")
    assert schema.split_class("Essential: **A** b") == ("Essential", "**A** b")


def test_a_loop_of_unfinished_arrays_takes_no_minutes():
    import time

    began = time.process_time()
    parsing.parse('[{"a": 1,}' * 2000)
    assert time.process_time() - began < 20
