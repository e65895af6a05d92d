"""The state at the beginning of training: its shapes and shardings, and its first values or those of the newest checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcsd_jax.host.errors import UserError
from rcsd_jax.methods.networks import BASE, Frozen
from rcsd_jax.methods.optimizer import make_optimizer
from rcsd_jax.methods.recipe import Recipe
from rcsd_jax.methods.state import TrainState, abstract_state, init_state, shardings_of
from rcsd_jax.models import lora, sharding
from rcsd_jax.models.placement import lora_shardings, param_shardings
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.roles.own_teacher import NO_TEACHERS, Teachers
from rcsd_jax.run.checkpoints import Checkpoints
from rcsd_jax.run.environment import Run
from rcsd_jax.run.recipe import recipe_of
from rcsd_jax.run.rows import Rows
from rcsd_jax.settings.stage import Settings

_LORA_KEY = 2**32 - 1  # folded into the seed's key, like the steps; no step has this number


class Setup(NamedTuple):
    """Everything that training needs besides its state."""

    recipe: Recipe
    frozen: Frozen  # by the names that the recipe's roles have for them
    rate: Callable[[Any], Any]  # step -> learning rate
    abstract: TrainState  # shapes, dtypes and shardings of the state
    teachers: Mapping[str, str] = types.MappingProxyType({})  # name -> what identifies its weights


def setup(
    model: Model,
    params: Any,
    config: Settings,
    mesh: jax.sharding.Mesh,
    teachers: Teachers = NO_TEACHERS,
) -> Setup:
    """Everything except the state, which `first_state` makes or a checkpoint holds, so that a state is never held twice.

    The weights of teachers that are other models are not among the frozen ones: the caller adds them.
    """
    frozen = () if config.train.router else ("router",)
    optimizer, rate = make_optimizer(steps=config.train.steps, frozen=frozen, **dataclasses.asdict(config.optimizer))
    recipe = recipe_of(config, model, optimizer, teachers)
    trained = jax.eval_shape(functools.partial(_first_trained, model, config=config), params)
    if config.lora.rank:
        placement = lora_shardings(model.decoder.config, mesh, trained)
    else:
        placement = param_shardings(model.decoder.config, mesh)
    averages = any(role is not None and role.moving == "average" for role in recipe.roles)
    abstract = abstract_state(trained, placement, optimizer, mesh, ema=averages)
    uses_base = any(role is not None and role.frozen == BASE for role in recipe.roles)
    base: Frozen = {BASE: {"params": params}} if uses_base else {}
    return Setup(recipe, base, rate, abstract)


def first_state(model: Model, params: Any, config: Settings, setup: Setup) -> TrainState:
    """The state before the first step, on the mesh."""
    trained = _first_trained(model, params, config=config)
    make = functools.partial(init_state, optimizer=setup.recipe.optimizer, ema=setup.abstract.ema is not None)
    donated = () if config.lora.rank else (0,)
    return jax.jit(make, out_shardings=shardings_of(setup.abstract), donate_argnums=donated)(trained)


def _first_trained(model: Model, params: Any, *, config: Settings) -> Any:
    if config.lora.rank:
        settings = config.lora
        key = jax.random.fold_in(jax.random.key(config.seed), _LORA_KEY)
        targets = tuple(settings.targets)
        return lora.init_lora(model.decoder.config, key, rank=settings.rank, alpha=settings.alpha, targets=targets)
    # In float32, whatever the storage: an update of 5e-6 is less than bfloat16 resolves. And copied, because the step
    # donates its state, which must not share buffers with a fixed teacher's weights.
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)


class Kept(NamedTuple):
    """What a checkpoint between two updates of a rollout holds of it; see `rollouts`."""

    arrays: dict[str, jax.Array]  # of its completions, by name; without empty ones
    position: dict[str, Any]  # the rest, as JSON


class Start(NamedTuple):
    """The beginning of training: its step, its place in the data, and the rollout in whose middle it is."""

    step: int
    place: int  # of the next rollout in the order of rows, see `rows.Rows.take`
    rollout: Kept | None = None  # None: the step begins one


def begin(
    model: Model, params: Any, setup: Setup, rows: Rows, checkpoints: Checkpoints, run: Run
) -> tuple[TrainState, Start]:
    """The first state and its step: those of the newest intact checkpoint, or of the first step.

    Raises:
      UserError: no checkpoint is intact, or it was trained with other prompts.
    """
    config = run.config
    restored = checkpoints.restore_newest(setup.abstract, rows=sharding.batch_sharding(run.mesh))
    if restored is None:
        return first_state(model, params, config, setup), Start(0, 0)
    for folder, problem in restored.damaged:
        run.console.print(f"{run.name}: a damaged checkpoint ({problem}) was moved to {folder}", soft_wrap=True)
    if restored.position["data"] != rows.digest:
        raise UserError(
            "the prompts are not those that the last checkpoint was trained with: data, rubrics or templates changed",
            file=run.workdir / "checkpoints" / str(restored.step),
            remedy=f"restore the data and {restored.position['rubric_cache']}, or start anew with another --workdir",
        )
    known = restored.position.get("teachers", {})
    for name, identity in setup.teachers.items():
        if known.get(name) != identity:
            raise UserError(
                "the teacher's weights are not those that the last checkpoint was trained with",
                file=config.teacher.own[name],
                field="teacher.paths" if name else "teacher.path",
                remedy="give the same checkpoint, or start anew with another --workdir",
            )
    run.console.print(f"{run.name}: continuing at step {restored.step}")
    # A checkpoint without a place in the data is older; its run drew only the rows that it used.
    place = restored.position.get("place", restored.step * config.questions_per_step)
    rollout = Kept(restored.rollout, restored.position["rollout"]) if restored.rollout else None
    return restored.state, Start(restored.step, place, rollout)
