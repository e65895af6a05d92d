"""Hugging Face directories in and out: config.json, safetensors and tokenizer of Qwen3, Qwen2 and Llama 3.

Names, shapes and transpositions come from `decoder.declarations`; nothing here knows a single parameter. Tensors are
moved one at a time: loading maps one tensor of a file at a time and copies it to its place in the stacked parameter,
saving fetches one layer of one parameter at a time and appends it to the shard. So the host holds at most the model and
one tensor. (The `safetensors` package serialises a whole shard in memory, hence the few lines of its format here; the
format: https://github.com/huggingface/safetensors#format.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.host.replaced_directory import replaced_directory
from rcsd_jax.models import decoder

FAMILIES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# What else a model directory holds that must travel with its weights.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# Fields of config.json, beside those that `config_of_fields` reads. Here are those of which the decoder has one value, ...
_ONLY: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "activation is not supported (only silu is)"),
    "attention_bias": (False, "attention biases are not supported"),
    "mlp_bias": (False, "MLP biases are not supported"),
    "num_experts": (0, "mixtures of experts are not supported"),
    "partial_rotary_factor": (1.0, "partial RoPE is not supported"),
    "rope_interleaved": (False, "interleaved RoPE is not supported"),
    "use_mrope": (False, "multimodal RoPE is not supported"),
    "quantization_config": ({}, "quantised weights are not supported"),
    "use_sliding_window": (False, "sliding-window attention is not supported"),
    "is_encoder_decoder": (False, "encoders are not supported"),
}
# ... and here those on which no logit hangs. Whatever else is there is refused: it may change what the model computes.
_WITHOUT_EFFECT = (
    "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id", "tokenizer_class", "_name_or_path", "name_or_path",
    "_attn_implementation_autoset", "_commit_hash", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type",
    # How to sample, as older checkpoints say it here.
    "do_sample", "max_length", "repetition_penalty", "temperature", "top_k", "top_p",
    # Notes of other programs.
    "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version",
)  # fmt: skip
_WITHOUT_EFFECT_OF_FAMILY = {
    "qwen3": ("sliding_window", "max_window_layers"),  # of windows that `use_sliding_window` turns off
    "qwen2": ("sliding_window", "max_window_layers"),
    "llama": ("pretraining_tp",),
}
_FOLLOWED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "layer_types",
    "rope_theta", "rope_scaling", "rope_parameters",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
# Tensors that some exporters write and that hold nothing a load needs.
_REDUNDANT = re.compile(r"rotary_emb\.inv_freq$")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TRANSPOSE_BLOCK = 64
_REQUIRED = object()


# ---------------------------------------------------------------------------------------------------------------------
# Where


def resolve(path_or_repo_id: str | os.PathLike) -> pathlib.Path:
    """The local directory of a path or of a hub id such as `Qwen/Qwen3-8B`, which is downloaded on first use.

    Raises:
      UserError: neither an existing directory nor a hub id that can be reached.
    """
    path = pathlib.Path(path_or_repo_id).expanduser()
    if path.is_dir():
        return path
    if not _REPO_ID.fullmatch(str(path_or_repo_id)):
        raise UserError(
            "no such model directory", remedy="give a directory with config.json, or a hub id", file=path_or_repo_id
        )
    import huggingface_hub

    patterns = ["config.json", "*.safetensors", _INDEX, *COMPANIONS]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(path_or_repo_id), allow_patterns=patterns))
    except Exception as error:  # the client raises its own, httpx's and the system's errors alike
        raise UserError(
            f"neither a directory here nor a model that the hub gives ({type(error).__name__}: {first_line(error)})",
            remedy="check the name, the network and HF_TOKEN, or download the model and give its directory",
            file=path_or_repo_id,
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# config.json


def read_config(
    directory: str | os.PathLike, *, dtype: Any, param_dtype: Any = None, remat: str = "none"
) -> decoder.DecoderConfig:
    """Our config of a directory's config.json, as transformers 4 or 5 wrote it; what is not understood is refused.

    Args:
      directory: model directory or hub id, see `resolve`.
      dtype: activation dtype.
      param_dtype: parameter dtype; None for `dtype`.
      remat: see `DecoderConfig`.

    Raises:
      UserError: file missing or unreadable; field missing, unknown or of another kind; architecture or feature that the
        decoder does not have.
    """
    file = resolve(directory) / "config.json"
    return config_of_fields(_read_json(file), file, dtype=dtype, param_dtype=param_dtype, remat=remat)


def config_of_fields(
    raw: Mapping[str, Any], file: Any, *, dtype: Any, param_dtype: Any = None, remat: str = "none"
) -> decoder.DecoderConfig:
    """Our config of the fields of a config.json; `file` says in errors where they stood. Otherwise as `read_config`."""

    def field(name: str, default: Any = _REQUIRED) -> Any:
        value = raw.get(name)
        if value is None and default is _REQUIRED:
            raise UserError("field is missing", remedy="use a complete checkpoint", file=file, field=name)
        return default if value is None else value

    def size(name: str, default: Any = _REQUIRED) -> int:
        value = field(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                "not a positive whole number", remedy="repair config.json", file=file, field=name, value=value
            )
        return value

    family = field("model_type")
    if family not in FAMILIES:
        raise UserError(
            "architecture is not supported",
            remedy=f"use a checkpoint of one of {', '.join(FAMILIES)}",
            file=file,
            field="model_type",
            value=family,
        )
    _reject_unsupported(raw, family, file)
    theta, scaling = _read_rope(raw, file)
    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    # Without the field there are 32 in a Qwen, says transformers; with null as many as there are heads.
    of_qwen = family != "llama" and "num_key_value_heads" not in raw
    num_kv_heads = size("num_key_value_heads", 32 if of_qwen else num_heads)
    if num_heads % num_kv_heads:
        problem, where = f"does not divide the {num_heads} attention heads", "num_key_value_heads"
        raise UserError(problem, remedy="repair config.json", file=file, field=where, value=num_kv_heads)
    if not isinstance(tied := field("tie_word_embeddings", False), bool):
        where = "tie_word_embeddings"
        raise UserError("neither true nor false", remedy="repair config.json", file=file, field=where, value=tied)
    return decoder.DecoderConfig(
        family=family,
        vocab_size=size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=size("head_dim", 128 if family == "qwen3" else hidden_size // num_heads),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_positive(field("rms_norm_eps", 1e-6), "rms_norm_eps", file),
        tie_embeddings=tied,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        max_position=size("max_position_embeddings"),
        dtype=dtype,
        param_dtype=dtype if param_dtype is None else param_dtype,
        remat=remat,
    )


def _reject_unsupported(raw: Mapping[str, Any], family: str, file: Any) -> None:
    """Raises UserError for a field that is unknown, or that has a value which the decoder does not compute."""
    known = {*_FOLLOWED, *_ONLY, *_WITHOUT_EFFECT, *_WITHOUT_EFFECT_OF_FAMILY[family]}
    for name, value in raw.items():
        if value is None:  # as if it were not there
            continue
        problem = None
        if name in _ONLY and value != _ONLY[name][0]:
            problem = _ONLY[name][1]
        elif name == "layer_types" and (not isinstance(value, list) or set(value) != {"full_attention"}):
            problem = "not full attention in every layer: sliding-window and linear attention are not supported"
        elif name == "layer_types" and len(value) != raw.get("num_hidden_layers"):
            problem = "not of num_hidden_layers layers"
        if problem:
            raise UserError(problem, remedy="use a dense full-attention checkpoint", file=file, field=name, value=value)
        if name not in known:
            raise UserError(
                f"a {family} model has no such field, and it may change what the model computes",
                remedy="take it out of config.json if it does not",
                file=file,
                field=name,
                value=value,
            )


def _read_rope(raw: Mapping[str, Any], file: Any) -> tuple[float, decoder.Llama3Rope | None]:
    """(theta, scaling) from transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Where both are there, transformers takes `rope_scaling` for all of `rope_parameters`, so that a theta which stands there
    alone is lost. That is followed where it makes no difference, and otherwise refused.
    """
    if not raw.get("rope_scaling"):
        return _read_rope_at("rope_parameters", raw, file)
    found = _read_rope_at("rope_scaling", raw, file)
    if raw.get("rope_parameters") and _read_rope_at("rope_parameters", raw, file) != found:
        raise UserError(
            "contradicts rope_parameters, in whose place it is taken, rope_theta included",
            remedy="write it into rope_parameters, or take it out",
            file=file,
            field="rope_scaling",
            value=raw["rope_scaling"],
        )
    return found


def _read_rope_at(name: str, raw: Mapping[str, Any], file: Any) -> tuple[float, decoder.Llama3Rope | None]:
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise UserError("not an object", remedy="repair config.json", file=file, field=name, value=rope)
    where = f"{name}.rope_theta" if "rope_theta" in rope else "rope_theta"
    outside = 10000.0 if raw.get("rope_theta") is None else raw["rope_theta"]
    theta = float(_positive(rope.get("rope_theta", outside), where, file))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            "RoPE scaling is not supported",
            remedy="use default or llama3, or remove the scaling and stay within the original context length",
            file=file,
            field=f"{name}.rope_type",
            value=kind,
        )
    numbers = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    known = {"rope_type", "type", "rope_theta", *(numbers if kind == "llama3" else ())}
    for key, value in rope.items():
        whole = key == "partial_rotary_factor" and value == 1.0
        if key not in known and value is not None and not whole:
            problem, remedy = f"RoPE of type {kind} has no such field", "take it out of config.json if it has no effect"
            raise UserError(problem, remedy=remedy, file=file, field=f"{name}.{key}", value=value)
    if kind == "default":
        return theta, None
    factor, low, high, original = (_positive(rope.get(key), f"{name}.{key}", file) for key in numbers)
    return theta, decoder.Llama3Rope(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original
    )


def _positive(value: Any, field: str, file: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError("not a positive number", remedy="repair config.json", file=file, field=field, value=value)
    return value


def _config_json(config: decoder.DecoderConfig, dtype: np.dtype, source: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json: the source's, with ours on top. RoPE is written where the source has it.

    Without a source it is written in the older place, which transformers 4 and 5 both read.
    """
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"} if scaling is None else {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }  # fmt: skip
    if "rope_parameters" in source:
        positions: dict[str, Any] = {"rope_parameters": {"rope_theta": config.rope_theta, **rope}}
    else:
        positions = {"rope_theta": config.rope_theta, "rope_scaling": rope if scaling else None}
    return {
        **source,
        "architectures": [FAMILIES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position,
        **positions,
        "dtype" if "dtype" in source else "torch_dtype": str(dtype),
    }


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", remedy="give a complete Hugging Face model directory", file=file) from None
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", remedy="repair or download it again", file=file) from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", remedy="repair or download it again", file=file)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# safetensors in


