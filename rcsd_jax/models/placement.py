"""The shardings of a decoder's parameters and adapters on a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import qwix
from jax.sharding import Mesh, NamedSharding

from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import Path, layer_matrices, leaf_at, tree_of
from rcsd_jax.models.parameters import Parameter
from rcsd_jax.models.sharding import DEFAULT_RULES, LAYOUTS, has_mesh, row_shards, spec
from rcsd_jax.models.weights import GROUP, scale_axes


def param_axes(config: DecoderConfig, params: Any = None) -> Any:
    """The logical axes of parameters, as their tree.

    Args:
      config: of the decoder.
      params: the parameters, if some of them may be quantized; None: all as declared.
    """

    def axes(path: Path, parameter: Parameter) -> Any:
        value = None if params is None else leaf_at(params, path)
        if isinstance(value, qwix.QArray):
            return dataclasses.replace(value, qvalue=parameter.axes, scale=scale_axes(value, parameter.axes))
        return parameter.axes

    return tree_of(config, axes)


def param_shardings(
    config: DecoderConfig, mesh: Mesh, rules: Mapping[str, Any] = DEFAULT_RULES, params: Any = None
) -> Any:
    """Shardings (`NamedSharding`) of parameters, as their tree; `params` as in `param_axes`."""
    return _shardings(param_axes(config, params), mesh, rules)


def lora_axes(config: DecoderConfig, adapters: Mapping[str, Any]) -> dict[str, dict[str, tuple[str | None, ...]]]:
    """The logical axes of adapters, as their tree: `a` [L, in, r] as its matrix's rows, `b` [L, r, out] as its columns."""
    axes = {name: parameter.axes for name, parameter in layer_matrices(config).items()}
    return {
        target: {"a": (*axes[target][:-1], None), "b": (*axes[target][:-2], None, axes[target][-1])}
        for target in adapters
    }


def lora_shardings(
    config: DecoderConfig, mesh: Mesh, adapters: Mapping[str, Any], rules: Mapping[str, Any] = DEFAULT_RULES
) -> Any:
    """Shardings of adapters, as their tree; the rank is whole."""
    return _shardings(lora_axes(config, adapters), mesh, rules)


def _shardings(axes: Any, mesh: Mesh, rules: Mapping[str, Any]) -> Any:
    is_axes = lambda x: type(x) is tuple
    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x, rules)), axes, is_leaf=is_axes)


def check_divisible(
    config: DecoderConfig,
    mesh: Mesh,
    batches: Mapping[str, int],
    *,
    split_rows: bool = False,
    rules: Mapping[str, Any] = DEFAULT_RULES,
    quantization: str = "none",
    whose: str = "",
) -> None:
    """Checks that the mesh divides the batches, the heads, the widths and the experts that it shards, and int4's groups.

    Args:
      config: of the decoder.
      mesh: of `sharding.make_mesh`.
      batches: what they are called -> rows over all devices.
      split_rows: whether rows are split over it, in the layout "split".
      rules: by which its weights are stored.
      quantization: "int4" if its matrices have scales of groups.
      whose: what messages put before the model's sizes, if it is not the student, such as "teacher's ".

    Raises:
      UserError: naming the config key of the mesh axis, its size and what it does not divide.
    """
    over, rows = rules["embed"], row_shards("train", mesh)
    stored = math.prod(mesh.shape[axis] for axis in over)
    named = lambda axes: " x ".join(f"mesh.{axis}" for axis in axes if axis != "expert" or mesh.shape[axis] > 1)
    of_rows = named(DEFAULT_RULES["batch"])
    needs = (
        *((of_rows, rows, f"rows of {name}", count) for name, count in batches.items()),
        ("mesh.tensor", mesh.shape["tensor"], "attention heads", config.num_heads),
        ("mesh.tensor", mesh.shape["tensor"], "key/value heads", config.num_kv_heads),
        ("mesh.tensor", mesh.shape["tensor"], *_width(config)),
        ("mesh.tensor", mesh.shape["tensor"], "vocab_size", config.vocab_size),
        (named(over), stored, "hidden_size", config.hidden_size),
        ("mesh.expert", mesh.shape["expert"], "experts", config.num_experts),
    )
    for field, size, what, count in needs:
        if count % size:
            remedy = f"choose a divisor of {count}"
            what = what if what.startswith("rows of") else f"{whose}{what}"
            raise UserError(f"does not divide the {count} {what}", field=field, value=size, remedy=remedy)
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    if split_rows and config.num_kv_heads % parts:
        heads = f"{config.num_kv_heads} {whose}key/value heads"
        problem = f"the {parts} devices of mesh.fsdp x mesh.tensor cannot share {heads}"
        raise UserError(problem, field="train.split_rows", value=True, remedy="set it to False, or lower mesh.fsdp")
    if quantization == "int4":
        _check_groups(config, mesh, rules, whose)


def _check_groups(config: DecoderConfig, mesh: Mesh, rules: Mapping[str, Any], whose: str) -> None:
    """Raises UserError unless every device has whole groups of every matrix, as it is stored and as it is when sampling."""
    for name, parameter in layer_matrices(config).items():
        rows, axis = parameter.shape[-2], parameter.axes[-2]
        for split in (rules, LAYOUTS["sampling"]):
            over = (split[axis] if axis else None) or ()
            parts = math.prod(mesh.shape[of] for of in ((over,) if isinstance(over, str) else over))
            if rows % (GROUP * parts):
                problem = (
                    f"the {rows} rows of the {whose}matrix {name} are not whole groups of {GROUP} on {parts} devices"
                )
                field = "teacher.quantization" if whose else "model.quantization"
                remedy = "set 'int8', or split matrices over fewer devices"
                raise UserError(problem, field=field, value="int4", remedy=remedy)


def _width(config: DecoderConfig) -> tuple[str, int]:
    """What config.json calls the width of a feed-forward block, or of an expert, and the width."""
    return (
        ("moe_intermediate_size", config.expert_size)
        if config.num_experts
        else ("intermediate_size", config.intermediate_size)
    )


def sampling_layout(config: DecoderConfig) -> str:
    """The layout in which a decoder is sampled: "sampling" if the mesh that is set divides the heads and widths so.

    Otherwise "train", in which every token gathers all weights.
    """
    if not has_mesh():
        return "train"
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    widths = (config.num_kv_heads, config.num_heads, _width(config)[1], config.vocab_size)
    return "train" if any(width % parts for width in widths) else "sampling"
