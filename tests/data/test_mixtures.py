"""Mixtures: how a path names several sources, what is read, and the order in which a run uses their rows."""

import dataclasses
import json

import numpy as np
import pytest

from rcsd_jax.data import sources
from rcsd_jax.data.batches import in_order, mixed
from rcsd_jax.data.mixtures import Part, parts_of
from rcsd_jax.host.errors import UserError
from rcsd_jax.run import loop
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings import keys
from tests.chat_templates import tokenizer_with
from tests.settings_for_tests import settings_of


@pytest.fixture
def files(tmp_path):
    """Two files with 30 and 4 rows, of which the ids are the same."""
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, count in zip(paths, (30, 4), strict=True):
        rows = [{"id": i, "question": f"{path.stem}{i}?", "reference": "R"} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


@pytest.mark.parametrize(
    "path, parts",
    [
        ("a.jsonl", [("a.jsonl", None, "")]),
        ("a.jsonl:0.5", [("a.jsonl:0.5", None, "")]),  # one source: nothing to share
        ("a.jsonl, b.parquet", [("a.jsonl", None, "a"), ("b.parquet", None, "b")]),
        ("x/a.jsonl:7,y/a.jsonl:3,z/a.jsonl:1.", [("x/a.jsonl", 7, "a"), ("y/a.jsonl", 3, "a_2"), ("z/a.jsonl", 1, "a_3")]),
        ("hub:o/My-Set:main#train[:10%]:.5,tfds:gsm8k:1", [("hub:o/My-Set:main#train[:10%]", 0.5, "My_Set"), ("tfds:gsm8k", 1, "gsm8k")]),
        ("tfds:set/config:1.0.0,a.jsonl", [("tfds:set/config:1.0.0", None, "config"), ("a.jsonl", None, "a")]),
        ("stage1:0.5,stage2:0.5", [("stage1", 0.5, "stage1"), ("stage2", 0.5, "stage2")]),
    ],
)  # fmt: skip
def test_paths(path, parts):
    assert parts_of(path) == [Part(*part) for part in parts]


def test_a_file_with_a_comma_in_its_name_is_one(tmp_path):
    path = tmp_path / "a,b.jsonl"
    path.write_text('{"question": "Q"}\n')
    assert parts_of(str(path)) == [Part(str(path), None, "")] and sources.read(str(path))[0].source == ""


@pytest.mark.parametrize(
    "path, problem",
    [("a.jsonl,", "without a path"), ("a.jsonl:0,b.jsonl:1", "gives a.jsonl no share"), ("a.jsonl:1,b.jsonl", "gives b.jsonl no share, but")],
)  # fmt: skip
def test_paths_that_say_too_little(path, problem):
    config = keys.stage()
    config.data.path = path
    with pytest.raises(UserError, match=f"'data.path' = '{path}': .*{problem}"):
        settings_of(config)


def test_rows_know_their_source(files):
    accounts = []
    examples = sources.read(",".join(map(str, files)), tell=accounts.append)
    assert [(e.source, e.id) for e in examples[29:31]] == [("a", "a/29"), ("b", "b/0")] and len(examples) == 34
    assert [account.rows for account in accounts] == [30, 4] and len({e.id for e in examples}) == 34


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.05, 0.95), (99, 1)])
def test_every_beginning_holds_the_shares(shares):
    order = mixed([range(30), range(100, 104)], shares=shares, seed=3)
    seen = [order[i] for i in range(120)]
    for n in range(1, 121):
        assert abs(sum(x < 100 for x in seen[:n]) - n * shares[0] / sum(shares)) <= 1
    for part, count in ((0, 30), (1, 4)):  # each source's own order, epoch after epoch
        mine = [x for x in seen if (x >= 100) == part]
        for epoch in range(len(mine) // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count])) == count


def test_a_mixture_depends_on_its_place_alone():
    make = lambda seed: mixed([range(30), range(100, 104)], shares=(0.7, 0.3), seed=seed)
    first, again, other = make(1), make(1), make(2)
    seen = [first[i] for i in range(60)]
    assert [again[i] for i in reversed(range(60))] == seen[::-1] and [other[i] for i in range(60)] != seen
    assert [x for x in seen if x < 100][:30] == [in_order(range(30), seed=1)[i] for i in range(30)]
    with pytest.raises(UserError, match="at least one example"):
        mixed([range(3), []], shares=(1, 1), seed=0)


def started(files, shares, monkeypatch=None):
    config = keys.stage()
    config.data.path = ",".join(
        f"{file}:{share}" if share else str(file) for file, share in zip(files, shares, strict=True)
    )
    config.teacher.fields = ("question", "reference")
    config.train.update(steps=10, batch_size=4)
    settings = settings_of(config)
    found = Rows(sources.read(config.data.path), tokenizer_with("qwen3"), settings)
    assert found.start(positions=10_000)
    return found


def taken(found, place, steps):
    ids = []
    for _ in range(steps):
        data, place = found.take(place, 4)
        ids += [example.id for example in data.examples]
    return ids, place


@pytest.mark.parametrize("at_start", [2048, 8])
def test_a_run_resumes_in_the_middle_of_a_mixture(files, monkeypatch, at_start):
    monkeypatch.setattr("rcsd_jax.run.rows.AT_START", at_start)
    whole, _ = taken(started(files, (0.5, 0.5)), 0, 20)
    assert sum(one.startswith("b/") for one in whole) == 40
    first, place = taken(started(files, (0.5, 0.5)), 0, 7)
    assert first + taken(started(files, (0.5, 0.5)), place, 13)[0] == whole


def test_without_shares_every_row_comes_once_in_an_epoch(files):
    ids, _ = taken(started(files, (None, None)), 0, 17)
    assert sorted(ids[:34]) == sorted(ids[34:68]) and len(set(ids)) == 34


def test_losses_are_logged_by_source(files):
    data, _ = started(files, (0.5, 0.5)).take(0, 4)
    completions = [e for e in data.examples for _ in (0, 1)]  # two of each row, which follow each other
    row_loss = np.arange(8.0)
    logged = loop._by_source({"row_loss": row_loss}, completions)
    of = {name: [2 * i + k for i, e in enumerate(data.examples) if e.source == name for k in (0, 1)] for name in "ab"}
    assert logged == {f"row_loss_{name}": np.mean(numbers) for name, numbers in of.items()} and len(of["a"]) == 4
    assert loop._by_source({}, [dataclasses.replace(e, source="") for e in completions]) == {}
