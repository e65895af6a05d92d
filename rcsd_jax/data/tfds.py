"""Examples from any data set of TensorFlow Datasets, read through its NumPy path: tensorflow itself is not needed.

TFDS reads ArrayRecord files (random access) without tensorflow. It also prepares data without tensorflow, if the builder does
not use it. Data prepared earlier as TFRecord must be prepared again as ArrayRecord.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcsd_jax.data import records
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError, first_line


def read_tfds(name: str, *, split: str, data_dir: str | Path | None = None, **settings: Any) -> list[Example]:
    """Reads one split; other arguments and errors as in `records.to_examples`. Bytes are decoded as UTF-8.

    A data set that is not under `data_dir` yet is downloaded and prepared there, as ArrayRecord. A record
    without an id gets "<name>:<row>", and rows are in the order of the prepared files, which is fixed.

    Args:
      name: a TFDS name, such as "gsm8k", "piqa" or "my_set/config:1.0.0".
      split: a split, or a slice of one such as "train[:10%]".
      data_dir: where TFDS keeps prepared data; None for its default.
      **settings: of `records.to_examples`.

    Raises:
      UserError: also for an unknown name or split, and data that cannot be prepared or read without tensorflow.
    """
    source, features = _open(name, split, None if data_dir is None else str(Path(data_dir).expanduser()))
    return records.to_examples(_rows(source, features), file=f"tfds:{name}[{split}]", origin=name, **settings)


def _open(name: str, split: str, data_dir: str | None) -> tuple[Sequence[Mapping], Any]:
    import tensorflow_datasets as tfds  # late: it takes seconds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            builder = tfds.builder(name, data_dir=data_dir, file_format=tfds.core.FileFormat.ARRAY_RECORD)
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        place = "" if data_dir is None else f" or under {data_dir}"
        problem = f"no such data set in TensorFlow Datasets{place}"
        remedy = "correct the name, or set data.tfds_dir to the folder that holds it"
        raise UserError(problem, remedy=remedy, field="data.path", value=name) from error
    except Exception as error:  # builders are third-party code: downloads, licences and missing packages fail here
        problem = f"TFDS cannot prepare it ({type(error).__name__}: {first_line(error, 120)})"
        remedy = "prepare it elsewhere with file_format='array_record' and set data.tfds_dir"
        raise UserError(problem, remedy=remedy, field="data.path", value=name) from error
    try:
        return builder.as_data_source(split=split), builder.info.features
    except NotImplementedError as error:
        problem = "prepared as TFRecord, which cannot be read without tensorflow"
        remedy = "prepare it again with file_format='array_record'"
        raise UserError(problem, remedy=remedy, file=builder.data_dir, field="data.path", value=name) from error
    except (ValueError, KeyError) as error:
        remedy = f"choose among {', '.join(builder.info.splits)}"
        problem = f"no such split of {name}"
        raise UserError(problem, remedy=remedy, field="data.split", value=split) from error


def _rows(source: Sequence[Mapping], features: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row in range(len(source)):
        yield row + 1, _plain(source[row], features)


def _plain(value: Any, feature: Any) -> Any:
    """NumPy values and bytes as Python values; TFDS's columns of a sequence of records as a list of records."""
    import tensorflow_datasets as tfds  # late, as above

    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _plain(value[key], feature[key]) for key in feature}
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [_plain(item, inner) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")  # invalid UTF-8 is refused later, if it is a field's text
    if isinstance(value, (np.generic, np.ndarray)):
        plain = value.tolist()
        return plain.decode("utf-8", "surrogateescape") if isinstance(plain, bytes) else plain
    return value
