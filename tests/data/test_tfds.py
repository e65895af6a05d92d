"""Any TFDS name, read without tensorflow: a small builder is written, prepared and read here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rcsd_jax.data import tfds as tfds_source
from rcsd_jax.data.records import to_examples
from rcsd_jax.data.tfds import read_tfds
from rcsd_jax.host.errors import UserError
from rcsd_jax.rubrics import schema

RUBRIC = ["Essential Criteria: A.", "Important: B.", "Pitfall Criteria: C."]
OBJECTS = [
    {"title": f"T{i}", "description": f"Number {i}.", "weight": weight} for i, weight in enumerate((5.0, 4.0, -1.0))
]


class SmallScience(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Five questions; not registered, so reading finds it only by its files, as for a user's own data."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        objects = {"title": features.Text(), "description": features.Text(), "weight": np.float32}
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "query": features.Text(),
                    "solution": features.Text(),
                    "rubric_list": features.Sequence(features.Text()),
                    "graded": {"objects": features.Sequence(objects)},
                    "level": np.int64,
                    "values": features.Tensor(shape=(2,), dtype=np.float32),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "query": f"What is π·{i}?",
                    "solution": f"{i} π",
                    "rubric_list": RUBRIC,
                    "graded": {"objects": OBJECTS},
                    "level": i,
                    "values": np.array([i, 0.5], np.float32),
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    SmallScience(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_a_split_becomes_examples(data_dir):
    examples = read_tfds("small_science", split="train", data_dir=data_dir, require=("question", "reference", "rubric"))
    assert {example.question for example in examples} == {f"What is π·{i}?" for i in range(5)}
    assert [example.id for example in examples] == [f"small_science:{row}" for row in range(1, 6)]
    example = next(example for example in examples if example.extra["level"] == 3)
    assert (example.reference, example.rubric) == ("3 π", schema.from_records(RUBRIC))
    assert example.origin == "tfds:small_science[train]:" + example.id.split(":")[1]
    assert example.extra["values"] == [3.0, 0.5]
    assert example.extra["graded"] == {"objects": OBJECTS}
    json.dumps(dict(example.extra))
    assert examples == read_tfds("small_science", split="train", data_dir=data_dir)


def test_slices_and_explicit_columns(data_dir):
    examples = read_tfds("small_science", split="train[:2]", data_dir=data_dir, fields={"rubric": "graded.objects"})
    assert len(examples) == 2
    assert examples[0].rubric == schema.from_records(OBJECTS)
    assert len(read_tfds("small_science:1.0.0", split="train+test", data_dir=data_dir)) == 7


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"name": "small_sience"}, ["data.path", "'small_sience'", "no such data set", "data.tfds_dir"]),
        ({"split": "validation"}, ["data.split", "'validation'", "train, test"]),
        ({"split": "train[:"}, ["data.split", "'train[:'", "train, test"]),
        ({"fields": {"question": "text"}}, ["tfds:small_science[train]:1", "'text'", "data.fields.question", "query"]),
        ({"fields": {"rubric": "graded"}}, ["keys objects", 'data.fields.rubric="graded.objects"']),
        ({"require": ("answer",)}, ["no answer", "final_answer, answer"]),
    ],
)
def test_errors_name_the_remedy(data_dir, options, parts):
    with pytest.raises(UserError) as caught:
        read_tfds(**{"name": "small_science", "split": "train", "data_dir": data_dir} | options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_bytes_that_are_no_text_are_refused_where_they_are_read():
    records = [(1, {"question": tfds_source._plain(b"caf\xc3\xa9", None), "image": tfds_source._plain(b"\xff", None)})]
    assert to_examples(records, file="f", origin="f")[0].question == "café"
    records = [(7, {"question": tfds_source._plain(b"caf\xe9", None)})]
    with pytest.raises(UserError, match="f:7: field 'question' = .*a byte that is not UTF-8, at character 3"):
        to_examples(records, file="f", origin="f")


def test_data_prepared_as_tfrecord_is_refused(data_dir, tmp_path):
    info = data_dir / "small_science" / "1.0.0" / "dataset_info.json"
    for file in info.parent.iterdir():
        target = tmp_path / "small_science" / "1.0.0" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (tmp_path / "small_science" / "1.0.0" / "dataset_info.json").write_text(
        info.read_text().replace('"array_record"', '"tfrecord"')
    )
    with pytest.raises(UserError, match="prepared as TFRecord.*array_record"):
        read_tfds("small_science", split="train", data_dir=tmp_path)


def test_tensorflow_is_not_imported(data_dir):
    code = f"""
import sys
from rcsd_jax.data.tfds import read_tfds
print(len(read_tfds("small_science", split="test", data_dir={str(data_dir)!r})), "tensorflow" in sys.modules)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", "False"], done.stderr
