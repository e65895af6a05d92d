"""LoRA adapters in the files of `peft`: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.tensors import tensors_of
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.host.replaced_directory import replaced_directory
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import layer_matrices
from rcsd_jax.models.lora import Adapters, check_settings, lora_targets
from rcsd_jax.models.parameters import Parameter
from rcsd_jax.models.sharding import gathered

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


class PeftAdapter(NamedTuple):
    """What `load_peft` read."""

    adapters: Adapters
    rank: int
    alpha: float
    targets: tuple[str, ...]


def save_peft(
    directory: str | os.PathLike,
    config: DecoderConfig,
    adapters: Mapping[str, Mapping[str, jax.Array]],
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    base_path: str | os.PathLike,
) -> AnyPath:
    """Writes adapter_config.json and adapter_model.safetensors, as `peft.PeftModel.from_pretrained` reads them.

    Args:
      directory: new, empty, or an adapter to replace; it appears complete or not at all.
      config: of the model they are for.
      adapters: see `models.lora`. If other processes hold a part of them, all processes call this and process 0 writes.
      rank, alpha, targets: as given to `init_lora`.
      base_path: directory or hub id of the base model, noted in adapter_config.json.

    Returns:
      The directory.

    Raises:
      UserError: see `check_settings` and `replaced_directory`.
      ValueError: adapters of other targets or another rank than said.
    """
    matrices = check_settings(config, rank, alpha, targets := tuple(targets))
    if set(adapters) != set(targets):
        raise ValueError(f"adapters of {sorted(adapters)} given, targets are {sorted(targets)}")
    tensors, modules = {}, []
    for target, adapter in adapters.items():
        modules.append(_template(config, target).split(".")[-2])
        if adapter["a"].shape[-1] != rank:
            raise ValueError(f"adapter {target} has rank {adapter['a'].shape[-1]}, not {rank}")
        a, b = (_on_host(adapter[side]) for side in "ab")
        for index, (name_a, name_b) in _names(config, target, matrices[target]).items():
            tensors[name_a] = np.ascontiguousarray(a[index].T)  # [r, in]
            tensors[name_b] = np.ascontiguousarray(b[index].T)  # [out, r]
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_path),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    if jax.process_index():
        return as_path(directory)
    with replaced_directory(directory) as partial:
        (partial / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        (partial / _WEIGHTS).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    return as_path(directory)


def _on_host(array: jax.Array) -> np.ndarray:
    to = gathered(array) if isinstance(array, jax.Array) else None
    return np.asarray(array if to is None else jax.device_put(array, to))


def load_peft(directory: str | os.PathLike, config: DecoderConfig) -> PeftAdapter:
    """Reads a LoRA adapter that `save_peft` or `peft` wrote.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      config: of the model it is for.

    Returns:
      PeftAdapter; the adapters are float32.

    Raises:
      UserError: a file is missing or unreadable, the adapter uses a feature other than plain LoRA, or its tensors do
        not fit the model.
    """
    directory = pathlib.Path(directory)
    _, rank, alpha = read_peft_config(directory)
    try:
        tensors = safetensors.numpy.load_file(directory / _WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(directory, error) from error
    adapters: Adapters = {}
    for target, parameter in layer_matrices(config).items():
        *stacked, fan_in, fan_out = parameter.shape
        names = _names(config, target, parameter).values()
        if not any(name in tensors for pair in names for name in pair):
            continue
        sides = []
        for side, shape in ((0, (rank, fan_in)), (1, (fan_out, rank))):
            found: list[np.ndarray] = []
            for pair in names:
                tensor = tensors.pop(pair[side], None)
                if tensor is None or tensor.shape != shape:
                    raise UserError(
                        f"tensor is missing or not of shape {shape}",
                        remedy="give an adapter of this base model",
                        file=directory / _WEIGHTS,
                        field=pair[side],
                        value=None if tensor is None else tensor.shape,
                    )
                found.append(tensor)
            whole = np.stack([tensor.T for tensor in found]).reshape(*stacked, *shape[::-1])
            sides.append(jnp.asarray(whole, jnp.float32))
        adapters[target] = {"a": sides[0], "b": sides[1]}
    if tensors or not adapters:
        raise UserError(
            "tensor does not belong to a target of this model" if tensors else "no adapter of this model's targets",
            remedy=f"give an adapter of {', '.join(lora_targets(config))} of this base model",
            file=directory / _WEIGHTS,
            field=min(tensors, default=None),
        )
    return PeftAdapter(adapters, rank, alpha, tuple(adapters))


def is_peft(directory: str | os.PathLike) -> bool:
    """Whether this is the directory of an adapter."""
    return (pathlib.Path(directory) / _CONFIG).is_file()


def read_peft_config(directory: str | os.PathLike) -> tuple[str, int, float]:
    """The base model's directory or hub id, the rank and alpha of an adapter.

    Raises:
      UserError: the file is missing or unreadable, or the adapter uses a feature other than plain LoRA.
    """
    file = pathlib.Path(directory) / _CONFIG
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file.parent, error) from error
    _reject_other_than_lora(fields, file)
    return str(fields.get("base_model_name_or_path") or ""), fields["r"], fields["lora_alpha"]


def _unreadable(directory: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"adapter cannot be read ({error})", remedy=f"give a directory with {_CONFIG} and {_WEIGHTS}", file=directory
    )


# Fields of adapter_config.json that plain LoRA has in one way only. The initialisations are those that leave the base as it
# is. With "pissa" and the like, the adapter belongs to a base that the initialisation has changed.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "revision": (None, "main"),
}
# Fields that are read, that only matter in training, or that only say which tensors there are. Others are refused.
_WITHOUT_EFFECT = (
    "base_model_name_or_path", "r", "lora_alpha", "task_type", "auto_mapping", "peft_version", "inference_mode",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying",
)  # fmt: skip


def _reject_other_than_lora(fields: Mapping[str, Any], file: pathlib.Path) -> None:
    for name, value in fields.items():
        if name not in _PLAIN and name not in _WITHOUT_EFFECT and value not in (None, False, {}, []):
            raise UserError(
                "plain LoRA has no such field, and it may change what the adapter computes",
                remedy="take it out if it does not, or merge the adapter into the base model with peft",
                file=file,
                field=name,
                value=value,
            )
    for name, allowed in _PLAIN.items():
        if fields.get(name) not in allowed:
            raise UserError(
                "adapter is not plain LoRA",
                remedy=f"train it with {name} = {allowed[0]!r}, or merge it into the base model with peft",
                file=file,
                field=name,
                value=fields.get(name),
            )
    for name in ("r", "lora_alpha"):
        if not isinstance(fields.get(name), int | float) or fields[name] <= 0:
            raise UserError(
                "not a positive number", remedy="repair the file", file=file, field=name, value=fields.get(name)
            )


def _template(config: DecoderConfig, target: str) -> str:
    return FAMILIES[config.family].names[target]


def _names(config: DecoderConfig, target: str, parameter: Parameter) -> dict[tuple[int, ...], tuple[str, str]]:
    """Index along a target's stacked axes -> the names of the tensors of `a` and `b`."""
    names = tensors_of(parameter, _template(config, target)).names
    modules = {index: _PEFT_PREFIX + name.removesuffix(".weight") for index, name in names.items()}
    return {index: (f"{module}.lora_A.weight", f"{module}.lora_B.weight") for index, module in modules.items()}
