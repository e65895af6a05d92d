"""Linear projections of a layer: the product with a weight, with its adapter and bias where they exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models import weights as forms
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.parameters import Declared, Parameter
from rcsd_jax.models.sharding import LAYOUTS, constrain, parts_of_a_row, row_shards


def project(
    config: DecoderConfig,
    declared: Declared,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    h: jax.Array,
    *names: str,
) -> list[jax.Array]:
    """The named projections of h.

    Args:
      config: of the decoder.
      declared: the declarations of the block that the names belong to.
      weights: of the layer: a matrix [in, out] for each name, and NAME_bias [out] where there is a bias.
      adapters: of the layer: name -> {"a": [in, r], "b": [r, out]}; names without one are left out.
      h: [B, T, in].
      *names: of matrices with the same rows.

    Returns:
      [B, T, out] for each name, in `config.dtype`.
    """
    rules = LAYOUTS[config.layout]
    axes = {name: _gathered_axes(declared[name]) for name in names}
    adapted = [name for name in names if name in adapters]
    # A token's products with every `a` are one product: one rank is narrower than a TPU's matrix unit.
    low = {}
    if adapted:
        a = [adapters[name]["a"].astype(config.dtype) for name in adapted]
        a = [constrain(x, (axes[name][0], None), rules) for name, x in zip(adapted, a, strict=True)]
        edges = np.cumsum([x.shape[1] for x in a[:-1]])
        products = checkpoint_name(h @ jnp.concatenate(a, axis=1), "adapters_in")
        low = dict(zip(adapted, jnp.split(products, edges, axis=-1), strict=True))
    outputs = []
    for name in names:
        w = forms.without_groups(weights[name], declared[name].axes, rules, config.dtype)
        w = forms.placed(w, axes[name], rules, config.dtype)
        if name in low:
            b = constrain(adapters[name]["b"].astype(config.dtype), (None, axes[name][1]), rules)
            y = _matmul_with_adapter(config, h, w, config.lora_scale * low[name], b)
        else:
            y = forms.matmul(h, w)
        if f"{name}_bias" in weights:
            y += weights[f"{name}_bias"].astype(config.dtype)
        outputs.append(y)
    return outputs


def _gathered_axes(parameter: Parameter) -> tuple[str | None, str | None]:
    """Axes of a matrix with "embed" whole: gathered before use. Otherwise GSPMD adds partial products in a loop."""
    rows, columns = (None if axis == "embed" else axis for axis in parameter.axes)
    return rows, columns


def _matmul_with_adapter(
    config: DecoderConfig, h: jax.Array, w: forms.Matrix, low: jax.Array, b: jax.Array
) -> jax.Array:
    """h @ w + low @ b, for h [B, T, in] and low [B, T, r]."""
    # A joint product copies the weights, which are larger than the activations of few tokens. And sampling splits `in`, which
    # devices would have to exchange to join it with r.
    tokens = h.shape[0] * h.shape[1] // (row_shards(config.layout) * parts_of_a_row(config.layout))
    if h.shape[1] == 1 or tokens < h.shape[2] or config.layout == "sampling":
        return forms.matmul(h, w) + low @ b
    return _joint_matmul(h, forms.plain(w, h.dtype), low, b)


@jax.custom_vjp
def _joint_matmul(h: jax.Array, w: jax.Array, low: jax.Array, b: jax.Array) -> jax.Array:
    """One product over in + r. Adding two products reads and writes [B, T, out] again, a fourth of the time on a TPU."""
    return jnp.concatenate([h, low], axis=-1) @ jnp.concatenate([w, b], axis=0)


def _joint_matmul_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    h, w, low, b = residuals
    joint = jnp.einsum("bto,io->bti", gradient, jnp.concatenate([w, b], axis=0))
    # Two products, so that nothing is computed for a frozen w, whose gradient nobody asks for.
    w_gradient, b_gradient = (jnp.einsum("bti,bto->io", x, gradient) for x in (h, low))
    return joint[..., : h.shape[-1]], w_gradient, joint[..., h.shape[-1] :], b_gradient


_joint_matmul.defvjp(lambda *inputs: (_joint_matmul(*inputs), inputs), _joint_matmul_backward)
