"""Makes the train step's static choices from the settings: the roles' networks, the sampling of completions, and the loss."""

from __future__ import annotations

import dataclasses

import optax

from rcsd_jax.methods.contract import LossOptions
from rcsd_jax.methods.networks import BASE, RoleNetwork, Roles
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import RolloutOptions
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.roles.opened_model import Model, sampling_of
from rcsd_jax.settings.stage import Settings


def recipe_of(config: Settings, model: Model, optimizer: optax.GradientTransformation) -> Recipe:
    """The static choices of a run's step."""
    return Recipe(
        roles=roles_of(config, model.decoder),
        rollout=rollout_options(config, model),
        loss=loss_options(config, model),
        optimizer=optimizer,
        method=config.method,
        ema_decay=config.teacher.ema_decay,
        microbatches=config.train.microbatches,
        row_lengths=config.train.row_lengths,
        split_rows=config.train.split_rows,
    )


def roles_of(config: Settings, decoder: Decoder) -> Roles:
    """The sources of both roles' networks. A LoRA's base and a fixed teacher are the same frozen weights."""
    student = RoleNetwork(decoder, frozen=BASE if config.lora.rank else None, moving="trained")
    teachers = {
        "none": None,
        "fixed": RoleNetwork(decoder, frozen=BASE),
        "live": student,
        "ema": dataclasses.replace(student, moving="average"),
    }
    return Roles(student, teachers[config.teacher_weights])


def rollout_options(config: Settings, model: Model) -> RolloutOptions:
    """How completions are made."""
    batches = config.train.batches_per_rollout
    return RolloutOptions(
        sampling=sampling_of(config.sampling, model),
        source=config.sampling.source,
        group=config.sampling.group,
        # Several batches go through a queue, so that the cache does not grow with their number; rows with drafts, as they move at
        # their own pace.
        slots=config.sampling.slots or (config.train.batch_size if batches > 1 or config.sampling.draft_tokens else 0),
        batches=batches,
        draft_tokens=config.sampling.draft_tokens,
        reason_tokens=config.teacher.reason_tokens,
        skip_first=config.loss.skip_first,
        mask_cut=config.loss.mask_cut,
        pad_id=model.pad_id,
    )


def loss_options(config: Settings, model: Model) -> LossOptions:
    """The options of the method's loss. Both roles are compared at the temperature of sampling."""
    return LossOptions(
        divergence=config.loss.divergence_options,
        policy=config.policy,
        temperature=sampling_of(config.sampling, model).scoring_temperature,
        chunk_size=config.loss.chunk_size,
        reduction=config.loss.reduction,
        importance_clip=config.loss.importance_clip,
        guidance=config.teacher.guidance,
    )
