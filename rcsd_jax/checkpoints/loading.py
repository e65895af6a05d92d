"""The config and parameters of a Hugging Face directory, read onto any devices.

One tensor of a file at a time is mapped and copied to its place in the stacked parameter. So the host holds at most the model
and one tensor.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rcsd_jax.checkpoints.directory import resolve
from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.fused_experts import taken_apart
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.safetensors import StoredTensor, list_tensors
from rcsd_jax.checkpoints.tensors import tensors_of_model
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import Path, leaf_at, tree_of
from rcsd_jax.models.parameters import Parameter

# Tensors that some exporters write and that hold nothing a load needs.
_REDUNDANT = re.compile(r"rotary_emb\.inv_freq$")
_TRANSPOSE_BLOCK = 64


def load_model(
    directory: str | os.PathLike,
    *,
    dtype: Any,
    param_dtype: Any = None,
    remat: str = "none",
    shardings: Any = None,
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Config and parameters of a Hugging Face directory.

    Args:
      directory: with config.json and model.safetensors, or the shards that model.safetensors.index.json lists; or a
        hub id, see `directory.resolve`.
      dtype: activation dtype.
      param_dtype: parameter dtype, to which other stored dtypes are cast; None for `dtype`.
      remat: see `DecoderConfig`.
      shardings: pytree of `jax.sharding.Sharding` like the parameters. Each device's slice is read separately, so a host
        reads only what its own devices hold. None puts everything on the default device.

    Returns:
      (config, params), the tree of `declarations`.

    Raises:
      UserError: a file, or a tensor in it, is missing, unexpected, cut short or of another shape.
    """
    directory = resolve(directory)
    config = read_config(directory, dtype=dtype, param_dtype=param_dtype, remat=remat)
    stored = taken_apart(config, _of_text(FAMILIES[config.family].renamed, list_tensors(directory)))
    _check_tensors(directory, config, stored)
    tensors = tensors_of_model(config)
    on_one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(path: Path, parameter: Parameter) -> jax.Array:
        sources = {index: stored[name] for index, name in tensors[path].names.items()}
        sharding = on_one_device if shardings is None else leaf_at(shardings, path)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "JAX gives the slices of a device that holds a part"
            return _read(parameter, sources, index)

        array = jax.make_array_from_callback(parameter.shape, sharding, part)
        return array.block_until_ready()

    return config, tree_of(config, place)


def _of_text(renamed: Mapping[str, str | None], stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names of `Family.names`, without those of other parts of the checkpoint."""

    def new_name(name: str) -> str | None:
        found = next((old for old in renamed if name.startswith(old)), None)
        if found is None:
            return name
        new = renamed[found]
        return None if new is None else new + name.removeprefix(found)

    return {new: tensor for name, tensor in stored.items() if (new := new_name(name)) is not None}


def _check_tensors(directory: pathlib.Path, config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raises UserError unless the stored tensors are exactly those declared."""
    wanted: set[str] = set()
    for tensors in tensors_of_model(config).values():
        for name in tensors.names.values():
            wanted.add(name)
            if name not in stored:
                raise UserError(
                    "tensor that config.json asks for is missing",
                    remedy="download the checkpoint again, or repair config.json",
                    file=directory,
                    field=name,
                )
            if stored[name].shape != tensors.shape:
                raise UserError(
                    f"tensor has another shape than the {tensors.shape} of config.json",
                    remedy="take config.json and weights from the same checkpoint",
                    file=stored[name].file,
                    field=name,
                    value=stored[name].shape,
                )
    redundant = {FAMILIES[config.family].names["head"]} if config.tie_embeddings else set()
    for name in sorted(set(stored) - wanted - redundant):
        if not _REDUNDANT.search(name):
            raise UserError(
                f"tensor is not part of a {config.family} model",
                remedy="take config.json and weights from the same checkpoint",
                file=stored[name].file,
                field=name,
            )


def _read(
    parameter: Parameter, sources: Mapping[tuple[int, ...], StoredTensor], index: tuple[slice, ...]
) -> np.ndarray:
    """One slice of a parameter, read from the files one tensor at a time."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, parameter.shape, strict=True)]
    target = _aligned_empty(tuple(stop - start for start, stop in bounds), np.dtype(parameter.dtype))
    stacked = len(next(iter(sources)))  # axes
    for place in np.ndindex(target.shape[:stacked]):
        tensor = sources[tuple(start + i for (start, _), i in zip(bounds, place, strict=False))].open()
        tensor = tensor.T if parameter.is_matrix else tensor
        _copy(tensor[index[stacked:]], target[place], parameter.is_matrix)
    return target


def _copy(source: np.ndarray, target: np.ndarray, transposed: bool) -> None:
    if source.dtype == target.dtype:
        # Plain integers of the same size copy faster than bfloat16, and NaN payloads stay as they are.
        bits = np.dtype(f"u{source.dtype.itemsize}")
        source, target = source.view(bits), target.view(bits)
    if not transposed:
        target[...] = source
        return
    for start in range(0, source.shape[1], _TRANSPOSE_BLOCK):
        block = slice(start, start + _TRANSPOSE_BLOCK)
        target[:, block] = source[:, block]


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised, at an address that the CPU backend takes over without a copy."""
    size, alignment = math.prod(shape) * dtype.itemsize, 64
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)
