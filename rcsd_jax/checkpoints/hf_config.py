"""config.json of a Hugging Face directory: read into our config, or refused; and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rcsd_jax.checkpoints.directory import read_object, resolve
from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.rope import Llama3Rope

# The fields that are read here; a family reads more (`Family.followed`). Beyond these a config.json may have two kinds of
# fields. First, those that the decoder supports with one value only, unless the family reads them ...
FOLLOWED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "layer_types",
    "rope_theta", "rope_scaling", "rope_parameters",
)  # fmt: skip
ONLY: dict[str, tuple[Any, str]] = {
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
# ... and second, those that change no logit (`Family.without_effect` has more). Any other field is refused: it may change
# what the model computes.
WITHOUT_EFFECT = (
    "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "_name_or_path", "name_or_path",
    "_model_name_or_path", "_attn_implementation_autoset", "_commit_hash", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type",
    # How to sample, in older checkpoints.
    "do_sample", "max_length", "repetition_penalty", "temperature", "top_k", "top_p",
    # Notes of other programs.
    "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version",
)  # fmt: skip


def read_config(
    directory: str | os.PathLike, *, dtype: Any, param_dtype: Any = None, remat: str = "none"
) -> DecoderConfig:
    """Our config from a directory's config.json, as transformers 4 or 5 wrote it. What is not understood is refused.

    Args:
      directory: model directory or hub id, see `directory.resolve`.
      dtype: activation dtype.
      param_dtype: parameter dtype; None for `dtype`.
      remat: see `DecoderConfig`.

    Raises:
      UserError: the file is missing or unreadable; a field is missing, unknown or of another kind; or the decoder does not
        have the architecture or a feature.
    """
    file = resolve(directory) / "config.json"
    return config_of_fields(read_object(file), file, dtype=dtype, param_dtype=param_dtype, remat=remat)


def config_of_fields(
    raw: Mapping[str, Any], file: Any, *, dtype: Any, param_dtype: Any = None, remat: str = "none"
) -> DecoderConfig:
    """Our config from the fields of a config.json; `file` says in errors where they stood. Otherwise as `read_config`."""
    fields = Fields(raw, file)
    name = fields.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            "architecture is not supported",
            remedy=f"use a checkpoint of one of {', '.join(FAMILIES)}",
            file=file,
            field="model_type",
            value=name,
        )
    _reject_unsupported(fields, name)
    theta, scaling = _read_rope(fields)
    if not isinstance(tied := fields.get("tie_word_embeddings", False), bool):
        raise fields.broken("neither true nor false", "tie_word_embeddings", tied)
    arguments: dict[str, Any] = dict(
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=fields.size("num_attention_heads"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        tie_embeddings=tied,
        max_position=fields.size("max_position_embeddings"),
        **FAMILIES[name].config(fields),
    )
    if arguments["num_heads"] % arguments["num_kv_heads"]:
        problem = f"does not divide the {arguments['num_heads']} attention heads"
        raise fields.broken(problem, "num_key_value_heads", arguments["num_kv_heads"])
    param_dtype = dtype if param_dtype is None else param_dtype
    return DecoderConfig(family=name, dtype=dtype, param_dtype=param_dtype, remat=remat, **arguments)


def _reject_unsupported(fields: Fields, family: str) -> None:
    """Raises UserError for a field that is unknown, or that has a value which the decoder does not compute."""
    followed = {*FOLLOWED, *FAMILIES[family].followed}
    known = {*followed, *ONLY, *WITHOUT_EFFECT, *FAMILIES[family].without_effect}
    for name, value in fields.raw.items():
        if value is None:  # as if it were absent
            continue
        problem = None
        if name in ONLY and name not in followed and value != ONLY[name][0]:
            problem = ONLY[name][1]
        elif name == "layer_types" and (not isinstance(value, list) or set(value) != {"full_attention"}):
            problem = "not full attention in every layer: sliding-window and linear attention are not supported"
        elif name == "layer_types" and len(value) != fields.raw.get("num_hidden_layers"):
            problem = "not of num_hidden_layers layers"
        if problem:
            remedy = "use a dense full-attention checkpoint"
            raise UserError(problem, remedy=remedy, file=fields.file, field=name, value=value)
        if name not in known:
            raise UserError(
                f"a {family} model has no such field, and it may change what the model computes",
                remedy="take it out of config.json if it does not",
                file=fields.file,
                field=name,
                value=value,
            )


def _read_rope(fields: Fields) -> tuple[float, Llama3Rope | None]:
    """(theta, scaling) from transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    If both are there, transformers takes `rope_scaling` for all of `rope_parameters`, so a theta that stands only there is
    lost. That is followed if it makes no difference, and otherwise refused.
    """
    if not fields.raw.get("rope_scaling"):
        return _read_rope_at("rope_parameters", fields)
    found = _read_rope_at("rope_scaling", fields)
    if fields.raw.get("rope_parameters") and _read_rope_at("rope_parameters", fields) != found:
        raise UserError(
            "contradicts rope_parameters, in whose place it is taken, rope_theta included",
            remedy="write it into rope_parameters, or take it out",
            file=fields.file,
            field="rope_scaling",
            value=fields.raw["rope_scaling"],
        )
    return found


def _read_rope_at(name: str, fields: Fields) -> tuple[float, Llama3Rope | None]:
    rope = fields.raw.get(name) or {}
    if not isinstance(rope, dict):
        raise fields.broken("not an object", name, rope)
    where = f"{name}.rope_theta" if "rope_theta" in rope else "rope_theta"
    theta = float(fields.check_positive(rope.get("rope_theta", fields.get("rope_theta", 10000.0)), where))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            "RoPE scaling is not supported",
            remedy="use default or llama3, or remove the scaling and stay within the original context length",
            file=fields.file,
            field=f"{name}.rope_type",
            value=kind,
        )
    numbers = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    known = {"rope_type", "type", "rope_theta", *(numbers if kind == "llama3" else ())}
    for key, value in rope.items():
        whole = key == "partial_rotary_factor" and value == 1.0
        if key not in known and value is not None and not whole:
            problem, remedy = f"RoPE of type {kind} has no such field", "take it out of config.json if it has no effect"
            raise UserError(problem, remedy=remedy, file=fields.file, field=f"{name}.{key}", value=value)
    if kind == "default":
        return theta, None
    factor, low, high, original = (fields.check_positive(rope.get(key), f"{name}.{key}") for key in numbers)
    return theta, Llama3Rope(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original)


def fields_of_config(config: DecoderConfig, dtype: np.dtype, source: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json: those of the source, with ours on top. RoPE is written where the source has it.

    Without a source RoPE is written in the older place, which transformers 4 and 5 both read.
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
    mixture: dict[str, Any] = {}
    if config.num_experts:
        mixture = {
            "num_local_experts" if "num_local_experts" in source else "num_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.expert_size,
            "norm_topk_prob": config.renormalised,
        }
    return {
        **source,
        **mixture,
        "architectures": [FAMILIES[config.family].architecture],
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
