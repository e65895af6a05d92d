"""Properties of loading data, whatever the bytes; see `test_properties.py`."""

import datetime
import decimal
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from rcsd_jax.data.jsonl import read_jsonl
from rcsd_jax.data.parquet import read_parquet
from rcsd_jax.data.records import ALIASES
from rcsd_jax.evaluate.benchmarks import BENCHMARKS, questions
from rcsd_jax.host.errors import UserError
from tests.test_properties import ANY_TEXT, DEEP, DESCRIPTIONS, RECORDS, TEXT, VALUES, holds, inputs, made_of

COLUMNS = sorted({alias for aliases in ALIASES.values() for alias in aliases})
RUBRICS = st.one_of(st.lists(RECORDS, max_size=3), st.lists(RECORDS, max_size=3).map(json.dumps), DEEP, VALUES)
ROWS = st.fixed_dictionaries(
    {"question": st.one_of(TEXT, TEXT.map("x{}".format), VALUES)},
    optional={
        "id": VALUES,
        "rubric": RUBRICS,
        "answer": VALUES,
        "reference": st.one_of(ANY_TEXT, VALUES),
        "other": VALUES,
    },
)
LINES = st.one_of(
    ROWS.map(json.dumps).map(str.encode),
    ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    VALUES.map(json.dumps).map(str.encode),
    DEEP.map('{{"question": {}}}'.format).map(str.encode),
    st.binary(max_size=30),
    st.sampled_from((
        b'{"question": "a", "question": "b"}', b'{"question": NaN, "id": Infinity}', b'{"question": "\\ud800"}', b"\xef\xbb\xbf{}",
        b'{"question": "\xff"}', b"\xff\xfe{\x00}\x00", b"   ", b"\r", b"\x00", b"{'question': 1}", b'{"question": "a"} x',
        b'{"question": "a", "id": ' + b"9" * 5000 + b"}", b'{"question": "a", "answer": 1e999}', b"null", b"[]", b"{}",
    )),
)  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from((*ALIASES, "nothing")),
    st.one_of(st.sampled_from(("question", "other", "rubric.0", "rubric.²", "rubric.0.title", "answer.a", "")), TEXT),
    max_size=2,
)
REQUIRED = st.lists(st.sampled_from((*ALIASES, "nothing")), max_size=2)


def read_or_refused(read, path, **settings):
    """The examples, or the UserError, which is one line and names the file; the same if it is read again."""
    try:
        examples = read(path, **settings)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        if error.field is None or not error.field.startswith("data.fields") and error.field not in ("nothing",):
            assert str(path) in str(error)
        with pytest.raises(UserError) as again:
            read(path, **settings)
        assert str(again.value) == str(error)
        return error
    assert repr(examples) == repr(read(path, **settings))
    assert len({example.id for example in examples}) == len(examples) > 0
    for example in examples:
        for text in (example.id, example.question, example.reference, example.answer):
            assert text is None or text.encode() and text == text.strip()
    return examples


@inputs(300, 12_000)
def test_no_bytes_stop_the_reader(count, tmp_path):
    path = tmp_path / "rows.jsonl"

    def check(lines, end, mark, fields, require):
        path.write_bytes(mark + end.join(lines))
        read_or_refused(read_jsonl, path, fields=fields, require=require, min_criteria=1)

    ends, marks = st.sampled_from((b"\n", b"\r\n", b"\n\n")), st.sampled_from((b"", b"\xef\xbb\xbf"))
    holds(check, count, st.lists(LINES, max_size=4), ends, marks, FIELDS, REQUIRED)


BAD_LINES = {
    "no JSON": b"{'question': 1}",
    "cut": b'{"question": "a',
    "no UTF-8": b'{"question": "\xff"}',
    "no object": b'["question"]',
    "no question": b'{"answer": "a"}',
    "empty": b'{"question": "  "}',
    "a number": b'{"question": 5}',
    "half a pair": b'{"question": "\\udc00"}',
    "bad rubric": b'{"question": "a", "rubric": ["no class"]}',
    "deep": b'{"question": "a", "rubric": ' + json.dumps("[" * 5000).encode() + b"}",
    "an id again": b'{"question": "a", "id": "first"}',
}


@inputs(200, 4_000)
def test_an_error_names_the_row(count, tmp_path):
    path = tmp_path / "rows.jsonl"

    def check(before, after, blanks, end, case):
        good = [json.dumps({"question": f"x{text}"}).encode() for text in (*before, *after)]
        first = b'{"question": "q", "id": "first"}'
        lines = [first, *good[: len(before)], *[b" "] * blanks, BAD_LINES[case], *good[len(before) :]]
        path.write_bytes(end.join(lines))
        error = read_or_refused(read_jsonl, path)
        assert isinstance(error, UserError) and error.row == 2 + len(before) + blanks, error
        assert f"{path}:{error.row}: " in str(error)

    texts = st.lists(TEXT, max_size=4)
    holds(
        check,
        count,
        texts,
        texts,
        st.integers(0, 2),
        st.sampled_from((b"\n", b"\r\n")),
        st.sampled_from(sorted(BAD_LINES)),
    )


@inputs(100, 2_000)
def test_good_rows_come_back_whatever_the_line_ends(count, tmp_path):
    path = tmp_path / "rows.jsonl"

    def check(rows, end, mark):
        lines = [json.dumps({"question": q, "reference": r, "more": more}) for q, r, more in rows]
        path.write_bytes(mark + end.join(line.encode() for line in lines))
        examples = read_or_refused(read_jsonl, path)
        assert [(e.question, e.reference) for e in examples] == [(q.strip(), r.strip()) for q, r, _ in rows]
        assert [e.id for e in examples] == [f"rows:{i}" for i in range(1, len(rows) + 1)]
        assert repr([e.extra["more"] for e in examples]) == repr([more for *_, more in rows])

    text = made_of("\n", "\r", "\u2028", "\\", '"', "\x00", "{", text=TEXT).filter(str.strip)
    json_values = VALUES.map(json.dumps).map(json.loads)
    rows = st.lists(st.tuples(text, text, json_values), min_size=1, max_size=4)
    holds(check, count, rows, st.sampled_from((b"\n", b"\r\n")), st.sampled_from((b"", b"\xef\xbb\xbf")))


