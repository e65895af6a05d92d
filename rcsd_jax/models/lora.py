"""Low-rank adapters (LoRA, arXiv 2106.09685): their initial values, and merging them into the weights.

An adapter adds scale * (x @ a) @ b to the product with a matrix. Adapters are a tree of their own,
{target: {"a": [L, in, r], "b": [L, r, out]}}, which the decoder takes as its "lora" collection. Without it the same weights are
the base model. The targets are the matrices of the layers, `declarations.layer_matrices`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.parameters import Declared

Adapters: TypeAlias = dict[str, dict[str, jax.Array]]


def lora_targets(config: DecoderConfig) -> tuple[str, ...]:
    """Every name that `targets` may hold, in the decoder's order."""
    return tuple(layer_matrices(config))


def lora_scale(rank: int, alpha: float) -> float:
    """alpha / rank, the `DecoderConfig.lora_scale` under which adapters of this rank are trained and applied."""
    return alpha / rank


def init_lora(config: DecoderConfig, key: jax.Array, *, rank: int, alpha: float, targets: Iterable[str]) -> Adapters:
    """Adapters that change nothing yet: a is normal, b is zero.

    Args:
      config: of the model they are for.
      key: random key; a target's values depend on it and on the target, not on the other targets.
      rank: r, at least 1.
      alpha: numerator of the scale; positive.
      targets: names among `lora_targets`.

    Returns:
      {target: {"a": [L, in, r] float32 of the standard deviation of peft's kaiming-uniform initialiser,
      sqrt(1 / (3 in)), "b": [L, r, out] float32 zeros}}.

    Raises:
      UserError: see `check_settings`.
    """
    declared = check_settings(config, rank, alpha, targets := tuple(targets))
    adapters: Adapters = {}
    for number, (target, parameter) in enumerate(declared.items()):
        if target in targets:
            *stacked, fan_in, fan_out = parameter.shape
            noise = jax.random.normal(jax.random.fold_in(key, number), (*stacked, fan_in, rank), jnp.float32)
            adapters[target] = {
                "a": noise / jnp.sqrt(3.0 * fan_in),  # [L, in, r]
                "b": jnp.zeros((*stacked, rank, fan_out), jnp.float32),  # [L, r, out]
            }
    return adapters


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Mapping[str, jax.Array]], scale: float, *, dtype: Any = None
) -> dict[str, Any]:
    """Parameters W + scale * a @ b: without adapters they give what `params` give with them.

    Args:
      params: decoder parameters; not changed.
      adapters: see the module; the matrix of target t is params["layers"][t].
      scale: see `lora_scale`.
      dtype: of the merged matrices; None for their own.

    Returns:
      Parameters; those without adapters as they were. The sum is in float32, one layer at a time.
    """
    layers = dict(params["layers"])
    for target, adapter in adapters.items():
        to = layers[target].dtype if dtype is None else dtype
        layers[target] = _merged(layers[target], adapter["a"], adapter["b"], jnp.float32(scale), dtype=to)
    return {**params, "layers": layers}


@functools.partial(jax.jit, static_argnames="dtype")
def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, *, dtype: Any) -> jax.Array:
    def one_layer(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        w, a, b = layer  # [in, out], [in, r], [r, out]
        delta = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + scale * delta).astype(dtype)

    return jax.lax.map(one_layer, (kernel, a, b))


def check_settings(config: DecoderConfig, rank: int, alpha: float, targets: tuple[str, ...]) -> Declared:
    """All matrices that could be targets.

    Raises:
      UserError: a target that the decoder does not have, no target at all, or a rank or alpha that is not positive.
    """
    declared = layer_matrices(config)
    for name, value in (("rank", rank), ("alpha", alpha)):
        if value <= 0:
            raise UserError("must be positive", remedy="give a number above 0", field=f"lora.{name}", value=value)
    if not targets:
        raise UserError(
            "names no target", remedy=f"give some of {', '.join(declared)}", field="lora.targets", value=targets
        )
    for target in targets:
        if target not in declared:
            stem = re.sub(r"_proj$", "", target)
            (nearest,) = difflib.get_close_matches(stem, declared, n=1, cutoff=0.0)
            raise UserError(
                "is not a LoRA target",
                remedy=f"did you mean '{nearest}'? valid: {', '.join(declared)}",
                field="lora.targets",
                value=target,
            )
    return declared
