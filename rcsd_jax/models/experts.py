"""A mixture of experts as the feed-forward block of a layer, without dropped tokens (arXiv 2211.15841).

    routes       a few experts for each token                           router.py
    sorted       a row for each token and expert of it, by expert
    multiplied   every expert with its own rows                         kernels/grouped_matmul.py
    added up     a token's rows, each times its share

On a mesh, each device of the axis `expert` has some of the experts. It gathers the tokens of this axis, computes what its own
experts give to them, and the devices add up and share out the sums. With eight experts for each token and as many devices, most
tokens have an expert on most devices. So little travels in vain.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import qwix
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rcsd_jax.models import router
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.feed_forward import ACTIVATIONS
from rcsd_jax.models.kernels.grouped_matmul import grouped_matmul
from rcsd_jax.models.parameters import Declared, matrix
from rcsd_jax.models.router import Routes
from rcsd_jax.models.sharding import LAYOUTS, constrain, has_mesh, spec
from rcsd_jax.models.weights import without_groups

_Parts: TypeAlias = dict[str, dict[str, jax.Array]]
"""Name of a matrix -> its arrays: "w" [E, in, out], and where they exist "scale" [E, 1, out] of int8, and an adapter's "a", "b"."""

NAMES = ("expert_gate", "expert_up", "expert_down")


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
      weights: of the layer; matrices [E, in, out], or `qwix.QArray`s of them.
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


def _parts(
    config: DecoderConfig, axes: tuple[str | None, ...], weight: Any, adapter: Mapping[str, jax.Array] | None
) -> tuple[dict[str, jax.Array], dict[str, PartitionSpec]]:
    """The arrays of a matrix and their partitions: as stored, with "expert_embed" whole, which is gathered before use."""
    experts, rows, columns = (None if axis == "expert_embed" else axis for axis in axes)
    of_part = {"w": (experts, rows, columns)}
    rules = LAYOUTS[config.layout]
    weight = without_groups(weight, axes, rules, config.dtype)
    if isinstance(weight, qwix.QArray):
        arrays = {"w": weight.qvalue, "scale": weight.scale}
        of_part["scale"] = (experts, None, columns)
    else:
        arrays = {"w": weight.astype(config.dtype)}
    if adapter is not None:
        arrays |= {side: adapter[side].astype(config.dtype) for side in "ab"}
        of_part |= {"a": (experts, rows, None), "b": (experts, None, columns)}
    arrays = {name: constrain(array, of_part[name], rules) for name, array in arrays.items()}
    return arrays, {name: spec(of_part[name], rules) for name in arrays}


def _of_device(config: DecoderConfig, parts: _Parts, h: jax.Array, chosen: Routes) -> jax.Array:
    """What a device's experts give, for its own rows h [B, T, D]; without a mesh, all experts for all rows."""
    rules = LAYOUTS[config.layout]
    over = rules["experts"] if has_mesh() and jax.sharding.get_abstract_mesh().shape[rules["experts"]] > 1 else None
    first: jax.Array | int = 0
    if over:
        gather = functools.partial(jax.lax.all_gather, axis_name=over, axis=0, tiled=True)
        h, chosen = gather(h), jax.tree.map(gather, chosen)
        first = jax.lax.axis_index(over) * parts[NAMES[0]]["w"].shape[0]
    out = _through_experts(config, parts, h, chosen, first)
    if has_mesh():
        out = jax.lax.psum(out, rules["expert_mlp"])
    return jax.lax.psum_scatter(out, over, scatter_dimension=0, tiled=True) if over else out


def _through_experts(
    config: DecoderConfig, parts: _Parts, h: jax.Array, chosen: Routes, first: jax.Array | int
) -> jax.Array:
    """The sum of what experts first, first + 1, ... give to h [B, T, D], as many as `parts` has."""
    experts, k = parts[NAMES[0]]["w"].shape[0], config.experts_per_token
    own = chosen.experts.reshape(-1) - first  # [B * T * k]
    own = jnp.where((own >= 0) & (own < experts), own, experts)  # those of other devices, and padding, come last
    order = jnp.argsort(own, stable=True)
    back = jnp.argsort(order)
    own = own[order]
    sizes = (own[:, None] == jnp.arange(experts)).sum(axis=0, dtype=jnp.int32)
    there = own[:, None] < experts

    def product(name: str, x: jax.Array) -> jax.Array:
        part = parts[name]
        y = grouped_matmul(x, part["w"].astype(x.dtype), sizes, config.kernels)
        if "scale" in part:
            y = (y * part["scale"][jnp.minimum(own, experts - 1), 0]).astype(x.dtype)
        if "a" in part:
            low = grouped_matmul(x, part["a"], sizes, config.kernels)
            y += grouped_matmul(config.lora_scale * low, part["b"], sizes, config.kernels)
        return jnp.where(there, y, 0)

    x = _copied(h.reshape(-1, h.shape[-1]), order, back, k)
    gate, up = (checkpoint_name(product(name, x), "mlp_in") for name in NAMES[:2])
    y = _moved(product(NAMES[2], ACTIVATIONS[config.activation](gate) * up), back, order)
    shares = chosen.shares.reshape(-1, k)
    out = jnp.einsum("nkd,nk->nd", y.reshape(*shares.shape, -1), shares, preferred_element_type=jnp.float32)
    return out.astype(h.dtype).reshape(h.shape)


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
