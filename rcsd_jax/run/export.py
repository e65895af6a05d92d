"""Exports the trained model in the formats of Hugging Face and PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rcsd_jax.checkpoints import saving
from rcsd_jax.checkpoints.peft import save_peft
from rcsd_jax.host.files import AnyPath, is_remote
from rcsd_jax.models import lora
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.settings.stage import Settings


def export(variables: Mapping[str, Any], model: Model, config: Settings, workdir: AnyPath) -> dict[str, str]:
    """Writes the trained model as a Hugging Face directory, and under LoRA also as a PEFT adapter; returns the paths."""
    paths, decoder_config = {}, model.decoder.config
    params, adapters = variables["params"], variables.get("lora")
    if adapters is not None and config.export.adapter:
        paths["adapter"] = str(workdir / "adapter")
        save_peft(
            workdir / "adapter",
            decoder_config,
            adapters,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=tuple(config.lora.targets),
            base_path=config.model.path if is_remote(config.model.path) else str(model.directory),
        )
    if adapters is None or config.export.merged:
        paths["export"] = str(workdir / "export")
        dtype = jnp.dtype(config.export.dtype)
        if adapters is not None:
            params = lora.merge(params, adapters, decoder_config.lora_scale, dtype=dtype)
        saving.save_model(workdir / "export", decoder_config, params, source=model.directory, dtype=dtype)
    return paths
