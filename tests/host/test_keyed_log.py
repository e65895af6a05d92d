"""The log by key: what a kill, a crash, a bucket and other processes can do to it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.host.keyed_log import Codec, KeyedLog, key_of
from rcsd_jax.judge.asking import Answer
from rcsd_jax.judge.cache import AnswerCache
from rcsd_jax.rubrics.cache import RubricCache, text_key
from rcsd_jax.run.evaluation import open_unfinished, resumed
from rcsd_jax.sampling import SamplingConfig

ROOT = Path(__file__).parents[2]
NUMBERS = Codec("a number", "remove it", lambda value: {"value": value}, lambda record: record["value"] + 0)


def opened(path, **options):
    return KeyedLog(path, NUMBERS, **options)


def test_first_values_stay_and_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with opened(path) as log:
        assert not path.exists() and path.parent.is_dir()  # a run that made nothing leaves nothing
        log.put("b", 2)
        assert path.read_text() == '{"key": "b", "value": 2}\n'
        log.put_batch([("a", 1), ("b", 9), ("a", 8)])
        log.put_batch([])
    with opened(path) as log:
        assert list(log.items()) == [("b", 2), ("a", 1)] and log.torn_lines == 0
        assert len(log) == 2 and "a" in log and "c" not in log and log.get("c") is None
    assert len(path.read_text().splitlines()) == 2


def test_without_a_path_there_is_no_file():
    with opened(None) as log:
        log.put("a", 1)
        assert log.get("a") == 1 and log.path is None


def test_wherever_a_line_tears_it_is_cut_off_and_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    with opened(path) as log:
        log.put_batch([("a", 1), ("b", 2)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for left in [whole[:end] for end in range(first + 1, len(whole))] + [whole[:first] + b"\0" * 30]:
        path.write_bytes(left)
        with opened(path) as log:
            assert (len(log), log.torn_lines) == (1, 1) and path.read_bytes() == whole[:first]
            log.put("b", 2)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    ["{}\n", "[]\n", "\n", "no JSON\n", '{"key": 3, "value": 1}\n', '{"key": "a", "value": "b"}\n', '{"value": 1}'],
)
def test_other_lines_are_refused_as_they_are(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text('{"key": "z", "value": 0}\n' + line)
    with pytest.raises(UserError, match=r"log.jsonl:2: not a number \(.*\); remove it"):
        opened(path)
    assert path.read_text().endswith(line)


def test_one_at_a_time_where_that_is_asked(tmp_path):
    path = tmp_path / "log.jsonl"
    with opened(path, exclusive=True):
        assert path.exists()
        with pytest.raises(UserError, match="log.jsonl: another run has this file open"):
            opened(path, exclusive=True)
    opened(path, exclusive=True).close()
    with opened(path) as one, opened(path) as other:
        one.put("a", 1)
        other.put("b", 2)
    assert len(opened(path)) == 2


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*cannot be written"):
        opened(tmp_path / "file" / "log.jsonl")


def test_a_batch_outlasts_a_kill(tmp_path):
    code = """
        import os, signal, sys
        from tests.host.test_keyed_log import opened
        log = opened(sys.argv[1])
        log.put("a", 1)
        log.put_batch((f"b{i}", i) for i in range(3))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "log.jsonl"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], cwd=ROOT)
    assert dict(opened(path).items()) == {"a": 1, "b0": 0, "b1": 1, "b2": 2}


def test_keys():
    assert key_of("a", {"x": 1, "y": 2}, (1, 2)) == key_of("a", {"y": 2, "x": 1}, np.array([1, 2], np.int32))
    assert len({key_of(), key_of(""), key_of(1), key_of("1"), key_of([1]), key_of(1, 2), key_of([1, 2])}) == 7
    with pytest.raises(TypeError, match="object is not a JSON value"):
        key_of(object())


# --- files of earlier versions ----------------------------------------------------------------------------------------


def test_written_rubrics(tmp_path):
    lines = (
        '{"key": "4e5947f637724c8bf382357ff2849a59c5bce7796ce51fc449dea3db95a13ccd", "status": "strict", '
        '"reason": "ok: 1 criteria", "rubric": [{"description": "Essential Criteria: \\u00c9.", "weight": 10}], '
        '"text": "[\\"Essential Criteria: \\u00c9.\\"]"}\n'
        '{"key": "b", "status": "rejected", "reason": "no_array: no JSON array of objects or strings in 2 characters", '
        '"rubric": null, "text": "no"}\n'
    )
    (tmp_path / "rubrics.jsonl").write_text(lines)
    held = RubricCache(tmp_path / "rubrics.jsonl")
    key = text_key(checkpoint="8b", prompt=np.array([5, 6], np.int32), sampling={"top_k": 20}, attempt=1, seed=0)
    written = held.get(key)
    assert written.text == '["Essential Criteria: É."]' and written.parsed.rubric.criteria[0].weight == 10
    assert dict(held.counts) == {"strict": 1, "salvaged": 0, "rejected": 1}
    RubricCache(tmp_path / "again.jsonl").put_many(held.held())
    assert (tmp_path / "again.jsonl").read_text() == lines


def test_a_judge_s_answers(tmp_path):
    line = (
        '{"key": "957508746f4d8ca5d061e85b50d8efe03ed0a727d677635212ae7832f9dec575", "text": "yes\\n", "cut": true, '
        '"requests": 4, "input_tokens": 5, "output_tokens": 6, "uncounted": 0}\n'
    )
    (tmp_path / "verdicts.jsonl").write_text(line)
    answer = Answer("yes\n", cut=True, requests=4, input_tokens=5, output_tokens=6)
    key = key_of({"model": "wise", "extra": {"a": [1]}}, "é?", 2)
    with AnswerCache(tmp_path / "verdicts.jsonl") as held, AnswerCache(tmp_path / "again.jsonl") as again:
        assert held.get(key) == answer
        again.put(key, answer)
    assert (tmp_path / "again.jsonl").read_text() == line


def test_completions_of_an_unfinished_evaluation(tmp_path):
    line = (
        '{"key": "22b4c040cc9f3c9b5eb2182fb9ff8da80537ecc22337df876d4093d6f9d349c3", "tokens": [7, 8], "cut": true}\n'
    )
    (tmp_path / "unfinished.jsonl").write_text(line)
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.5, top_k=3, eos_ids=(1,))
    with open_unfinished(tmp_path / "unfinished.jsonl") as log:
        ((chosen, completions),) = resumed(None, log, sampling, [np.array([5, 6], np.int32)], [9])
    assert chosen == [0] and completions[0].tokens.tolist() == [7, 8] and completions[0].cut is True
