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


def int8_kernels(config: DecoderConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the matrices of layers in int8. Pure; see `on_mesh` for shardings.

    Args:
      config: of the decoder.
      params: decoder parameters; not changed.

    Returns:
      Their tree, with `qwix.QArray`s for matrices [L, in, out]: values [L, in, out] int8, and scales [L, 1, out] float32, the
      largest magnitude of a column over 127.5, as qwix has it.
    """
    matrices = layer_matrices(config)
    layers = {name: _int8(x) if name in matrices else x for name, x in params["layers"].items()}
    return {**params, "layers": layers}


def _int8(kernel: jax.Array) -> qwix.QArray:
    quantize = functools.partial(qwix.quantize, qtype=jnp.int8, channelwise_axes=(1,), scale_dtype=jnp.float32)
    # One layer at a time: in float32 a whole stack of kernels would take twice its own memory.
    return jax.lax.map(lambda x: quantize(x.astype(jnp.float32)), kernel)


def on_mesh(config: DecoderConfig, params: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """`int8_kernels` of parameters on a mesh, each with its matrix's sharding."""
    make = functools.partial(int8_kernels, config)
    return jax.jit(make, out_shardings=param_shardings(config, mesh, params=jax.eval_shape(make, params)))(params)
