"""The forms in which a weight matrix is stored, and products with each: a plain array, quantized, or transposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import qwix

from rcsd_jax.models.sharding import constrain


@flax.struct.dataclass
class Transposed:
    """A matrix [in, out] that is stored as [out, in].

    For a few tokens, XLA on CPUs reads a matrix along its columns. From main memory that takes twice as long.
    """

    values: jax.Array


class OfStack(NamedTuple):
    """A layer's matrix where it is stored, for kernels that read it there.

    Attributes:
      stack: [L, ...], an array or `qwix.QArray`.
      layer: the place in it.
    """

    stack: Any
    layer: jax.Array | int


Matrix: TypeAlias = jax.Array | qwix.QArray | Transposed

GROUP = 32
"""Numbers of a column that have one scale, in int4."""


def scales_of_groups(matrix: qwix.QArray) -> bool:
    """Whether each group of a column has a scale [..., in / GROUP, out], as in int4, and not each column [..., 1, out]."""
    return matrix.qvalue.dtype == jnp.int4


def scale_axes(matrix: qwix.QArray, axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The logical axes of a matrix's scales, from those of the matrix."""
    return axes if scales_of_groups(matrix) else (*axes[:-2], None, axes[-1])


def cast(params: Any, dtype: Any) -> Any:
    """Parameters in a dtype; quantized ones stay as they are."""
    quantized = lambda x: isinstance(x, qwix.QArray)
    return jax.tree.map(lambda x: x if quantized(x) else x.astype(dtype), params, is_leaf=quantized)


def placed(matrix: Matrix, axes: tuple[str | None, ...], rules: Mapping[str, Any], dtype: Any) -> Matrix:
    """A matrix [in, out] or several [E, in, out], in `dtype` or quantized, sharded by its logical axes (inside jit)."""
    if isinstance(matrix, Transposed):
        return Transposed(constrain(matrix.values.astype(dtype), axes[::-1], rules))
    if isinstance(matrix, qwix.QArray):
        values, scale = constrain(matrix.qvalue, axes, rules), constrain(matrix.scale, scale_axes(matrix, axes), rules)
        return dataclasses.replace(matrix, qvalue=values, scale=scale)
    return constrain(matrix.astype(dtype), axes, rules)


def without_groups(matrix: Matrix, axes: tuple[str | None, ...], rules: Mapping[str, Any], dtype: Any) -> Matrix:
    """A matrix in int4 as an array in `dtype`, as it is stored; any other form as it is (inside jit).

    Before it is gathered: each device then converts only its own share, and to convert a matrix takes longer than to send it.
    """
    if not isinstance(matrix, qwix.QArray) or not scales_of_groups(matrix):
        return matrix
    values, scale = (constrain(x, axes, rules).astype(dtype) for x in (matrix.qvalue, matrix.scale))
    groups = values.reshape(*scale.shape[:-1], -1, scale.shape[-1])
    return constrain((groups * scale[..., None, :]).reshape(values.shape), axes, rules)


def matmul(h: jax.Array, matrix: Matrix, dtype: Any = None) -> jax.Array:
    """h [B, T, in] times a matrix [in, out] `without_groups`: [B, T, out] in `dtype`, by default the dtype of h."""
    dtype = dtype or h.dtype
    if isinstance(matrix, qwix.QArray):
        # A mesh adds up partial sums before they are scaled: in the dtype of h, as without int8, they are half of float32.
        y = jnp.matmul(h, matrix.qvalue.astype(h.dtype), preferred_element_type=h.dtype)
        return (y * matrix.scale).astype(dtype)
    if isinstance(matrix, Transposed) and h.shape[1] == 1:
        # The matrix first. The barrier keeps XLA from swapping the two, which is the same product.
        y = jax.lax.dot_general(matrix.values, h[:, 0], (((1,), (1,)), ((), ())), preferred_element_type=dtype)
        return jax.lax.optimization_barrier(y).T[:, None]
    return jnp.matmul(h, plain(matrix, h.dtype), preferred_element_type=dtype)


def plain(matrix: Matrix, dtype: Any) -> jax.Array:
    """The matrix [in, out] as an array in a floating-point dtype."""
    if isinstance(matrix, qwix.QArray):
        return qwix.dequantize(matrix).astype(dtype)
    return (matrix.values.T if isinstance(matrix, Transposed) else matrix).astype(dtype)
