"""Decoders of at most four layers: unrolled instead of scanned.

No published model has so few. Those of tests, benches and demos do, on CPUs. They are cheap to compile unrolled, and run
faster: XLA on CPUs copies a layer that it takes out of a stack, and reads transposed matrices faster for a single token.
All that differs for them is here: one pool of keys and values a layer, layers apart, transposed matrices, a plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.weights import Matrix, Transposed

LIMIT = 4


def unrolled(config: DecoderConfig) -> bool:
    """Whether the decoder runs unrolled."""
    return config.num_layers <= LIMIT


def cache_pools(config: DecoderConfig, layers: int) -> int:
    """In how many pools a cache keeps so many of the decoder's layers."""
    return layers if unrolled(config) else min(layers, 1)


def decoding_variables(
    config: DecoderConfig, variables: Mapping[str, Any], matrices: Collection[str]
) -> dict[str, Any]:
    """Variables as a loop over single tokens reads them best: unrolled, a tuple of L arrays for each stacked one.

    Layers are taken apart, and the named matrices transposed, once before the loop instead of for every token. Variables
    of a scanned decoder are returned as they are.
    """
    if not unrolled(config):
        return dict(variables)
    split = lambda tree: jax.tree.map(lambda x: tuple(x[i] for i in range(config.num_layers)), tree)
    layers = {
        # Experts' matrices have their own products.
        name: Transposed(x.swapaxes(1, 2)) if name in matrices and isinstance(x, jax.Array) and x.ndim == 3 else x
        for name, x in variables["params"]["layers"].items()
    }
    params = variables["params"] | {"layers": split(layers)}
    return {"params": params} | ({"lora": split(variables["lora"])} if "lora" in variables else {})


def decoding_head(config: DecoderConfig, head: jax.Array) -> Matrix:
    """The output matrix [D, V] as a loop over single tokens reads it best."""
    return Transposed(head.T) if unrolled(config) else head


def loop(layer: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacked: tuple[Any, ...], length: int) -> tuple:
    """`jax.lax.scan` as a Python loop, in which a layer's number is static and a tuple of L arrays is a stack of them."""
    reports = []
    for i in range(length):
        of_layer = [jax.tree.map(lambda x, i=i: x[i], tree, is_leaf=_is_tuple) for tree in stacked]
        carry, report = layer(carry, (i, *of_layer))
        reports.append(report)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *reports)


def _is_tuple(x: Any) -> bool:
    return isinstance(x, tuple)
