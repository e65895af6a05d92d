"""Experts that a checkpoint stores as one tensor of a layer, seen as a tensor for each expert: parts of the same file, not copied."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rcsd_jax.checkpoints.families import FAMILIES
from rcsd_jax.checkpoints.safetensors import StoredTensor
from rcsd_jax.checkpoints.tensors import tensors_of_model
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig


def taken_apart(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Stored tensors by name, with those of `Family.fused` taken apart; all others as they are.

    Raises:
      UserError: one of them has another shape than config.json says.
    """
    apart, whole = dict(stored), set()
    tensors = {path[-1]: value for path, value in tensors_of_model(config).items()}
    for parameter, (template, part, parts) in FAMILIES[config.family].fused.items():
        names, (rows, columns) = tensors[parameter]
        for (layer, expert), name in names.items():
            fused = stored.get(template.format(layer=layer))
            if fused is None:
                continue
            shape = (config.num_experts, parts * rows, columns)
            if fused.shape != shape:
                raise UserError(
                    f"tensor has another shape than the {shape} of config.json",
                    remedy="take config.json and weights from the same checkpoint",
                    file=fused.file,
                    field=fused.name,
                    value=fused.shape,
                )
            before = (expert * parts + part) * math.prod((rows, columns)) * fused.dtype.itemsize
            apart[name] = fused._replace(name=name, shape=(rows, columns), offset=fused.offset + before)
            whole.add(fused.name)
    return {name: tensor for name, tensor in apart.items() if name not in whole}
