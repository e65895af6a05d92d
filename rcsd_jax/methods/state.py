"""The state of training: its content, its shardings on a mesh, and its update."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rcsd_jax.models import sharding

Params: TypeAlias = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes. `trained` is the whole model, or the adapters under LoRA."""

    step: jax.Array  # [] int32, updates done
    trained: Params
    opt_state: Any
    ema: Params | None = None  # float32 average of `trained`, for the EMA teacher

    @property
    def average(self) -> Params:
        """`ema` in the dtypes of `trained`."""
        return jax.tree.map(lambda average, x: average.astype(x.dtype), self.ema, self.trained)


def init_state(trained: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first step; `trained` is used as it is, not copied."""
    average = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), average)


def abstract_state(
    trained: Params,
    placement: Any,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    ema: bool,
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`, without making an array.

    The optimizer's moments and the average have the shardings of their parameters; scalars are on every device.

    Args:
      trained: shapes and dtypes of what is trained.
      placement: its shardings, the same tree.
      optimizer: of `init_state`.
      mesh: the run's.
      ema: of `init_state`.
    """
    abstract = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, ema=ema), trained)
    everywhere = sharding.replicated(mesh)
    moments = optax.tree_map_params(
        optimizer, lambda _, s: s, abstract.opt_state, placement, transform_non_params=lambda _: everywhere
    )
    shardings = TrainState(everywhere, placement, moments, placement if ema else None)  # type: ignore[arg-type]
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def shardings_of(state: TrainState) -> TrainState:
    """The shardings of a state's arrays, or of an abstract state's."""
    return jax.tree.map(lambda x: x.sharding, state)


def update(
    state: TrainState, loss: jax.Array, gradient: Params, optimizer: optax.GradientTransformation, *, ema_decay: float
) -> tuple[TrainState, jax.Array, jax.Array]:
    """The state after one update, the gradient's norm and whether all was finite; if not, the state is the old one."""
    grad_norm = optax.global_norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    ema = None
    if state.ema is not None:
        ema = jax.tree.map(lambda m, x: ema_decay * m + (1 - ema_decay) * x.astype(jnp.float32), state.ema, trained)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.global_norm(updates))
    new_state = TrainState(state.step + 1, trained, opt_state, ema)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state), grad_norm, finite
