"""safetensors files: tensors mapped from a file, and a file written one tensor at a time.

The `safetensors` package serialises a whole file in memory, hence the few lines of the format here: 8 bytes with the length of
the header, a JSON header, then the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rcsd_jax.checkpoints.directory import INDEX, read_object
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class StoredTensor(NamedTuple):
    """One tensor in a file."""

    file: pathlib.Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """The tensor, read-only, mapped from the file: its pages leave memory with the array."""
        return np.memmap(self.file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


def list_tensors(directory: pathlib.Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory's files, by name.

    Raises:
      UserError: there are no files, or one is missing, damaged, or lacks a tensor that the index lists.
    """
    index = directory / INDEX
    if (directory / "model.safetensors").is_file():
        return _read_header(directory / "model.safetensors")
    if not index.is_file():
        raise UserError(
            f"neither model.safetensors nor {INDEX} is here",
            remedy="convert the weights with transformers' save_pretrained",
            file=directory,
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError("field is missing", remedy="download it again", file=index, field="weight_map")
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        stored |= _read_header(directory / shard)
    for name, shard in weight_map.items():
        if name not in stored:
            raise UserError(
                "tensor that the index lists is not in the file",
                remedy="download it again",
                file=directory / shard,
                field=name,
            )
    return stored


def _read_header(file: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if 8 + length <= size else None
    except FileNotFoundError:
        raise UserError("no such file", remedy="download the missing shard", file=file) from None
    except (struct.error, ValueError):
        header = None
    if not isinstance(header, dict):
        raise UserError("not a safetensors file, or cut short", remedy="download it again", file=file)
    header.pop("__metadata__", None)
    stored = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"dtype {entry['dtype']} is not supported",
                remedy="use a checkpoint that is not quantised",
                file=file,
                field=name,
            )
        if 8 + length + entry["data_offsets"][1] > size:
            raise UserError("file is cut short within this tensor", remedy="download it again", file=file, field=name)
        offset = 8 + length + entry["data_offsets"][0]
        stored[name] = StoredTensor(file, name, np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), offset)
    return stored


class NewTensor(NamedTuple):
    """One tensor to write."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(file: AnyPath, tensors: Sequence[NewTensor], values: Iterable[Any]) -> None:
    """Writes one file.

    Args:
      file: where.
      tensors: what is written, in order.
      values: the array of each, in the same order. Each is taken when it is written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for value in values:
            stream.write(np.ascontiguousarray(value).view(np.uint8).data)
