"""Meshes with explicit axes (as `jax.make_mesh` makes them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rcsd_jax.losses.traced import apart, together


def automatic(
    function: Callable, options: Any, *arrays: Any, axes: int | None = None, scalar_first: bool = False
) -> Any:
    """function(options, *arrays), with a mesh's explicit axes made automatic inside: the compiler chooses the communication.

    Args:
      function: returns arrays that are sharded like the first axes of the first array.
      options: a pytree; its traced leaves become automatic like the arrays.
      arrays: on the mesh or not; also tuples of arrays, but not the first.
      axes: how many first axes; None: all but the last.
      scalar_first: whether the function returns a scalar before those arrays.
    """
    # The first array need not be on the mesh: hidden states may still be on one device while the head is on many.
    shardings = [getattr(jax.typeof(x), "sharding", None) for x in jax.tree.leaves(arrays)]
    meshes = [x.mesh for x in shardings if isinstance(x, NamedSharding)]
    mesh = next((x for x in meshes if AxisType.Explicit in x.axis_types), None)
    if mesh is None:
        return function(options, *arrays)
    first = shardings[0].spec if isinstance(shardings[0], NamedSharding) else ()
    place = NamedSharding(mesh, PartitionSpec(*first[: arrays[0].ndim - 1 if axes is None else axes]))
    static, traced = apart(options)

    def with_traced(traced: list[jax.Array], *arrays: jax.Array) -> Any:
        return function(together(static, traced), *arrays)

    out_sharding = (NamedSharding(mesh, PartitionSpec()), place) if scalar_first else place
    return jax.sharding.auto_axes(with_traced, out_sharding=out_sharding)(traced, *arrays)
