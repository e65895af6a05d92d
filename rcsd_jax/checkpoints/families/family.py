"""What is declared of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rcsd_jax.checkpoints.fields import Fields


class Family(NamedTuple):
    """A model family: what its checkpoints say in their own way.

    Attributes:
      architecture: its class in transformers, as config.json names it.
      names: parameter -> name of its tensors. A placeholder such as {layer} runs over the parameter's first axis, a second
        one over the second. Matrices are stored as [out, in].
      config: fields of config.json -> arguments of `DecoderConfig` that are this family's own.
      followed: the fields that `config` reads.
      fused: parameter -> (name of a tensor that holds it for all experts of a layer, [experts, out, in], which part of `out` it is,
        and of how many), where some checkpoints have this in place of a tensor for each expert.
      without_effect: fields of config.json that change no logit in this family; see `hf_config` for those of all families.
    """

    architecture: str
    names: Mapping[str, str]
    config: Callable[[Fields], dict[str, Any]]
    followed: tuple[str, ...]
    without_effect: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, int, int]] = {}
