"""An opened model: a checkpoint's decoder and tokenizer, and a way to load its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.directory import digest, resolve
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.peft import is_peft, load_peft, read_peft_config
from rcsd_jax.checkpoints.settings import ModelSettings
from rcsd_jax.checkpoints.tokenizer import end_token_ids, load_tokenizer, within_vocabulary
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import fetched
from rcsd_jax.models import lora, sharding
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.sampling.decoding import SamplingConfig


class Model(NamedTuple):
    """A checkpoint with its tokenizer. `load_weights` loads its weights later."""

    decoder: Decoder
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    directory: Path

    def decode(self, tokens: Any) -> str:
        """Token ids as text, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


class Served(NamedTuple):
    """A model that only writes.

    Attributes:
      model: the model, or the base of an adapter.
      digest: identifies its weights, including the adapter's.
      load: reads its variables onto the mesh.
    """

    model: Model
    digest: str
    load: Callable[[], dict[str, Any]]


def open_model(path: str, settings: ModelSettings, *, lora_rank: int = 0, lora_alpha: float = 1.0) -> Model:
    """A model's configuration and tokenizer; no weights are loaded.

    Args:
      path: a Hugging Face directory, its URL or its hub id.
      settings: how it computes.
      lora_rank, lora_alpha: of the adapters on this base; rank 0 means no adapters.

    Raises:
      UserError: it cannot be read or used.
    """
    directory = resolve(fetched(path))
    decoder_config = read_config(directory, **precision(settings))
    decoder_config = dataclasses.replace(decoder_config, kernels=_kernels(settings.kernels))
    if lora_rank:
        decoder_config = dataclasses.replace(decoder_config, lora_scale=lora.lora_scale(lora_rank, lora_alpha))
    tokenizer = within_vocabulary(load_tokenizer(directory), decoder_config.vocab_size)
    if len(tokenizer) > decoder_config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, more than the model",
            file=directory / "config.json",
            field="vocab_size",
            value=decoder_config.vocab_size,
            remedy="take tokenizer and weights from the same checkpoint",
        )
    eos_ids = end_token_ids(directory, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Model(Decoder(decoder_config), tokenizer, eos_ids, pad_id, directory)


def open_unloaded(path: str, settings: ModelSettings) -> Model:
    """The model at `path` or, if that is a LoRA adapter, its base. No weights are loaded."""
    path = fetched(path)
    if not is_peft(path):
        return open_model(path, settings)
    base, rank, alpha = read_peft_config(path)
    return open_model(base, settings, lora_rank=rank, lora_alpha=alpha)


def open_served(path: str, settings: ModelSettings, mesh: jax.sharding.Mesh) -> Served:
    """A model that only writes: a model, or a LoRA adapter on its base.

    The adapter is not merged: in bfloat16 weights, rounding would remove most of what a small learning rate changed.
    """
    path, model = fetched(path), open_unloaded(path, settings)
    if not is_peft(path):
        return Served(model, digest(model.directory), lambda: {"params": load_weights(model, mesh)})
    adapters = load_peft(path, model.decoder.config).adapters

    def load() -> dict[str, Any]:
        placement = lora_shardings(model.decoder.config, mesh, adapters)
        return {"params": load_weights(model, mesh), "lora": jax.device_put(adapters, placement)}

    return Served(model, f"{digest(model.directory)}+{digest(path)}", load)


def sampling_of(settings: Any, model: Model, *, temperature: float | None = None) -> SamplingConfig:
    """The sampling settings of a config's section `sampling` or `rubric`; `temperature` replaces the section's."""
    return SamplingConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p if settings.top_p < 1.0 else None,
        eos_ids=model.eos_ids,
        int8_cache=getattr(settings, "int8_cache", False),
        merged_adapters=getattr(settings, "merged_adapters", False),
        int8_weights=getattr(settings, "int8_weights", False),
        presence_penalty=getattr(settings, "presence_penalty", 0.0),
    )


def load_weights(model: Model, mesh: jax.sharding.Mesh, rules: Mapping[str, Any] = sharding.DEFAULT_RULES) -> Any:
    """The model's parameters, read onto the mesh."""
    config = model.decoder.config
    placement = param_shardings(config, mesh, rules)
    precision: dict[str, Any] = dict(dtype=config.dtype, param_dtype=config.param_dtype)
    return loading.load_model(model.directory, shardings=placement, **precision)[1]


def precision(settings: ModelSettings) -> dict[str, Any]:
    """A model's settings other than its shape, as `read_config` takes them."""
    return dict(dtype=jnp.dtype(settings.dtype), param_dtype=jnp.dtype(settings.param_dtype), remat=settings.remat)


def _kernels(setting: str) -> str:
    if setting != "auto":
        return setting
    return "pallas" if jax.default_backend() == "tpu" else "xla"
