"""config.json of a Hugging Face directory: read into our config, or refused; and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rcsd_jax.checkpoints.directory import read_object, resolve
from rcsd_jax.checkpoints.families import FAMILIES, Family
from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.layer_fields import layers
from rcsd_jax.checkpoints.rope_fields import written_rope
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.rope import Rope

# The fields that are read here; a family reads more (`Family.followed`). Beyond these a config.json may have two kinds of
# fields. First, those that the decoder supports with one value only, unless the family reads them ...
FOLLOWED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "layer_types",
    "rope_theta", "rope_scaling", "rope_parameters",
)  # fmt: skip
ONLY: dict[str, tuple[Any, str]] = {
    "attention_bias": (False, "attention biases are not supported"),
    "mlp_bias": (False, "MLP biases are not supported"),
    "num_experts": (0, "mixtures of experts are not supported"),
    "partial_rotary_factor": (1.0, "partial RoPE is not supported"),
    "rope_interleaved": (False, "interleaved RoPE is not supported"),
    "use_mrope": (False, "multimodal RoPE is not supported"),
    "quantization_config": ({}, "quantised weights are not supported"),
    "use_sliding_window": (False, "sliding-window attention is not supported"),
    "is_encoder_decoder": (False, "encoders are not supported"),
    "attn_logit_softcapping": (None, "soft-capped attention is not supported"),
    "final_logit_softcapping": (None, "soft-capped logits are not supported"),
    "use_bidirectional_attention": (False, "attention to later tokens is not supported"),
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
# How config.json names the activations of `feed_forward.ACTIVATIONS`.
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Fields of biases -> arguments of `DecoderConfig`.
_BIASES = {"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)}


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
    name = Fields(raw, file).get("model_type")
    if name not in FAMILIES:
        raise UserError(
            "architecture is not supported",
            remedy=f"use a checkpoint of one of {', '.join(FAMILIES)}",
            file=file,
            field="model_type",
            value=name,
        )
    family = FAMILIES[name]
    fields = Fields({**family.defaults, **_of_text(raw, family, file)}, file)
    _reject_unsupported(fields, name)
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    arguments: dict[str, Any] = dict(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", hidden // heads),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        max_position=fields.size("max_position_embeddings"),
        activation=fields.one_of(family.activation, _ACTIVATIONS, "silu"),
        **family.switches,
    )
    for field, names in _BIASES.items():
        if field in family.followed:
            arguments |= dict.fromkeys(names, fields.flag(field, False))
    own = family.config(fields)
    # A family that says nothing of its layers has one kind.
    arguments |= own if "rope_theta" in own else own | layers(fields, None, lambda layer: False)
    if heads % arguments["num_kv_heads"]:
        problem = f"does not divide the {heads} attention heads"
        raise fields.broken(problem, "num_key_value_heads", arguments["num_kv_heads"])
    param_dtype = dtype if param_dtype is None else param_dtype
    return DecoderConfig(family=name, dtype=dtype, param_dtype=param_dtype, remat=remat, **arguments)


def _of_text(raw: Mapping[str, Any], family: Family, file: Any) -> Mapping[str, Any]:
    """The fields of the text model, and what stands around it but holds for it as well."""
    if not family.text_config:
        return raw
    text = Fields(raw, file).get(family.text_config)
    if not isinstance(text, dict):
        raise Fields(raw, file).broken("not an object", family.text_config, text)
    around = ("tie_word_embeddings", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")
    return {**text, **{name: raw[name] for name in around if raw.get(name) is not None}}


def _reject_unsupported(fields: Fields, name: str) -> None:
    """Raises UserError for a field that is unknown, or that has a value which the decoder does not compute."""
    family = FAMILIES[name]
    followed = {*FOLLOWED, family.activation, *family.followed}
    known = {*followed, *ONLY, *WITHOUT_EFFECT, *family.without_effect}
    for field, value in fields.raw.items():
        if value is None:  # as if it were absent
            continue
        if field in ONLY and field not in followed and value != ONLY[field][0]:
            remedy = "use a dense checkpoint without it"
            raise UserError(ONLY[field][1], remedy=remedy, file=fields.file, field=field, value=value)
        if field not in known:
            raise UserError(
                f"a {name} model has no such field, and it may change what the model computes",
                remedy="take it out of config.json if it does not",
                file=fields.file,
                field=field,
                value=value,
            )


def fields_of_config(config: DecoderConfig, dtype: np.dtype, source: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json: those of the source, with ours on top.

    Without a source RoPE is written in the older place, which transformers 4 and 5 both read, if it is the same in all layers.
    """
    source = _of_text(source, FAMILIES[config.family], "config.json") if source else {}
    name = FAMILIES[config.family].saved_as or config.family
    family = FAMILIES[name]
    own: dict[str, Any] = {}
    if not source:
        rope = written_rope(Rope(config.rope_theta, config.rope_scaling))
        theta = rope.pop("rope_theta")
        own = dict(rope_theta=theta, rope_scaling=rope if config.rope_scaling else None, **family.written(config))
        own |= {field: getattr(config, names[0]) for field, names in _BIASES.items() if field in family.followed}
    return {
        **source,
        "architectures": [family.architecture],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        family.activation: next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position,
        **own,
        "dtype" if "dtype" in source else "torch_dtype": str(dtype),
    }
