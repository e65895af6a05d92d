"""Matrices by which the decoder multiplies: plain, in int8, or transposed for decoding on CPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import qwix

from rcsd_jax.models import sharding


@flax.struct.dataclass
class Transposed:
    """A kernel [in, out] that lies in memory as [out, in].

    XLA on CPUs reads a matrix of a few tokens' product along columns: from main memory that takes twice as long.
    """

    values: jax.Array


Matrix: TypeAlias = jax.Array | qwix.QArray | Transposed


def cast(params: Any, dtype: Any) -> Any:
    """Parameters in a dtype; those in int8 as they are."""
    is_int8 = lambda x: isinstance(x, qwix.QArray)
    return jax.tree.map(lambda x: x if is_int8(x) else x.astype(dtype), params, is_leaf=is_int8)


def whole(kernel: Matrix, axes: tuple[str | None, str | None], rules: Mapping[str, Any], dtype: Any) -> Matrix:
    """A layer's kernel [in, out], in `dtype` or int8, with these logical axes (inside jit)."""
    if isinstance(kernel, Transposed):
        return Transposed(sharding.constrain(kernel.values.astype(dtype), axes[::-1], rules))
    if isinstance(kernel, qwix.QArray):  # gathered as int8
        values = sharding.constrain(kernel.qvalue, axes, rules)
        return dataclasses.replace(
            kernel, qvalue=values, scale=sharding.constrain(kernel.scale, (None, axes[1]), rules)
        )
    return sharding.constrain(kernel.astype(dtype), axes, rules)


def matmul(h: jax.Array, kernel: Matrix, dtype: Any = None) -> jax.Array:
    """h [B, T, in] times a kernel [in, out], [B, T, out] in `dtype`; None: in the dtype of h."""
    dtype = dtype or h.dtype
    if isinstance(kernel, qwix.QArray):
        y = jnp.matmul(h, kernel.qvalue.astype(h.dtype), preferred_element_type=jnp.float32)
        return (y * kernel.scale).astype(dtype)
    if isinstance(kernel, Transposed) and h.shape[1] == 1:
        # The kernel first; the barrier keeps XLA from exchanging the two, which is the same product.
        y = jax.lax.dot_general(kernel.values, h[:, 0], (((1,), (1,)), ((), ())), preferred_element_type=dtype)
        return jax.lax.optimization_barrier(y).T[:, None]
    return jnp.matmul(h, plain(kernel, h.dtype), preferred_element_type=dtype)


def plain(kernel: Matrix, dtype: Any) -> jax.Array:
    """The kernel [in, out] as an array in a floating-point dtype."""
    if isinstance(kernel, qwix.QArray):
        return qwix.dequantize(kernel).astype(dtype)
    return (kernel.values.T if isinstance(kernel, Transposed) else kernel).astype(dtype)
