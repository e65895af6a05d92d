"""The tensors in which a checkpoint stores each parameter: their names and shape."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import Path, declarations
from rcsd_jax.models.parameters import Parameter


class Tensors(NamedTuple):
    """The tensors of one parameter.

    Attributes:
      names: index along the parameter's stacked axes -> name of a tensor. A parameter that is not stacked has the index ().
      shape: of each tensor.
    """

    names: dict[tuple[int, ...], str]
    shape: tuple[int, ...]


def tensors_of(parameter: Parameter, template: str) -> Tensors:
    """The tensors of a parameter.

    Args:
      parameter: its declaration. A matrix [in, out] is stored as [out, in].
      template: their name in a `Family`, with a placeholder for each stacked axis.

    Examples:
      >>> experts = Parameter((1, 2, 8, 16), None, ("layers", "experts", "embed", "mlp"), None, is_matrix=True)
      >>> names, shape = tensors_of(experts, "layers.{layer}.experts.{expert}.up.weight")
      >>> names[0, 1], len(names), shape
      ('layers.0.experts.1.up.weight', 2, (16, 8))
    """
    placeholders = re.findall(r"{(\w+)}", template)
    stacked, shape = parameter.shape[: len(placeholders)], parameter.shape[len(placeholders) :]
    names = {index: template.format(**dict(zip(placeholders, index, strict=True))) for index in np.ndindex(*stacked)}
    return Tensors(names, shape[::-1] if parameter.is_matrix else shape)


def tensors_of_model(config: DecoderConfig) -> dict[Path, Tensors]:
    """Path in the parameter tree -> tensors, for every parameter of the decoder."""
    names = FAMILIES[config.family].names
    return {path: tensors_of(parameter, names[path[-1]]) for path, parameter in declarations(config).items()}
