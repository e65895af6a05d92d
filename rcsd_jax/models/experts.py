"""A mixture of experts as the feed-forward block of a layer, without dropped tokens (arXiv 2211.15841).

    routes       a few experts for each token                           router.py
    sorted       a row for each token and expert of it, by expert
    multiplied   every expert with its own rows, each times its share   expert_rows.py, kernels/grouped_matmul.py
    added up     a token's rows

On a mesh, each device of the axis `expert` has some of the experts, and tokens travel: see `dealt_experts`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.sharding import PartitionSpec

from rcsd_jax.models import dealt_experts, router
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.expert_rows import NAMES, Parts, through_experts
from rcsd_jax.models.parameters import Declared, matrix
from rcsd_jax.models.router import Routes
from rcsd_jax.models.sharding import LAYOUTS, constrain, has_mesh, spec
from rcsd_jax.models.weights import OfStack, scales_of_groups, without_groups


def declared(config: DecoderConfig) -> Declared:
    """The block's parameters, of one layer: the router, and the experts' matrices, stacked."""
    embed, mlp = ("expert_embed", config.hidden_size), ("expert_mlp", config.expert_size)
    one = {"expert_gate": matrix(config, embed, mlp), "expert_up": matrix(config, embed, mlp)}
    one["expert_down"] = matrix(config, mlp, embed)
    of_all = {
        name: p._replace(shape=(config.num_experts, *p.shape), axes=("experts", *p.axes)) for name, p in one.items()
    }
    return router.declared(config) | of_all


def apply(
    config: DecoderConfig,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    h: jax.Array,
    real: jax.Array | None,
    recorded: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over each token's experts of share * (activation(h @ gate) * (h @ up)) @ down.

    Args:
      config: of the decoder.
      weights: of the layer; matrices [E, in, out], or `qwix.QArray`s of them, or `OfStack`s of either.
      adapters: of the layer: name -> {"a": [E, in, r], "b": [E, r, out]}; names without one are left out.
      h: [B, T, D].
      real: [B, T] bool, False at padding, which has no experts; None: all are real.
      recorded: as of `router.routes`.

    Returns:
      [B, T, D] in `config.dtype`, 0 at padding, and what the block reports: see `router.routes`, and `experts` [B, T, k] int32,
      those chosen.
    """
    chosen, reported = router.routes(config, weights["router"], h, real, recorded)
    parts, specs = {}, {}
    for name, parameter in declared(config).items():
        if name in NAMES:
            parts[name], specs[name] = _parts(config, parameter.axes, weights[name], adapters.get(name))
    compute = functools.partial(_of_device, config)
    if has_mesh():
        rows = spec(("batch", "places", None), LAYOUTS[config.layout])
        of_routes = jax.tree.map(lambda _: rows, chosen)
        compute = jax.shard_map(compute, in_specs=(specs, rows, of_routes), out_specs=rows, check_vma=False)
    return compute(parts, h, chosen), {**reported, "experts": chosen.experts}


