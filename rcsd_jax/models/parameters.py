"""How a parameter is declared: its shape, dtype, logical axes and initial values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax

from rcsd_jax.models.config import DecoderConfig


class Parameter(NamedTuple):
    """The one declaration of a parameter.

    Attributes:
      shape: of the array.
      dtype: of storage.
      axes: the logical axis of each dimension, see `sharding.DEFAULT_RULES`.
      init: (key, shape, dtype) -> array.
      is_matrix: activations are multiplied by it, as h @ [in, out]. In a layer it can then have an adapter or be quantized.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    init: Callable[..., jax.Array]
    is_matrix: bool = False


Declared: TypeAlias = dict[str, Parameter]
"""Name -> parameter, of one layer or a part of it."""

_NORMAL = nn.initializers.normal(0.02)


def matrix(config: DecoderConfig, rows: tuple[str, int], columns: tuple[str, int]) -> Parameter:
    """A matrix [in, out], each side given as (logical axis, size)."""
    shape, axes = (rows[1], columns[1]), (rows[0], columns[0])
    return Parameter(shape, config.param_dtype, axes, _NORMAL, is_matrix=True)


def scale(config: DecoderConfig, size: int) -> Parameter:
    """The weight of a norm [size], which changes nothing yet."""
    neutral = nn.initializers.zeros if config.norm_plus_one else nn.initializers.ones
    return Parameter((size,), config.param_dtype, (None,), neutral)


def bias(config: DecoderConfig, axis: str | None, size: int) -> Parameter:
    """A bias [size] along a logical axis; None: whole on every device."""
    return Parameter((size,), config.param_dtype, (axis,), nn.initializers.zeros)