class _Stored(NamedTuple):
    """One tensor in a safetensors file."""

    file: pathlib.Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """The tensor, read-only, mapped from the file: pages leave memory with the array."""
        return np.memmap(self.file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


def load(
    directory: str | os.PathLike,
    *,
    dtype: Any,
    param_dtype: Any = None,
    remat: str = "none",
    shardings: Any = None,
) -> tuple[decoder.DecoderConfig, dict[str, Any]]:
    """Config and parameters of a Hugging Face directory.

    Args:
      directory: with config.json and model.safetensors, or the shards that model.safetensors.index.json lists; or a
        hub id, see `resolve`.
      dtype: activation dtype.
      param_dtype: parameter dtype, to which other stored dtypes are cast; None for `dtype`.
      remat: see `DecoderConfig`.
      shardings: pytree of `jax.sharding.Sharding` like the parameters. Every device's slice is read for itself, so a
        host reads what its own devices hold. None puts everything on the default device.

    Returns:
      (config, params), the tree of `decoder.declarations`.

    Raises:
      UserError: a file, or a tensor in it, is missing, unexpected, cut short or of another shape.
    """
    directory = resolve(directory)
    config = read_config(directory, dtype=dtype, param_dtype=param_dtype, remat=remat)
    stored = _list_tensors(directory)
    _check_tensors(directory, config, stored)
    on_one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(path: tuple[str, ...], parameter: decoder.Parameter) -> jax.Array:
        sources = [stored[name] for name in _hf_names(parameter)]
        sharding = on_one_device if shardings is None else _at(shardings, path)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "JAX gives the slices of a device that holds a part"
            return _read(parameter, sources, index)

        array = jax.make_array_from_callback(parameter.shape, sharding, part)
        return array.block_until_ready()

    return config, decoder.tree_of(config, place)


def _list_tensors(directory: pathlib.Path) -> dict[str, _Stored]:
    """Every tensor of the directory's safetensors files, by name."""
    index = directory / _INDEX
    if (directory / "model.safetensors").is_file():
        return _read_header(directory / "model.safetensors")
    if not index.is_file():
        raise UserError(
            f"neither model.safetensors nor {_INDEX} is here",
            remedy="convert the weights with transformers' save_pretrained",
            file=directory,
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError("field is missing", remedy="download it again", file=index, field="weight_map")
    stored: dict[str, _Stored] = {}
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


def _read_header(file: pathlib.Path) -> dict[str, _Stored]:
    """Tensors of one safetensors file: 8 bytes of header length, a JSON header, then the data."""
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
        stored[name] = _Stored(file, name, np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), offset)
    return stored


def _check_tensors(directory: pathlib.Path, config: decoder.DecoderConfig, stored: Mapping[str, _Stored]) -> None:
    """Raises UserError unless the stored tensors are exactly those declared."""
    wanted: set[str] = set()
    for parameter in decoder.declarations(config).values():
        for name in _hf_names(parameter):
            wanted.add(name)
            if name not in stored:
                raise UserError(
                    "tensor that config.json asks for is missing",
                    remedy="download the checkpoint again, or repair config.json",
                    file=directory,
                    field=name,
                )
            if stored[name].shape != _hf_shape(parameter):
                raise UserError(
                    f"tensor has another shape than the {_hf_shape(parameter)} of config.json",
                    remedy="take config.json and weights from the same checkpoint",
                    file=stored[name].file,
                    field=name,
                    value=stored[name].shape,
                )
    redundant = {"lm_head.weight"} if config.tie_embeddings else set()
    for name in sorted(set(stored) - wanted - redundant):
        if not _REDUNDANT.search(name):
            raise UserError(
                f"tensor is not part of a {config.family} model",
                remedy="take config.json and weights from the same checkpoint",
                file=stored[name].file,
                field=name,
            )


def _read(parameter: decoder.Parameter, sources: list[_Stored], index: tuple[slice, ...]) -> np.ndarray:
    """One slice of a parameter, read from the files a tensor at a time."""
    bounds = [part.indices(size) for part, size in zip(index, parameter.shape, strict=True)]
    shape = tuple(stop - start for start, stop, _ in bounds)
    target = _aligned_empty(shape, np.dtype(parameter.dtype))
    layers = target if _stacked(parameter) else target[None]
    inner = index[1:] if _stacked(parameter) else index
    first, last = bounds[0][:2] if _stacked(parameter) else (0, 1)
    for layer, source in zip(layers, sources[first:last], strict=True):
        tensor = source.open()
        _copy((tensor.T if parameter.transpose else tensor)[inner], layer, parameter.transpose)
    return target


def _copy(source: np.ndarray, target: np.ndarray, transposed: bool) -> None:
    if source.dtype == target.dtype:
        # Plain integers of the same size copy faster than bfloat16 does, and NaN payloads stay as they are.
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


# ---------------------------------------------------------------------------------------------------------------------
# safetensors out


class _Piece(NamedTuple):
    """One tensor to write: a parameter, or one layer of it."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    transpose: bool
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save(
    directory: str | os.PathLike,
    config: decoder.DecoderConfig,
    params: Mapping[str, Any],
    *,
    source: str | os.PathLike | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 1024**3,
) -> AnyPath:
    """Writes a directory that `load` and `transformers` read; without a dtype, each parameter in its own, bit for bit.

    Args:
      directory: new, empty, or a model to replace, or such a URL; it appears complete or not at all, see `replaced_directory`.
      config: of the parameters.
      params: tree of `decoder.declarations`, on any devices. Where other processes hold a part of them, all processes
        call this; each layer is gathered in all, and process 0 writes.
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
            _fetch_piece(params, piece).delete()
        return as_path(directory)
    with replaced_directory(directory) as partial:
        source_fields: dict[str, Any] = {}
        if source is not None:
            source = resolve(source)
            if (source / "config.json").is_file():
                source_fields = _read_json(source / "config.json")
            for name in COMPANIONS:
                if (source / name).is_file():
                    (partial / name).write_bytes((source / name).read_bytes())
        _write_json(partial / "config.json", _config_json(config, pieces[0].dtype, source_fields))
        if len(shards) == 1:
            _write_shard(partial / "model.safetensors", params, shards[0])
        else:
            names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
            for name, shard in zip(names, shards, strict=True):
                _write_shard(partial / name, params, shard)
            weight_map = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
            total = sum(piece.size for piece in pieces)
            _write_json(partial / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return as_path(directory)


def _pieces(config: decoder.DecoderConfig, params: Mapping[str, Any], dtype: Any) -> list[_Piece]:
    pieces = []
    declared = decoder.declarations(config)
    if len(jax.tree.leaves(params)) != len(declared):
        raise ValueError(f"{len(jax.tree.leaves(params))} parameters given, the config declares {len(declared)}")
    for path, parameter in declared.items():
        array = _at(params, path)
        if array.shape != parameter.shape:
            raise ValueError(f"parameter {'/'.join(path)} has shape {array.shape}, the config says {parameter.shape}")
        layers = range(parameter.shape[0]) if _stacked(parameter) else [None]
        for layer, name in zip(layers, _hf_names(parameter), strict=True):
            stored = np.dtype(array.dtype if dtype is None else dtype)
            pieces.append(_Piece(name, path, layer, parameter.transpose, stored, _hf_shape(parameter)))
    return pieces


def _split(pieces: list[_Piece], max_shard_bytes: int) -> list[list[_Piece]]:
    shards: list[list[_Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.size > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.size
    return shards


def _write_shard(file: AnyPath, params: Mapping[str, Any], pieces: list[_Piece]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        header[piece.name] = {
            "dtype": _DTYPE_NAMES[piece.dtype],
            "shape": piece.shape,
            "data_offsets": [offset, offset + piece.size],
        }
        offset += piece.size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for piece in pieces:
            tensor = _fetch_piece(params, piece)
            stream.write(np.ascontiguousarray(tensor).view(np.uint8).data)
            tensor.delete()  # an array and its host view hold each other until the garbage collector comes by


def _fetch_piece(params: Mapping[str, Any], piece: _Piece) -> jax.Array:
    """The piece as a file holds it, whole on this process's devices; a collective where others hold a part of it."""
    array, stacked = _at(params, piece.path), piece.layer is not None
    options = dict(stacked=stacked, transpose=piece.transpose, dtype=piece.dtype, to=gathered(array))
    return _fetch(array, piece.layer or 0, **options)


def gathered(array: jax.Array) -> jax.sharding.Sharding | None:
    """The sharding under which every process holds the whole array; None if this one holds all of it as it is."""
    if array.is_fully_addressable:
        return None
    assert isinstance(array.sharding, jax.sharding.NamedSharding), "several processes hold arrays over their mesh"
    return jax.sharding.NamedSharding(array.sharding.mesh, jax.sharding.PartitionSpec())


@functools.partial(jax.jit, static_argnames=("stacked", "transpose", "dtype", "to"))
def _fetch(array: jax.Array, layer: int, *, stacked: bool, transpose: bool, dtype: np.dtype, to: Any) -> jax.Array:
    """A copy of one layer: an array keeps the host view made of it, so the parameter itself is never viewed."""
    piece = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False) if stacked else jnp.copy(array)
    piece = (piece.T if transpose else piece).astype(dtype)
    return piece if to is None else jax.lax.with_sharding_constraint(piece, to)


def _write_json(file: AnyPath, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Declarations


def _stacked(parameter: decoder.Parameter) -> bool:
    return parameter.axes[0] == "layers"


def _hf_names(parameter: decoder.Parameter) -> list[str]:
    if not _stacked(parameter):
        return [parameter.hf_name]
    return [parameter.hf_name.format(layer=layer) for layer in range(parameter.shape[0])]


def _hf_shape(parameter: decoder.Parameter) -> tuple[int, ...]:
    shape = tuple(parameter.shape[1:] if _stacked(parameter) else parameter.shape)
    return shape[::-1] if parameter.transpose else shape


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


def load_tokenizer(directory: str | os.PathLike) -> Any:
    """The directory's own tokenizer, by transformers' AutoTokenizer; PyTorch need not be installed.

    Args:
      directory: model directory or hub id, see `resolve`.

    Raises:
      UserError: no tokenizer, an unreadable one, or one without a chat template.
    """
    directory = resolve(directory)
    # Without this AutoTokenizer makes an empty tokenizer out of config.json's model_type.
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            "no tokenizer here (tokenizer.json, tokenizer.model or vocab.json)",
            remedy="copy the tokenizer files of the base model into the directory",
            file=directory,
        )
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # bare Exception is what the tokenizers package raises on a bad file
        raise UserError(
            f"tokenizer cannot be read ({type(error).__name__}: {error})",
            remedy="copy the tokenizer files of the base model again",
            file=directory,
        ) from error
    if tokenizer.chat_template is None:
        raise UserError(
            "tokenizer has no chat template",
            remedy="use an instruction-tuned checkpoint, or put its chat_template.jinja into the directory",
            file=directory / "tokenizer_config.json",
            field="chat_template",
        )
    return tokenizer


def eos_ids(directory: str | os.PathLike, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's own and those that generation_config.json or config.json list.

    Raises:
      UserError: there are none, so that no completion could ever end.
    """
    directory = resolve(directory)
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            listed = _read_json(directory / name).get("eos_token_id")
            found += listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not found:
        raise UserError(
            "no end-of-sequence token",
            remedy="set eos_token in tokenizer_config.json",
            file=directory / "tokenizer_config.json",
            field="eos_token",
        )
    return tuple(dict.fromkeys(int(token) for token in found))


def digest(directory: str | os.PathLike) -> str:
    """A hash of the weights and config of a model or adapter: what identifies a checkpoint, wherever it lies."""
    directory = resolve(directory)
    total = hashlib.blake2b(digest_size=16)
    configs = [f for f in (directory / "config.json", directory / "adapter_config.json") if f.is_file()]
    for file in sorted([*configs, *directory.glob("*.safetensors")]):
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()
