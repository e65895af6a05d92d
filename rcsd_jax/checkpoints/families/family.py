"""What is declared of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.models.config import DecoderConfig

NO_FIELDS: Mapping[str, Any] = {}


class Family(NamedTuple):
    """A model family: in what its decoder differs from Llama's, and what its checkpoints say in their own way.

    Attributes:
      architecture: its class in transformers, as config.json names it.
      names: parameter -> name of its tensors. A placeholder such as {layer} runs over the parameter's first axis, a second
        one over the second. Matrices are stored as [out, in].
      switches: arguments of `DecoderConfig` that all its decoders have.
      config: fields of config.json -> arguments of `DecoderConfig` that are this family's own.
      written: the inverse of `config`: fields of config.json for a decoder that has no config.json yet.
      followed: the fields that `config` reads, and those of `hf_config.BIASES` that the family has.
      defaults: what transformers takes for a field that config.json leaves out, where that is not what it takes for Llama.
      without_effect: fields of config.json that change no logit in this family; see `hf_config` for those of all families.
      activation: the field that names the activation.
      text_config: of a checkpoint with more than a text model, the field that holds the text model's fields.
      saved_as: the family as which a decoder is written, if it is another: that of the text model.
      renamed: beginning of a tensor's name -> how `names` has it, for checkpoints of other versions; None: the tensor belongs to
        another part than the text model.
      fused: parameter -> (name of a tensor that holds it for all experts of a layer, [experts, out, in], which part of `out` it is,
        and of how many), where some checkpoints have this in place of a tensor for each expert.
    """

    architecture: str
    names: Mapping[str, str]
    switches: Mapping[str, Any] = NO_FIELDS
    config: Callable[[Fields], dict[str, Any]] = lambda fields: {}
    written: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    followed: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = NO_FIELDS
    without_effect: tuple[str, ...] = ()
    activation: str = "hidden_act"
    text_config: str | None = None
    saved_as: str | None = None
    renamed: Mapping[str, str | None] = NO_FIELDS
    fused: Mapping[str, tuple[str, int, int]] = NO_FIELDS
