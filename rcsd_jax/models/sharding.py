"""The mesh and the shardings of arrays: one flat table from logical axes to mesh axes, and everything derived from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcsd_jax.host.errors import UserError

AXES = ("data", "group", "fsdp", "expert", "tensor")

DEFAULT_RULES: dict[str, Any] = {
    "batch": ("data", "group", "fsdp", "expert"),
    "places": None,
    "layers": None,
    "vocab": "tensor",
    "embed": ("group", "fsdp", "expert"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "expert",
    "expert_embed": ("group", "fsdp"),
    "expert_mlp": "tensor",
}

SPREAD_RULES: dict[str, Any] = DEFAULT_RULES | {
    "embed": ("data", "group", "fsdp", "expert"),
    "expert_embed": ("data", "group", "fsdp"),
}
"""As they are stored, weights over all devices: of a large model that only scores, so that data holds no copies."""

SPLIT_RULES: dict[str, Any] = DEFAULT_RULES | {"batch": ("data", "group", "expert"), "places": ("fsdp",)}

SAMPLING_RULES: dict[str, Any] = {
    "batch": ("data", "group", "expert"),
    "places": None,
    "layers": None,
    "vocab": ("fsdp", "tensor"),
    "embed": None,
    "heads": ("fsdp", "tensor"),
    "kv_heads": ("fsdp", "tensor"),
    "mlp": ("fsdp", "tensor"),
    "experts": "expert",
    "expert_embed": None,
    "expert_mlp": ("fsdp", "tensor"),
}

LAYOUTS = {"train": DEFAULT_RULES, "split": SPLIT_RULES, "sampling": SAMPLING_RULES}
"""Ways to use one mesh.

"train": rows over data, group and fsdp. Weights are stored over group and fsdp, and a layer's weights are gathered when it
runs, because it then has work for many tokens. "sampling": one token is too little work to gather weights for, so fsdp
splits matrices as tensor does. Every group of fsdp x tensor devices holds the whole model and samples its own rows.
"split": as "train", but fsdp splits the places of a row instead of the rows, so that devices share a few long rows evenly. Only
attention needs whole rows: for it the devices exchange places for heads.
The axis expert is one more axis of rows and of stored weights, except for the experts of a mixture, which it deals out: a device
keeps whole experts, and tokens travel instead of weights, see `experts`. When sampling, the devices of this axis hold the rest of
the model as often as there are of them.
"""


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    group: int = 1,
    expert: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of the axes `AXES`; see `LAYOUTS` for what they split.

    Args:
      data, fsdp, tensor, group, expert: the sizes of the axes; one of them may be -1, for all remaining devices.
      devices: all of `jax.devices()` by default, of every process.

    Raises:
      UserError: the sizes do not multiply to the number of devices; names the config key `mesh`.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, group, fsdp, expert, tensor]
    named = dict(zip(AXES, sizes, strict=True))
    if sizes.count(-1) == 1 and 0 not in sizes:
        known = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"the mesh does not fit {len(devices)} devices",
            field="mesh",
            value=named,
            remedy="choose sizes whose product is the number of devices; one of them may be -1",
        )
    # Places neighbours on a TPU's torus next to each other on the mesh; elsewhere it is a reshape.
    return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES)


def spec(axes: Sequence[str | None], rules: Mapping[str, Any] = DEFAULT_RULES) -> PartitionSpec:
    """The partition of an array with these logical axes (None: not sharded).

    Raises:
      KeyError: a logical axis that the rules do not know.
    """
    return PartitionSpec(*(None if axis is None else rules[axis] for axis in axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, rows, over data, group, fsdp and expert; other axes whole."""
    return NamedSharding(mesh, PartitionSpec(DEFAULT_RULES["batch"]))


def row_shards(layout: str, mesh: Mesh | None = None) -> int:
    """Into how many parts a mesh, by default the one that is set, splits rows in a layout; 1 without a mesh."""
    if mesh is None and not has_mesh():
        return 1
    sizes = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(sizes[axis] for axis in LAYOUTS[layout]["batch"])


def parts_of_a_row(layout: str, mesh: Mesh | None = None) -> int:
    """Into how many parts a mesh, by default the one that is set, splits the places of a row in a layout; 1 without a mesh."""
    if mesh is None and not has_mesh():
        return 1
    sizes = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(sizes[axis] for axis in LAYOUTS[layout]["places"] or ())


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def own_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Which of a batch's `count` rows this process's devices hold, in order: [n] int.

    Where the tensor axis spans processes, several of them hold, and feed, the same rows.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in held]))


def to_mesh(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of every array of a batch onto the mesh; together the processes' rows are the batch.

    Args:
      batch: a pytree of arrays [rows of this process, ...], see `own_rows`.
      mesh: of `make_mesh`.

    Returns:
      The tree as global `jax.Array`s [rows of all processes, ...], sharded by `batch_sharding`.
    """
    place = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)), batch)


def constrain(x: jax.Array, axes: Sequence[str | None], rules: Mapping[str, Any] = DEFAULT_RULES) -> jax.Array:
    """Asks for the sharding of `axes` inside jit; returns `x` as it is unless a mesh of `AXES` is set (`jax.set_mesh`).

    Args:
      x: any array.
      axes: a logical axis, or None, for each of its axes.
      rules: logical axis -> mesh axis.
    """
    if not has_mesh():
        return x
    explicit = jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return (jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint)(x, spec(axes, rules))


def gathered(array: jax.Array) -> jax.sharding.Sharding | None:
    """The sharding under which every process holds the whole array; None if this one holds all of it as it is."""
    if array.is_fully_addressable:
        return None
    assert isinstance(array.sharding, NamedSharding), "several processes hold arrays over their mesh"
    return NamedSharding(array.sharding.mesh, PartitionSpec())


def automatic(function: Callable, like: jax.Array, kept: Any) -> Callable:
    """`function` with the explicit axes of a mesh (as `jax.make_mesh` makes them) made automatic inside it.

    Args:
      function: returns an array [B, T, ...], a tree like `kept`, and a tree of small arrays.
      like: [B, T], on a mesh or not; the first result is sharded like this.
      kept: a tree of arrays whose shardings the second result has. The third result is replicated.
    """

    def mesh_of(x: jax.Array) -> Any:
        sharding = jax.typeof(x).sharding
        return sharding.mesh if isinstance(sharding, NamedSharding) else jax.sharding.get_abstract_mesh()

    mesh = mesh_of(like)
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return function
    place = lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.sharding.auto_axes(function, out_sharding=(place(like), jax.tree.map(place, kept), whole))


def has_mesh() -> bool:
    """Whether a mesh of `AXES` is set (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().axis_names == AXES