def whole(config: DecoderConfig, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Of the stacked weights of all layers, those of which a layer best gets the whole stack, `OfStack`: nothing is copied then.

    They are the experts' matrices where the kernel reads them as they are stored. Where devices gather a layer's matrices, or
    convert them, or layers are apart, each layer gets its own.
    """
    if config.kernels == "xla" or not config.num_experts:
        return {}
    over = LAYOUTS[config.layout]["expert_embed"] or ()
    gathered = has_mesh() and any(jax.sharding.get_abstract_mesh().shape[axis] > 1 for axis in over)

    def as_stored(x: Any) -> bool:
        if isinstance(x, qwix.QArray):
            return not scales_of_groups(x)
        return isinstance(x, jax.Array) and x.dtype == config.dtype

    return {name: layers[name] for name in NAMES if not gathered and as_stored(layers[name])}


def _parts(
    config: DecoderConfig, axes: tuple[str | None, ...], weight: Any, adapter: Mapping[str, jax.Array] | None
) -> tuple[dict[str, jax.Array], dict[str, PartitionSpec]]:
    """The arrays of a matrix and their partitions: as stored, with "expert_embed" whole, which is gathered before use."""
    experts, rows, columns = (None if axis == "expert_embed" else axis for axis in axes)
    rules = LAYOUTS[config.layout]
    arrays: dict[str, jax.Array] = {}
    stack: tuple[str, ...] = ()
    if isinstance(weight, OfStack):
        arrays["layer"], weight, stack = jnp.asarray(weight.layer, jnp.int32), weight.stack, ("layers",)
    else:
        weight = without_groups(weight, axes, rules, config.dtype)
    of_part: dict[str, tuple[str | None, ...]] = {"layer": (), "w": (*stack, experts, rows, columns)}
    if isinstance(weight, qwix.QArray):
        arrays |= {"w": weight.qvalue, "scale": weight.scale}
        of_part["scale"] = (*stack, experts, None, columns)
    else:
        arrays["w"] = weight.astype(config.dtype)
    if adapter is not None:
        arrays |= {side: adapter[side].astype(config.dtype) for side in "ab"}
        of_part |= {"a": (experts, rows, None), "b": (experts, None, columns)}
    arrays = {name: constrain(array, of_part[name], rules) for name, array in arrays.items()}
    return arrays, {name: spec(of_part[name], rules) for name in arrays}


def _of_device(config: DecoderConfig, parts: Parts, h: jax.Array, chosen: Routes) -> jax.Array:
    """What a device's experts give, for its own rows h [B, T, D]; without a mesh, all experts for all rows."""
    rules = LAYOUTS[config.layout]
    over = rules["experts"]
    if has_mesh() and jax.sharding.get_abstract_mesh().shape[over] > 1:
        x, shares = (y.reshape(-1, y.shape[-1]) for y in (h, chosen.shares))
        out = dealt_experts.apply(config, parts, x, chosen.experts.reshape(shares.shape), shares, over).reshape(h.shape)
    else:
        out = _of_all(config, parts, h, chosen)
    return jax.lax.psum(out, rules["expert_mlp"]) if has_mesh() else out


def _of_all(config: DecoderConfig, parts: Parts, h: jax.Array, chosen: Routes) -> jax.Array:
    """The sum of what all experts give to h [B, T, D]."""
    k = config.experts_per_token
    experts = chosen.experts.reshape(-1)  # [B * T * k], padding's come last
    order = jnp.argsort(experts, stable=True)
    back = jnp.argsort(order)
    sizes = (experts[:, None] == jnp.arange(config.num_experts)).sum(axis=0, dtype=jnp.int32)
    x = _copied(h.reshape(-1, h.shape[-1]), order, back, k)
    y = through_experts(config, parts, x, _moved(chosen.shares.reshape(-1), order, back), sizes)
    y = _moved(y, back, order).reshape(-1, k, y.shape[-1])
    return y.sum(axis=1, dtype=jnp.float32).astype(h.dtype).reshape(h.shape)


# Rows are moved by permutations, whose inverses are known. XLA would compute the gradients of these reads as sums into rows, one
# after the other.


@jax.custom_vjp
def _moved(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """x[order] for x [M, D] and a permutation with the inverse `back`."""
    return x[order]


_moved.defvjp(lambda x, order, back: (x[order], back), lambda back, gradient: (gradient[back], None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _copied(x: jax.Array, order: jax.Array, back: jax.Array, copies: int) -> jax.Array:
    """Every row of x [N, D] `copies` times, [N * copies, D], in an order with the inverse `back`."""
    return x[order // copies]


def _copied_backward(copies: int, back: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    of_rows = gradient[back].reshape(-1, copies, gradient.shape[-1])
    return of_rows.sum(axis=1, dtype=jnp.float32).astype(gradient.dtype), None, None


_copied.defvjp(lambda x, order, back, copies: (x[order // copies], back), _copied_backward)
