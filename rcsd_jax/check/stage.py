"""The check of one stage: all parts in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rcsd_jax.check import small
from rcsd_jax.check.collectives import check_collectives
from rcsd_jax.check.devices import check_devices
from rcsd_jax.check.finding import FAILED, NOT_CHECKED, OK, WARNING, Finding
from rcsd_jax.check.kernels import check_kernels
from rcsd_jax.check.programs import check_memory, check_programs, check_sampler, on_these_devices, run_update
from rcsd_jax.check.storage import Room, bytes_of, check_checkpoint, check_room
from rcsd_jax.host import multihost
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.declarations import abstract_params
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import make_mesh
from rcsd_jax.plan import chips
from rcsd_jax.plan.model_flops import parameters
from rcsd_jax.plan.networks import decoder_config, own_teacher
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.run import training_state
from rcsd_jax.settings.stage import Settings

PARTS = ("devices", "kernels", "collectives", "sampler", "programs", "memory", "storage")
"""In their order."""


def check_stage(
    config: Settings,
    workdir: AnyPath,
    stages: Mapping[str, Settings],
    *,
    only: Sequence[str] | None = None,
    full: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Checks a stage on all devices. All processes call it, and all get the same findings.

    Args:
      config: of the stage.
      workdir: of the run; nothing stays in it.
      stages: all stages of the run by name, whose checkpoints and exports need room.
      only: some of `PARTS`; None: all.
      full: run the programs with prompts and completions as long as the config allows, instead of short ones.
      progress: is given lines to show meanwhile.

    Raises:
      UserError: settings that cannot run here, or no such part.
    """
    chosen = [name.strip() for name in only or PARTS]
    for name in chosen:
        if name not in PARTS:
            raise UserError("no such part", field="--only", value=name, remedy=f"use some of {', '.join(PARTS)}")
    config = small.as_run_here(config)
    mesh = make_mesh(**config.mesh)
    chip = chips.chip_of_device(jax.devices()[0])
    findings: list[Finding] = []
    if "devices" in chosen:
        findings += check_devices(mesh, chip)
    if "kernels" in chosen:
        progress("kernels")
        sampling = config.sampling
        findings += check_kernels(
            decoder_config(config), mesh, int8_cache=sampling.int8_cache, drafts=sampling.draft_tokens
        )
    if "collectives" in chosen:
        progress("collectives")
        findings += check_collectives(mesh, chip)
    if {"sampler", "programs", "memory", "storage"} & set(chosen):
        progress("weights")
        here = on_these_devices(config if full else small.small(config))
        if {"sampler", "programs", "memory"} & set(chosen):
            progress("programs of an update")
            ran = run_update(here)
            if "sampler" in chosen:
                progress("sampler and trainer")
                findings.append(check_sampler(here, ran))
            if "programs" in chosen:
                findings += check_programs(here, ran, chip)
            if "memory" in chosen:
                findings.append(check_memory(here, ran, chip))
        if "storage" in chosen:
            progress("checkpoint")
            findings.append(check_checkpoint(workdir, here.first(), here.mesh))
            findings.append(check_room(workdir, rooms(stages)))
    return worst(multihost.gather(findings))


def worst(of_processes: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Of each line the first process' finding, or that of a process whose verdict is worse."""
    order = (NOT_CHECKED, OK, WARNING, FAILED)
    return [max(same, key=lambda finding: order.index(finding.verdict)) for same in zip(*of_processes, strict=True)]


def rooms(stages: Mapping[str, Settings]) -> dict[str, Room]:
    """What each stage leaves in its folder. A model that an earlier stage writes has the shape of that stage's own."""
    found: dict[str, Room] = {}
    shape: DecoderConfig | None = None
    for name, stage in stages.items():
        config = small.as_run_here(stage)
        try:
            shape = decoder_config(config)
        except UserError:
            if shape is None:
                raise
        found[name] = _room(shape, config)
    return found


def _room(shape: DecoderConfig, config: Settings) -> Room:
    one = make_mesh(devices=jax.devices()[:1])  # only shapes are asked for
    params = abstract_params(shape)
    model = Model(Decoder(shape), None, (), 0, Path(config.model.path))
    teachers, _ = own_teacher(config, model, one)
    state = training_state.setup(model, params, config, one, teachers).abstract
    exports = 0.0
    if config.export.merged or not config.lora.rank:
        exports += parameters(shape) * jnp.dtype(config.export.dtype).itemsize
    if config.export.adapter and config.lora.rank:
        exports += bytes_of(state.trained)
    return Room(bytes_of(state), config.checkpoint.keep, exports)
