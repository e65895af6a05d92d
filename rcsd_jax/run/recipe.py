"""Makes the train step's static choices from the settings: the roles' networks, the sampling of completions, and the loss."""

from __future__ import annotations

import dataclasses

import optax

from rcsd_jax.host.errors import UserError
from rcsd_jax.methods import METHODS
from rcsd_jax.methods.contract import LossOptions
from rcsd_jax.methods.networks import BASE, TEACHER, RoleBetter, RoleMixture, RoleNetwork, Roles, RoleSeveral
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.rollout import RolloutOptions
from rcsd_jax.models.decoder import Decoder
from rcsd_jax.roles.opened_model import Model, sampling_of
from rcsd_jax.roles.own_teacher import NO_TEACHERS, Teachers
from rcsd_jax.roles.thinking import ThinkingBlock, block_of, ids_of
from rcsd_jax.settings.stage import Settings


def recipe_of(
    config: Settings, model: Model, optimizer: optax.GradientTransformation, teachers: Teachers = NO_TEACHERS
) -> Recipe:
    """The static choices of a run's step; `teachers` are those that are other models."""
    return Recipe(
        roles=roles_of(config, trained_decoder(config, model.decoder), teachers),
        rollout=rollout_options(config, model),
        loss=loss_options(config, model, teachers),
        optimizer=optimizer,
        method=config.method,
        ema_decay=config.teacher.ema_decay,
        microbatches=config.train.microbatches,
        row_lengths=config.train.row_lengths,
        split_rows=config.train.split_rows,
    )


def trained_decoder(config: Settings, decoder: Decoder) -> Decoder:
    """The decoder with what training decides of a mixture of experts: whether its routers learn, and whether choices are replayed.

    Raises:
      UserError: a choice for mixtures only, of a dense model.
    """
    train = config.train
    for field, value, usual in (("router", train.router, True), ("routing_replay", train.routing_replay, "off")):
        if value != usual and not decoder.config.num_experts:
            problem = "is for mixtures of experts, and the model is dense"
            raise UserError(problem, field=f"train.{field}", value=value, remedy=f"set {usual!r}")
    replays = train.routing_replay == "replay"
    return Decoder(dataclasses.replace(decoder.config, train_router=train.router, replays_experts=replays))


def roles_of(config: Settings, decoder: Decoder, teachers: Teachers = NO_TEACHERS) -> Roles:
    """The sources of both roles' networks. A LoRA's base and a fixed teacher are the same frozen weights."""
    fixed = RoleNetwork(decoder, frozen=BASE)
    student = RoleNetwork(decoder, frozen=BASE if config.lora.rank else None, moving="trained")
    if teachers:
        own = [RoleNetwork(one.model.decoder, frozen=frozen_name(name)) for name, one in teachers.items()]
        if len(own) > 1:
            return Roles(student, RoleSeveral(tuple(own)))
        return Roles(student, RoleBetter(own[0], student) if config.teacher.better_of_two else own[0])
    shared = {
        "none": None,
        "endpoint": None,  # its scores come with the completions
        "fixed": fixed,
        "live": student,
        "ema": dataclasses.replace(student, moving="average"),
        "trust_region": RoleMixture(fixed, student, config.teacher.current_share),
    }
    teacher = shared[config.teacher_weights]
    return Roles(student, RoleBetter(teacher, student) if teacher and config.teacher.better_of_two else teacher)


def frozen_name(teacher: str) -> str:
    """The name of the frozen weights of a teacher of its own."""
    return f"{TEACHER} {teacher}".strip()


def rollout_options(config: Settings, model: Model) -> RolloutOptions:
    """How completions are made."""
    batches = config.train.batches_per_rollout
    return RolloutOptions(
        sampling=dataclasses.replace(
            sampling_of(config.sampling, model), record_experts=config.train.routing_replay != "off"
        ),
        source=config.sampling.source,
        group=config.sampling.group,
        # Several batches go through a queue, so that the cache does not grow with their number; rows with drafts, as they move at
        # their own pace.
        slots=config.sampling.slots or (config.train.batch_size if batches > 1 or config.sampling.draft_tokens else 0),
        batches=batches,
        draft_tokens=config.sampling.draft_tokens,
        reason_tokens=config.teacher.reason_tokens,
        reason_by=config.teacher.reason_by,
        thinking=config.loss.thinking,
        thought_end=_thought_end(config, model),
        skip_first=config.loss.skip_first,
        mask_cut=config.loss.mask_cut,
        pad_id=model.pad_id,
    )


def loss_options(config: Settings, model: Model, teachers: Teachers = NO_TEACHERS) -> LossOptions:
    """The options of the method's loss. Both roles are compared at the temperature of sampling."""
    return LossOptions(
        divergence=config.loss.divergence_options,
        policy=config.policy,
        temperature=sampling_of(config.sampling, model).scoring_temperature,
        chunk_size=config.loss.chunk_size,
        reduction=config.loss.reduction,
        emphasis=config.loss.emphasis_choice,
        importance_clip=config.loss.importance_clip,
        guidance=config.teacher.guidance,
        target="purified" if config.teacher.guidance_by == "purified" else "contrast",
        contrasts=METHODS[config.method].contrasts,
        by_part=config.loss.thinking == "all",
        shared_tokens=min((n for one in teachers.values() if (n := one.shared_tokens) is not None), default=None),
    )


def block_of_completions(config: Settings, model: Model) -> ThinkingBlock | None:
    """The thinking block of the completions to learn from, by the switch of the role that writes them; None if they have none."""
    role = config.teacher.role if config.sampling.source == "teacher" else config.student
    return block_of(model.tokenizer, config.model, thinking=role.thinking)


def _thought_end(config: Settings, model: Model) -> tuple[int, ...]:
    """The token ids that end the thinking block of the completions to learn from; empty if they have none.

    Raises:
      UserError: the loss needs them, and they have none.
    """
    needed = config.loss.thinking != "all"
    if model.tokenizer is None:  # of the planner, for whom any token will do
        return (0,) if needed else ()
    if config.sampling.source == "reference" and not needed:
        return ()  # most references are answers without a thought
    block = block_of_completions(config, model)
    if needed and block is None:
        text, has_end = config.model.thought_end, bool(ids_of(model.tokenizer, config.model.thought_end))
        ended = "the prompt already ends the thinking block of the completions"
        unknown = f"the tokenizer has no token {text!r} that ends a thinking block"
        switch = "teacher" if config.sampling.source == "teacher" else "student"
        raise UserError(
            ended if has_end else unknown,
            field="loss.thinking",
            value=config.loss.thinking,
            remedy=f"set {f'{switch}.thinking=True' if has_end else 'model.thought_end'}, or loss.thinking=all",
        )
    return () if block is None else block.end
