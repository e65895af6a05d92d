"""A model written as a Hugging Face directory: config.json, safetensors, and the files that travel with them.

One layer of one parameter at a time is fetched and appended to its file. So the host holds at most one tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.checkpoints.directory import COMPANIONS, INDEX, read_object, resolve
from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.hf_config import fields_of_config
from rcsd_jax.checkpoints.safetensors import NewTensor, write_file
from rcsd_jax.checkpoints.tensors import tensors_of_model
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.host.replaced_directory import replaced_directory
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import declarations, leaf_at
from rcsd_jax.models.sharding import gathered


class _Piece(NamedTuple):
    """A parameter, or one layer of it, as one tensor."""

    tensor: NewTensor
    array: jax.Array  # the whole parameter
    place: tuple[int, ...]  # index along its stacked axes
    transpose: bool


def save_model(
    directory: str | os.PathLike,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    source: str | os.PathLike | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 1024**3,
) -> AnyPath:
    """Writes a directory that `load_model` and `transformers` read. Without a dtype, parameters keep theirs, bit for bit.

    Args:
      directory: new, empty, or a model to replace, or such a URL. It appears complete or not at all, see
        `replaced_directory`.
      config: of the parameters.
      params: tree of `declarations`, on any devices. If other processes hold a part of them, all processes call this; each
        layer is gathered in all, and process 0 writes.
      source: model directory whose further config.json fields, tokenizer and generation settings are carried over.
      dtype: to which parameters are cast on the way; None for none.
      max_shard_bytes: one model.safetensors up to here, else shards of at most this size (or one tensor) and an index.

    Returns:
      The directory.

    Raises:
      UserError: see `replaced_directory`.
      ValueError: the parameters are not those that the config declares.
    """
    pieces = _pieces(config, params, dtype)
    shards = _split(pieces, max_shard_bytes)
    if jax.process_index():
        for piece in pieces:
            _fetch(piece).delete()
        return as_path(directory)
    with replaced_directory(directory) as partial:
        source_fields: dict[str, Any] = {}
        if source is not None:
            source = resolve(source)
            if (source / "config.json").is_file():
                source_fields = read_object(source / "config.json")
            for name in COMPANIONS:
                if (source / name).is_file():
                    (partial / name).write_bytes((source / name).read_bytes())
        _write_json(partial / "config.json", fields_of_config(config, pieces[0].tensor.dtype, source_fields))
        if len(shards) == 1:
            _write_shard(partial / "model.safetensors", shards[0])
        else:
            names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
            for name, shard in zip(names, shards, strict=True):
                _write_shard(partial / name, shard)
            weight_map = {piece.tensor.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
            total = sum(piece.tensor.size for piece in pieces)
            _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return as_path(directory)


def _pieces(config: DecoderConfig, params: Mapping[str, Any], dtype: Any) -> list[_Piece]:
    pieces = []
    config = dataclasses.replace(config, family=FAMILIES[config.family].saved_as or config.family)
    declared = declarations(config)
    if len(jax.tree.leaves(params)) != len(declared):
        raise ValueError(f"{len(jax.tree.leaves(params))} parameters given, the config declares {len(declared)}")
    for path, tensors in tensors_of_model(config).items():
        parameter, array = declared[path], leaf_at(params, path)
        if array.shape != parameter.shape:
            raise ValueError(f"parameter {'/'.join(path)} has shape {array.shape}, the config says {parameter.shape}")
        stored = np.dtype(array.dtype if dtype is None else dtype)
        for index, name in tensors.names.items():
            pieces.append(_Piece(NewTensor(name, stored, tensors.shape), array, index, parameter.is_matrix))
    return pieces


def _split(pieces: list[_Piece], max_shard_bytes: int) -> list[list[_Piece]]:
    shards: list[list[_Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.tensor.size > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.tensor.size
    return shards


def _write_shard(file: AnyPath, pieces: Sequence[_Piece]) -> None:
    def values() -> Iterator[jax.Array]:
        for piece in pieces:
            value = _fetch(piece)
            yield value
            value.delete()  # an array and its host view hold each other until the garbage collector comes by

    write_file(file, [piece.tensor for piece in pieces], values())


def _fetch(piece: _Piece) -> jax.Array:
    """The piece as a file holds it, whole on this process's devices; a collective if others hold a part of it."""
    options = dict(transpose=piece.transpose, dtype=piece.tensor.dtype, to=gathered(piece.array))
    return _copied(piece.array, piece.place, **options)


@functools.partial(jax.jit, static_argnames=("transpose", "dtype", "to"))
def _copied(array: jax.Array, index: tuple[int, ...], *, transpose: bool, dtype: np.dtype, to: Any) -> jax.Array:
    """A copy of one piece: an array keeps the host view made of it, so the parameter itself is never viewed."""
    piece = array if index else jnp.copy(array)
    for i in index:
        piece = jax.lax.dynamic_index_in_dim(piece, i, keepdims=False)
    piece = (piece.T if transpose else piece).astype(dtype)
    return piece if to is None else jax.lax.with_sharding_constraint(piece, to)


def _write_json(file: AnyPath, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
