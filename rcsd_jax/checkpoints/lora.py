"""Low-rank adapters: made, merged into the weights, and exchanged with `peft`.

LoRA (arXiv 2106.09685) adds scale * (x @ a) @ b to a kernel's output. Adapters are a tree of their own,
{target: {"a": [L, in, r], "b": [L, r, out]}}, which the decoder takes as its "lora" collection; without it the same
weights are the base model. The targets are the parameters that `decoder.declarations` marks with `lora_target`.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rcsd_jax.checkpoints.huggingface import gathered
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path
from rcsd_jax.host.replaced_directory import replaced_directory
from rcsd_jax.models import decoder

Adapters = dict[str, dict[str, jax.Array]]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


class PeftAdapter(NamedTuple):
    """What `load_peft` read."""

    adapters: Adapters
    rank: int
    alpha: float
    targets: tuple[str, ...]


def lora_targets(config: decoder.DecoderConfig) -> tuple[str, ...]:
    """Every name that `targets` may hold, in the decoder's order."""
    return tuple(_declared_targets(config))


def lora_scale(rank: int, alpha: float) -> float:
    """alpha / rank, the `DecoderConfig.lora_scale` under which adapters of this rank are trained and applied."""
    return alpha / rank


def init_lora(
    config: decoder.DecoderConfig, key: jax.Array, *, rank: int, alpha: float, targets: Iterable[str]
) -> Adapters:
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
      UserError: a target that the decoder does not have, none at all, or a rank or alpha that is not positive.
    """
    declared = _check(config, rank, alpha, targets := tuple(targets))
    adapters: Adapters = {}
    for number, (target, parameter) in enumerate(declared.items()):
        if target in targets:
            layers, fan_in, fan_out = parameter.shape
            noise = jax.random.normal(jax.random.fold_in(key, number), (layers, fan_in, rank), jnp.float32)
            adapters[target] = {
                "a": noise / jnp.sqrt(3.0 * fan_in),  # [L, in, r]
                "b": jnp.zeros((layers, rank, fan_out), jnp.float32),  # [L, r, out]
            }
    return adapters


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Mapping[str, jax.Array]], scale: float, *, dtype: Any = None
) -> dict[str, Any]:
    """Parameters W + scale * a @ b, which give without adapters what `params` give with them.

    Args:
      params: decoder parameters; not changed.
      adapters: see the module; the kernel of target t is params["layers"][t].
      scale: see `lora_scale`.
      dtype: of the merged kernels; None for their own.

    Returns:
      Parameters, those without adapters as they were; the sum is taken in float32, one layer at a time.
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


def save_peft(
    directory: str | os.PathLike,
    config: decoder.DecoderConfig,
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
      adapters: see the module; where other processes hold a part of them, all processes call this and process 0 writes.
      rank, alpha, targets: as given to `init_lora`.
      base_path: directory or hub id of the base model, noted in adapter_config.json.

    Returns:
      The directory.

    Raises:
      UserError: see `init_lora` and `replaced_directory`.
      ValueError: adapters of other targets or another rank than said.
    """
    declared = _check(config, rank, alpha, targets := tuple(targets))
    if set(adapters) != set(targets):
        raise ValueError(f"adapters of {sorted(adapters)} given, targets are {sorted(targets)}")
    tensors, modules = {}, []
    for target, adapter in adapters.items():
        hf_name = declared[target].hf_name
        modules.append(hf_name.split(".")[-2])
        if adapter["a"].shape[-1] != rank:
            raise ValueError(f"adapter {target} has rank {adapter['a'].shape[-1]}, not {rank}")
        a, b = (_on_host(adapter[side]) for side in "ab")
        for layer in range(a.shape[0]):
            name_a, name_b = _peft_names(hf_name, layer)
            tensors[name_a] = np.ascontiguousarray(a[layer].T)  # [r, in]
            tensors[name_b] = np.ascontiguousarray(b[layer].T)  # [out, r]
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


def load_peft(directory: str | os.PathLike, config: decoder.DecoderConfig) -> PeftAdapter:
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
    for target, parameter in _declared_targets(config).items():
        layers, fan_in, fan_out = parameter.shape
        names = [_peft_names(parameter.hf_name, layer) for layer in range(layers)]
        if not any(name in tensors for pair in names for name in pair):
            continue
        stacked = []
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
            stacked.append(jnp.asarray(np.stack([tensor.T for tensor in found]), jnp.float32))
        adapters[target] = {"a": stacked[0], "b": stacked[1]}
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


# Fields of adapter_config.json that plain LoRA has in one way. The initialisations are those that leave the base as it is: with
# "pissa" and its like the adapter belongs to what is left of the base.
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
# Those that are read, that are for training alone, or that only say which tensors there are. Others are refused.
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


def _check(
    config: decoder.DecoderConfig, rank: int, alpha: float, targets: tuple[str, ...]
) -> dict[str, decoder.Parameter]:
    """The declared targets; raises UserError for settings that no adapter can have."""
    declared = _declared_targets(config)
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


def _declared_targets(config: decoder.DecoderConfig) -> dict[str, decoder.Parameter]:
    return {
        parameter.lora_target: parameter
        for parameter in decoder.declarations(config).values()
        if parameter.lora_target is not None
    }


def _peft_names(hf_name: str, layer: int) -> tuple[str, str]:
    module = _PEFT_PREFIX + hf_name.format(layer=layer).removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
