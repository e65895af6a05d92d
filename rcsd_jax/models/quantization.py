"""Quantized weights: weights that training does not change in fewer bits, which take less memory and less time to read.

The matrices of layers become `qwix.QArray`s, which the decoder takes in their place:

    int8    a float32 scale for each output channel: half of bfloat16's memory
    int4    a bfloat16 scale for each 32 numbers of an output channel: 4.5 bits a number

Norms, biases, the embedding and the output matrix stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models.sharding import DEFAULT_RULES
from rcsd_jax.models.weights import GROUP, Matrix


def quantized(config: DecoderConfig, params: Mapping[str, Any], form: str = "int8") -> dict[str, Any]:
    """Parameters with the matrices of layers quantized. Pure; see `on_mesh` for shardings.

    Args:
      config: of the decoder.
      params: decoder parameters; not changed. Matrices that are quantized already stay as they are.
      form: a key of `FORMS`.

    Returns:
      Their tree, with `qwix.QArray`s for matrices [L, in, out]: values [L, in, out], and scales [L, 1, out] for int8, or
      [L, in / 32, out] for int4. Experts' matrices [L, E, in, out] likewise.
    """
    matrices = layer_matrices(config)
    layers = {name: _stack(x, FORMS[form]) if name in matrices else x for name, x in params["layers"].items()}
    return {**params, "layers": layers}


def _stack(kernel: Matrix, quantize: Callable[[jax.Array], qwix.QArray]) -> qwix.QArray:
    if isinstance(kernel, qwix.QArray):
        return kernel
    # One layer at a time: in float32 a whole stack of kernels would take twice its own memory.
    return jax.lax.map(lambda x: quantize(x.astype(jnp.float32)), kernel)


def int8_matrix(matrix: jax.Array) -> qwix.QArray:
    """A float32 matrix [in, out] in int8, or several [E, in, out], rounded to the nearest.

    The scale of a column is its largest magnitude over 127.5, as qwix has it.
    """
    if matrix.ndim > 2:
        return jax.vmap(int8_matrix)(matrix)
    return qwix.quantize(matrix, qtype=jnp.int8, channelwise_axes=(1,), scale_dtype=jnp.float32)


def int4_matrix(matrix: jax.Array) -> qwix.QArray:
    """A float32 matrix [in, out] in int4, or several [E, in, out], rounded to the nearest.

    Each `GROUP` rows of a column have a scale, with which their number of largest magnitude becomes -8. So scales have signs: int4
    goes from -8 to 7, and without signs it would have no use for -8.
    """
    if matrix.ndim > 2:
        return jax.vmap(int4_matrix)(matrix)
    rows, columns = matrix.shape
    groups = matrix.reshape(rows // GROUP, GROUP, columns)
    largest = jnp.take_along_axis(groups, jnp.abs(groups).argmax(axis=1, keepdims=True), axis=1)
    scale = jnp.where(largest == 0, 1, largest / -8).astype(jnp.bfloat16)
    values = jnp.clip(jnp.round(groups / scale.astype(jnp.float32)), -8, 7)
    return qwix.QArray(values.reshape(rows, columns).astype(jnp.int4), scale[:, 0])


FORMS: dict[str, Callable[[jax.Array], qwix.QArray]] = {"int8": int8_matrix, "int4": int4_matrix}
"""Name -> a float32 matrix [in, out], or several [E, in, out], in this form."""


def on_mesh(
    config: DecoderConfig,
    params: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    rules: Mapping[str, Any] = DEFAULT_RULES,
    form: str = "int8",
) -> dict[str, Any]:
    """`quantized` parameters on a mesh, each with its matrix's sharding."""
    make = functools.partial(quantized, config, form=form)
    return jax.jit(make, out_shardings=param_shardings(config, mesh, rules, jax.eval_shape(make, params)))(params)
