"""Adapters added into the weights before a decoding loop. In the loop their small products take as long as large ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.quantization import int8_matrix
from rcsd_jax.models.sharding import constrain
from rcsd_jax.models.weights import Matrix, placed


def merged(
    config: DecoderConfig, variables: Mapping[str, Any], rules: Mapping[str, Any], *, int8: bool = False
) -> dict[str, Any]:
    """Variables without adapters that give what these give with them, up to rounding (inside jit).

    If `config.dtype` is bfloat16, W + scale * a @ b is rounded up or down at random, in proportion to how near each is.
    Rounding to the nearest would lose whatever is smaller than half the distance of two bfloat16 numbers, 0.2 to 0.4% of a
    weight: in early steps nearly all of an adapter. Random rounding keeps it on average over the thousands of weights that
    an output sums up. The random numbers are the same every time, so equal adapters give equal weights.

    In int8 the sum is rounded to the nearest. Stored weights are bfloat16 numbers themselves, but they lie anywhere between two
    int8 numbers. So an update that is much smaller than int8's step still moves its share of them to the next.

    Args:
      config: of the decoder.
      variables: "params", none of them in int8, and "lora".
      rules: of the layout that the weights are wanted in, see `sharding.LAYOUTS`.
      int8: whether the sums are stored as `quantization.quantized` stores matrices.

    Returns:
      {"params"}: matrices with adapters in `config.dtype` or int8, on a mesh as `rules` say; all else as it was. One layer at
      a time is in float32.
    """
    params = variables["params"]
    layers = dict(params["layers"])
    matrices = layer_matrices(config)
    for number, (target, adapter) in enumerate(sorted(variables["lora"].items())):
        axes = matrices[target].axes[1:]

        def one_layer(layer: Any, number: int = number, axes: Any = axes) -> Matrix:
            index, w, a, b = layer  # [], [in, out], [in, r], [r, out]; of experts [E, ...]
            w, a, b = (
                constrain(x.astype(jnp.float32), of_x, rules)
                for x, of_x in ((w, axes), (a, (*axes[:-1], None)), (b, (*axes[:-2], None, axes[-1])))
            )
            total = w + config.lora_scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            if int8:
                return placed(int8_matrix(total), axes, rules, config.dtype)
            key = jax.random.fold_in(jax.random.key(number), index)
            return placed(rounded_at_random(total, config.dtype, key), axes, rules, config.dtype)

        stacks = (jnp.arange(config.num_layers), layers[target], adapter["a"], adapter["b"])
        layers[target] = jax.lax.map(one_layer, stacks)
    return {"params": {**params, "layers": layers}}


def rounded_at_random(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """float32 x in `dtype`; for bfloat16 one of its two neighbours, with x as the expected value."""
    if jnp.dtype(dtype) != jnp.bfloat16:
        return x.astype(dtype)
    # A bfloat16 is the upper half of a float32. A carry out of the lower half comes as often as that half says.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
