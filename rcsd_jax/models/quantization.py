"""Int8 weights, by qwix: weights that training does not change take half of bfloat16's memory, and half the time to read.

The matrices of layers become `qwix.QArray`s, which the decoder takes in their place: int8 values, and a float32 scale for
each output channel. Norms, biases, the embedding and the output matrix stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.placement import param_shardings
from rcsd_jax.models.sharding import DEFAULT_RULES
from rcsd_jax.models.weights import Matrix


def int8_kernels(config: DecoderConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the matrices of layers in int8. Pure; see `on_mesh` for shardings.

    Args:
      config: of the decoder.
      params: decoder parameters; not changed. Matrices that are in int8 already stay as they are.

    Returns:
      Their tree, with `qwix.QArray`s for matrices [L, in, out]: values [L, in, out] int8, and scales [L, 1, out] float32, the
      largest magnitude of a column over 127.5, as qwix has it. Experts' matrices [L, E, in, out] likewise.
    """
    matrices = layer_matrices(config)
    layers = {name: _int8(x) if name in matrices else x for name, x in params["layers"].items()}
    return {**params, "layers": layers}


def _int8(kernel: Matrix) -> qwix.QArray:
    if isinstance(kernel, qwix.QArray):
        return kernel
    # One layer at a time: in float32 a whole stack of kernels would take twice its own memory.
    return jax.lax.map(lambda x: int8_matrix(x.astype(jnp.float32)), kernel)


def int8_matrix(matrix: jax.Array) -> qwix.QArray:
    """A float32 matrix [in, out] in int8, rounded to the nearest, with a scale for each column; or several [E, in, out]."""
    if matrix.ndim > 2:
        return jax.vmap(int8_matrix)(matrix)
    return qwix.quantize(matrix, qtype=jnp.int8, channelwise_axes=(1,), scale_dtype=jnp.float32)


def on_mesh(
    config: DecoderConfig,
    params: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    rules: Mapping[str, Any] = DEFAULT_RULES,
) -> dict[str, Any]:
    """`int8_kernels` of parameters on a mesh, each with its matrix's sharding."""
    make = functools.partial(int8_kernels, config)
    return jax.jit(make, out_shardings=param_shardings(config, mesh, rules, jax.eval_shape(make, params)))(params)
