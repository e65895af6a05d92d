"""The shapes of a run's models and their abstract weights on the mesh; nothing is read but configurations."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rcsd_jax.checkpoints.hf_config import config_of_fields, read_config
from rcsd_jax.checkpoints.peft import is_peft, load_peft, read_peft_config
from rcsd_jax.host.errors import UserError
from rcsd_jax.methods.networks import Frozen
from rcsd_jax.models import lora, quantization, sharding
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import abstract_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.placement import check_divisible, lora_shardings, param_shardings
from rcsd_jax.plan import published
from rcsd_jax.roles import opened_model
from rcsd_jax.roles.own_teacher import OwnTeacher, Teachers
from rcsd_jax.run.recipe import frozen_name
from rcsd_jax.settings.stage import Settings


def decoder_config(config: Settings) -> DecoderConfig:
    """The shape of `model.path`: of a directory, or of a published model by its name; nothing is downloaded.

    Raises:
      UserError: neither.
    """
    return _shape_of(config.model.path, "model.path", config, config.lora.rank, config.lora.alpha)


def _shape_of(path: str, field: str, config: Settings, rank: int = 0, alpha: float = 1.0) -> DecoderConfig:
    """The shape of a model, with the scale of adapters on it."""
    if Path(path).expanduser().is_dir():
        shape = read_config(path, **opened_model.precision(config.model))
    elif path in published.PUBLISHED:
        shape = config_of_fields(published.PUBLISHED[path], path, **opened_model.precision(config.model))
    else:
        raise UserError(
            "neither a model directory nor a model whose shape is known here",
            field=field,
            value=path,
            remedy=f"give a directory with config.json, or one of {', '.join(published.PUBLISHED)}",
        )
    kernels = config.model.kernels
    if rank:
        shape = dataclasses.replace(shape, lora_scale=lora.lora_scale(rank, alpha))
    return dataclasses.replace(shape, kernels="pallas" if kernels == "auto" else kernels)  # as on a TPU


def own_teacher(config: Settings, student: opened_model.Model, mesh: jax.sharding.Mesh) -> tuple[Teachers, Frozen]:
    """A teacher that is another model, and its abstract weights; none if the teacher is the student's own.

    Raises:
      UserError: there are several, its shape is not known, or the mesh does not fit it.
    """
    if config.teacher_weights == "endpoint":
        problem, value = "a teacher at an endpoint is not planned", config.teacher_endpoint.model
        remedy = "leave it out: the plan with the student's own teacher has more work and as much memory"
        raise UserError(problem, field="teacher_endpoint.model", value=value, remedy=remedy)
    if len(config.teacher.own) > 1:
        remedy = "name the largest as teacher.path; the others take their weights' memory more"
        raise UserError("the planner plans one teacher", field="teacher.paths", value=config.teacher.own, remedy=remedy)
    if config.teacher.better_of_two:
        remedy = "plan without it, and add the time of another teacher's scoring"
        raise UserError("the planner plans one teacher", field="teacher.better_of_two", value=True, remedy=remedy)
    for name, path in config.teacher.own.items():
        base, rank, alpha = read_peft_config(path) if is_peft(path) else (path, 0, 1.0)
        shape = _shape_of(base, "teacher.path", config, rank, alpha)
        split_rows, rules = config.train.split_rows, sharding.SPREAD_RULES
        stored: dict[str, Any] = dict(quantization=config.teacher.quantization, rules=rules, whose="teacher's ")
        check_divisible(shape, mesh, {}, split_rows=split_rows, **stored)
        sizes = {shape.vocab_size, student.decoder.config.vocab_size}
        opened = OwnTeacher(
            path,
            student._replace(decoder=Decoder(shape), directory=Path(base).expanduser()),
            min(sizes) if len(sizes) > 1 else None,
        )
        variables = {"params": params_on(shape, mesh, config.teacher.quantization, rules)}
        if rank:
            adapters = load_peft(path, shape).adapters
            variables["lora"] = on(lora_shardings(shape, mesh, adapters, rules), adapters)
        return {name: opened}, {frozen_name(name): variables}
    return {}, {}


def params_on(
    shape: DecoderConfig, mesh: jax.sharding.Mesh, form: str = "none", rules: Mapping[str, Any] = sharding.DEFAULT_RULES
) -> Any:
    """A model's abstract parameters on the mesh, plain or quantized."""
    params: Any = abstract_params(shape)
    if form != "none":
        params = jax.eval_shape(functools.partial(quantization.quantized, shape, form=form), params)
    return on(param_shardings(shape, mesh, rules, params), params)


def on(placement: Any, tree: Any) -> Any:
    """Abstract arrays with their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placement)


def bytes_of_a_chip(arrays: Sequence[jax.ShapeDtypeStruct]) -> float:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _bits(x.dtype) / 8 for x in arrays)


def _bits(dtype: Any) -> int:
    """Of a number in a device's memory. NumPy takes a byte for an int4, TPUs pack two of them."""
    return 4 if dtype == jnp.int4 else 8 * dtype.itemsize
