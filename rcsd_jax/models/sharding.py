"""Where arrays lie on the mesh: one flat table from logical axis to mesh axis, and what derives from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcsd_jax.host.errors import UserError

AXES = ("data", "group", "fsdp", "tensor")

DEFAULT_RULES: dict[str, Any] = {
    "batch": ("data", "group", "fsdp"),
    "layers": None,
    "vocab": "tensor",
    "embed": ("group", "fsdp"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}

SAMPLING_RULES: dict[str, Any] = {
    "batch": ("data", "group"),
    "layers": None,
    "vocab": ("fsdp", "tensor"),
    "embed": None,
    "heads": ("fsdp", "tensor"),
    "kv_heads": ("fsdp", "tensor"),
    "mlp": ("fsdp", "tensor"),
}

LAYOUTS = {"train": DEFAULT_RULES, "sampling": SAMPLING_RULES}
"""Two ways to use one mesh.

"train": rows over data, group and fsdp; weights are stored over group and fsdp, and a layer's are gathered when it runs, as
it then has work for many tokens. "sampling": one token is too little work to gather weights for, so fsdp splits matrices
as tensor does; every group of fsdp x tensor devices holds the whole model and samples rows of its own.
"""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, group: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes data, group, fsdp and tensor; see `LAYOUTS` for what they split.

    Args:
      data, fsdp, tensor, group: the sizes of the axes; one of them may be -1, for all remaining devices.
      devices: all of `jax.devices()` by default, of every process.

    Raises:
      UserError: the sizes do not multiply to the number of devices; names the config key `mesh`.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, group, fsdp, tensor]
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


def check_divisible(config: Any, mesh: Mesh, batches: Mapping[str, int]) -> None:
    """Checks that the mesh divides the batches, the heads and the widths it shards.

    Args:
      config: a `DecoderConfig`.
      mesh: of `make_mesh`.
      batches: what they are called -> rows over all devices.

    Raises:
      UserError: naming the config key of the mesh axis, its size and what it does not divide.
    """
    stored, rows = mesh.shape["group"] * mesh.shape["fsdp"], row_shards("train", mesh)
    needs = (
        *(("mesh.data x mesh.group x mesh.fsdp", rows, f"rows of {name}", count) for name, count in batches.items()),
        ("mesh.tensor", mesh.shape["tensor"], "attention heads", config.num_heads),
        ("mesh.tensor", mesh.shape["tensor"], "key/value heads", config.num_kv_heads),
        ("mesh.tensor", mesh.shape["tensor"], "intermediate_size", config.intermediate_size),
        ("mesh.tensor", mesh.shape["tensor"], "vocab_size", config.vocab_size),
        ("mesh.group x mesh.fsdp", stored, "hidden_size", config.hidden_size),
    )
    for field, size, what, count in needs:
        if count % size:
            remedy = f"choose a divisor of {count}"
            raise UserError(f"does not divide the {count} {what}", field=field, value=size, remedy=remedy)


def spec(axes: Sequence[str | None], rules: Mapping[str, Any] = DEFAULT_RULES) -> PartitionSpec:
    """The partition of an array with these logical axes (None: not sharded).

    Raises:
      KeyError: a logical axis that the rules do not know.
    """
    return PartitionSpec(*(None if axis is None else rules[axis] for axis in axes))


def param_shardings(config: Any, mesh: Mesh, rules: Mapping[str, Any] = DEFAULT_RULES) -> dict[str, Any]:
    """Shardings (`NamedSharding`) of the parameters of a `DecoderConfig`, as their tree."""
    from rcsd_jax.models.decoder import tree_of

    return tree_of(config, lambda _, parameter: NamedSharding(mesh, spec(parameter.axes, rules)))


def lora_shardings(
    config: Any, mesh: Mesh, adapters: Mapping[str, Any], rules: Mapping[str, Any] = DEFAULT_RULES
) -> dict[str, Any]:
    """Shardings of adapters: `a` [L, in, r] as its kernel's rows, `b` [L, r, out] as its columns; the rank is whole."""
    axes = adapter_axes(config, adapters)
    return {
        target: {side: NamedSharding(mesh, spec(a, rules)) for side, a in sides.items()}
        for target, sides in axes.items()
    }


def adapter_axes(config: Any, adapters: Mapping[str, Any]) -> dict[str, dict[str, tuple[str | None, ...]]]:
    """Logical axes of adapters, as their tree."""
    from rcsd_jax.models.decoder import declarations

    declared = {p.lora_target: p.axes for p in declarations(config).values() if p.lora_target}
    return {
        target: {"a": (*declared[target][:2], None), "b": (declared[target][0], None, declared[target][2])}
        for target in adapters
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, rows, over data, group and fsdp; other axes whole."""
    return NamedSharding(mesh, PartitionSpec(DEFAULT_RULES["batch"]))


def sampling_layout(config: Any) -> str:
    """The layout that a `DecoderConfig` is sampled in: "sampling" where the mesh that is set divides the model so.

    Otherwise "train", in which every token gathers all weights: fsdp x tensor then does not divide the heads or widths.
    """
    if not has_mesh():
        return "train"
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    widths = (config.num_kv_heads, config.num_heads, config.intermediate_size, config.vocab_size)
    return "train" if any(width % parts for width in widths) else "sampling"


def row_shards(layout: str, mesh: Mesh | None = None) -> int:
    """Into how many parts a mesh, by default the one that is set, splits rows in a layout; 1 without a mesh."""
    if mesh is None and not has_mesh():
        return 1
    sizes = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(sizes[axis] for axis in LAYOUTS[layout]["batch"])


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


def automatic(function: Callable, like: jax.Array, kept: Any) -> Callable:
    """`function` with the explicit axes of a mesh (as `jax.make_mesh` makes them) made automatic inside of it.

    Args:
      function: returns an array [B, T, ...], and a tree like `kept`.
      like: [B, T], on a mesh or not; the first result is sharded as this.
      kept: a tree of arrays whose shardings the second result has.
    """

    def mesh_of(x: jax.Array) -> Any:
        sharding = jax.typeof(x).sharding
        return sharding.mesh if isinstance(sharding, NamedSharding) else jax.sharding.get_abstract_mesh()

    mesh = mesh_of(like)
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return function
    place = lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec)
    return jax.sharding.auto_axes(function, out_sharding=(place(like), jax.tree.map(place, kept)))


def has_mesh() -> bool:
    """Whether a mesh of `AXES` is set (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().axis_names == AXES
