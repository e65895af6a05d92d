"""What every part of a running stage needs: its settings, its place, its mesh, and a model to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcsd_jax.checkpoints import loading
from rcsd_jax.checkpoints.directory import digest, resolve
from rcsd_jax.checkpoints.hf_config import read_config
from rcsd_jax.checkpoints.peft import is_peft, load_peft, read_peft_config
from rcsd_jax.checkpoints.tokenizer import end_token_ids, load_tokenizer
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, fetched
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.models import lora
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.sampling.decoding import SamplingConfig
from rcsd_jax.sampling.many import Completion, complete


class Run(NamedTuple):
    """Where and how a stage runs."""

    config: ConfigDict
    workdir: AnyPath
    mesh: jax.sharding.Mesh
    console: Console
    stop: StopRequest
    name: str
    judge: Callable | None = None  # `evaluate.judged.judge_of`, where something is graded by one


def say_once(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it stands, whatever is in it, and no line twice."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            console.print(line, soft_wrap=True)
        said.add(line)

    return say


class Model(NamedTuple):
    """A checkpoint with its tokenizer. Its weights are read late: `load_weights`."""

    decoder: Decoder
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    directory: Path

    def decode(self, tokens: Any) -> str:
        """Token ids as text, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def open_model(path: str, config: ConfigDict, *, lora_rank: int = 0, lora_alpha: float = 1.0) -> Model:
    """A Hugging Face directory's (which may be a URL's) configuration and tokenizer; with a rank, as the base of adapters."""
    directory = resolve(fetched(path))
    decoder_config = read_config(directory, **precision(config))
    decoder_config = dataclasses.replace(decoder_config, kernels=kernels_of(config))
    if lora_rank:
        decoder_config = dataclasses.replace(decoder_config, lora_scale=lora.lora_scale(lora_rank, lora_alpha))
    tokenizer = load_tokenizer(directory)
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


def load_weights(model: Model, config: ConfigDict, mesh: jax.sharding.Mesh) -> Any:
    """The model's parameters, read onto the mesh."""
    placement = param_shardings(model.decoder.config, mesh)
    return loading.load_model(model.directory, shardings=placement, **precision(config))[1]


def open_unloaded(path: str, config: ConfigDict) -> Model:
    """The model that `open_served` serves: that at `path` or, of a LoRA adapter, its base. No weights are read."""
    path = fetched(path)
    if not is_peft(path):
        return open_model(path, config)
    base, rank, alpha = read_peft_config(path)
    return open_model(base, config, lora_rank=rank, lora_alpha=alpha)


def open_served(
    path: str, config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[Model, str, Callable[[], dict[str, Any]]]:
    """A model that only writes: what identifies its weights beside it, and a function that reads its variables.

    `path` is a model, or a LoRA adapter: then its base is read, and the adapter is in use. (Merged into weights of bfloat16,
    most of what a small learning rate changes is rounded away.)
    """
    path, model = fetched(path), open_unloaded(path, config)
    if not is_peft(path):
        return model, digest(model.directory), lambda: {"params": load_weights(model, config, mesh)}
    adapters = load_peft(path, model.decoder.config).adapters

    def load() -> dict[str, Any]:
        placement = lora_shardings(model.decoder.config, mesh, adapters)
        return {"params": load_weights(model, config, mesh), "lora": jax.device_put(adapters, placement)}

    return model, f"{digest(model.directory)}+{digest(path)}", load


def sampling_of(settings: ConfigDict, model: Model, *, temperature: float | None = None) -> SamplingConfig:
    """How to sample, from a config's `sampling` or `rubric` section."""
    return SamplingConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p if settings.top_p < 1.0 else None,
        eos_ids=model.eos_ids,
        int8_cache=settings.get("int8_cache", False),
        merged_adapters=settings.get("merged_adapters", False),
    )


def completer(model: Model, variables: Any, sampling: SamplingConfig, batch_size: int, run: Run) -> Callable:
    """(prompts, seeds) -> batches of (indexes, completions), with everything else bound; ends when the run is stopped."""

    def complete_all(
        prompts: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[tuple[list[int], list[Completion]]]:
        bound = dict(mesh=run.mesh, batch_size=batch_size, pad_to=run.config.data.pad_to, pad_id=model.pad_id)
        for batch in complete(model.decoder, variables, prompts, seeds, sampling, **bound):
            yield batch
            run.stop.raise_if_set("between two batches of completions; results so far are kept")

    return complete_all


def kernels_of(config: ConfigDict) -> str:
    """The kernels of attention that `model.kernels` names; "auto": Pallas on TPU, else XLA."""
    if config.model.kernels != "auto":
        return config.model.kernels
    return "pallas" if jax.default_backend() == "tpu" else "xla"


def precision(config: ConfigDict) -> dict[str, Any]:
    """What a config says of a model beside its shape, as `read_config` takes it."""
    settings = config.model
    return dict(dtype=jnp.dtype(settings.dtype), param_dtype=jnp.dtype(settings.param_dtype), remat=settings.remat)