@inputs(100, 4_000)
def test_no_column_stops_a_benchmark(count):
    from rcsd_jax.data.records import to_examples

    values = st.one_of(
        VALUES, st.sampled_from(("²", "9" * 5000, "0", "1", "٣", "yes", "\ud800")), st.lists(TEXT, max_size=2)
    )

    def check(name, columns, context):
        benchmark = BENCHMARKS[name]
        record = {"question": "q", "rubric": ["Essential: a"], "answer": "1"} | columns | {"context": context}
        try:
            examples = to_examples([(1, record)], file="f", origin="f", require=("question",), min_criteria=1)
            (asked,) = questions(benchmark, examples, seed=0)
        except UserError:
            return
        assert asked.question.encode()
        if benchmark.options or benchmark.choices:
            assert 0 <= asked.extra["correct"] < len(asked.extra["options"])

    names = [name for name, benchmark in BENCHMARKS.items() if benchmark.options or benchmark.choices or benchmark.unit]
    columns = {
        c for name in names for c in (*BENCHMARKS[name].options, BENCHMARKS[name].correct, BENCHMARKS[name].unit) if c
    }
    contexts = st.one_of(values, st.fixed_dictionaries({"contexts": values}))
    holds(check, count, st.sampled_from(names), st.fixed_dictionaries(dict.fromkeys(sorted(columns), values)), contexts)


BROKEN_TEXT = pyarrow.array([b"\xff\xfe", b"a"]).cast(pyarrow.string(), safe=False)
FAR = pyarrow.array([2**62, -(2**62)], pyarrow.int64())
WRITABLE = DESCRIPTIONS.map(lambda text: text.encode("utf-8", "replace").decode())  # pyarrow makes no others
COLUMN_VALUES = st.one_of(
    st.lists(st.one_of(st.none(), TEXT), min_size=2, max_size=2).map(lambda x: pyarrow.array(x, pyarrow.string())),
    st.lists(WRITABLE.map("x{}".format), min_size=2, max_size=2).map(pyarrow.array),
    st.lists(st.one_of(st.none(), st.floats()), min_size=2, max_size=2).map(lambda x: pyarrow.array(x, pyarrow.float64())),
    st.lists(st.lists(WRITABLE.map("Essential: x{}".format), max_size=2), min_size=2, max_size=2).map(
        lambda x: pyarrow.array(x, pyarrow.list_(pyarrow.string()))
    ),
    st.sampled_from((
        BROKEN_TEXT, FAR, pyarrow.array([b"\xff", None]), pyarrow.array([None, None]), pyarrow.array([True, False]),
        FAR.cast(pyarrow.timestamp("s")), FAR.cast(pyarrow.timestamp("ns")), FAR.cast(pyarrow.timestamp("us", "Nowhere/None")),
        FAR.cast(pyarrow.duration("s")), pyarrow.array([2**31 - 1, -(2**31)], pyarrow.int32()).cast(pyarrow.date32()),
        pyarrow.array([decimal.Decimal("1.5"), None]), pyarrow.array([datetime.time(1), None]),
        pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())), pyarrow.array([{"a": {"b": None}}, None]),
        pyarrow.DictionaryArray.from_arrays([0, 1], BROKEN_TEXT), pyarrow.array(["1", "1"]),
    )),
)  # fmt: skip
TABLES = st.lists(
    st.tuples(st.one_of(st.sampled_from(("question", "question", "rubric", "id", "answer")), TEXT), COLUMN_VALUES),
    min_size=1,
    max_size=4,
)


def write_table(path, columns):
    table = pyarrow.Table.from_arrays([values for _, values in columns], names=[name for name, _ in columns])
    try:
        pyarrow.parquet.write_table(table, path)
    except (pyarrow.ArrowException, ValueError, OverflowError):  # of which no file can be made
        assume(False)


@inputs(50, 2_000)
def test_no_table_stops_the_reader(count, tmp_path):
    path = tmp_path / "rows.parquet"

    def check(columns):
        write_table(path, columns)
        found = read_or_refused(read_parquet, path, min_criteria=1)
        assert isinstance(found, UserError) or len(found) == 2

    holds(check, count, TABLES)


@inputs(50, 2_000)
def test_no_damage_to_a_table_stops_the_reader(count, tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"question": f"Why {i}?", "rubric": ["Essential: a"] * 3, "answer": str(i), "n": i} for i in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    whole = path.read_bytes()

    def check(where, new, cut):
        data = bytearray(whole[: int(cut * len(whole))])
        for at in where:
            at = int(at * len(data))
            data[at : at + len(new)] = new[: len(data) - at]
        path.write_bytes(data)
        read_or_refused(read_parquet, path, min_criteria=1)

    places = st.lists(st.floats(0, 1, exclude_max=True), max_size=2)
    holds(check, count, places, st.binary(min_size=1, max_size=4), st.one_of(st.just(1.0), st.floats(0, 1)))


@pytest.mark.parametrize("path", ["~nobody-of-this-name/rows", "/no/such/folder/rows", "/", "rows\x00"])
def test_no_path_stops_the_readers(path):
    for read, ending in ((read_jsonl, ".jsonl"), (read_parquet, ".parquet")):
        with pytest.raises(UserError):
            read(path + ending)
