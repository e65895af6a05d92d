"""Int8 weights, by qwix: what training does not change takes half of bfloat16's memory, and so does reading it.

A layer's kernels become `qwix.QArray`s, which the decoder takes in their place: int8 values, and a float32 scale for each
output channel. Norms, biases, the embedding and the output matrix stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.sharding import NamedSharding

from rcsd_jax.models import sharding


def int8_kernels(config: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the layers' kernels in int8; pure, see `on_mesh` for its shardings.

    Args:
      config: `DecoderConfig`.
      params: decoder parameters; not changed.

    Returns:
      Their tree, with `qwix.QArray`s for kernels [L, in, out]: values [L, in, out] int8, scales [L, 1, out] float32, the
      largest magnitude of a column over 127.5, as qwix has it.
    """
    from rcsd_jax.models.decoder import declarations

    kernels = {path[1] for path, parameter in declarations(config).items() if parameter.lora_target}
    layers = {name: _int8(x) if name in kernels else x for name, x in params["layers"].items()}
    return {**params, "layers": layers}


def _int8(kernel: jax.Array) -> qwix.QArray:
    quantize = functools.partial(qwix.quantize, qtype=jnp.int8, channelwise_axes=(1,), scale_dtype=jnp.float32)
    # A layer at a time: in float32 a whole stack of kernels would take twice its own memory.
    return jax.lax.map(lambda x: quantize(x.astype(jnp.float32)), kernel)


def on_mesh(config: Any, params: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """`int8_kernels` of parameters on a mesh, each where its kernel lies."""
    make = functools.partial(int8_kernels, config)
    return jax.jit(make, out_shardings=shardings(config, jax.eval_shape(make, params), mesh))(params)


def shardings(
    config: Any, params: Any, mesh: jax.sharding.Mesh, rules: Mapping[str, Any] = sharding.DEFAULT_RULES
) -> Any:
    """Shardings of parameters, of which some may be in int8, as their tree."""
    axes = parameter_axes(config, params)
    return jax.tree.map(lambda _, a: NamedSharding(mesh, sharding.spec(a, rules)), params, axes)


def parameter_axes(config: Any, params: Any) -> Any:
    """Logical axes of parameters, of which some may be in int8, as their tree."""
    from rcsd_jax.models.decoder import tree_of

    def of(path: tuple[str, ...], parameter: Any) -> Any:
        value = functools.reduce(lambda tree, name: tree[name], path, params)
        if isinstance(value, qwix.QArray):
            layers, _, columns = parameter.axes
            return dataclasses.replace(value, qvalue=parameter.axes, scale=(layers, None, columns))
        return parameter.axes

    return tree_of(config, of)
