"""The train state and the train step: sample -> score both roles -> loss -> update. Pure, jitted over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rcsd_jax.methods import METHODS, rollout
from rcsd_jax.methods.optimizer import make_optimizer as make_optimizer  # a public name of this module
from rcsd_jax.methods.rollout import Batch, Completions, Options, Variables
from rcsd_jax.models.decoder import Decoder

Params: TypeAlias = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes. `trained` is the whole model, or the adapters under LoRA."""

    step: jax.Array  # [] int32, updates done
    trained: Params
    opt_state: Any
    ema: Params | None = None  # float32 average of `trained`, for the EMA teacher


def init_state(trained: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first step; `trained` is used as it is, not copied."""
    average = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), average)


def student_variables(trained: Params, frozen: Params | None, *, lora: bool) -> Variables:
    """The student's variables: the trained model, or the frozen base with the trained adapters."""
    return {"params": frozen, "lora": trained} if lora else {"params": trained}


def teacher_variables(state: TrainState, frozen: Params | None, *, teacher: str, lora: bool) -> Variables | None:
    """The teacher's variables.

    "none": a method without one; "fixed": the initial weights (`frozen`; under LoRA the base with its adapters off, so no second copy exists);
    "live": the current weights; "ema": their exponential moving average.
    """
    table = {
        "none": lambda: None,
        "fixed": lambda: {"params": frozen},
        "live": lambda: student_variables(state.trained, frozen, lora=lora),
        "ema": lambda: student_variables(
            jax.tree.map(lambda average, x: average.astype(x.dtype), state.ema, state.trained), frozen, lora=lora
        ),
    }
    return jax.lax.stop_gradient(table[teacher]())


def sample_step(
    state: TrainState,
    frozen: Params | None,
    batch: Batch,
    seed: jax.Array,
    *,
    decoder: Decoder,
    options: Options,
    teacher: str,
    lora: bool,
) -> Completions:
    """The completions of one step. Random keys come from (seed, step, row), so any step can be recomputed alone."""
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    student = student_variables(state.trained, frozen, lora=lora)
    teacher_vars = teacher_variables(state, frozen, teacher=teacher, lora=lora)
    return rollout.sample(decoder, student, teacher_vars, batch, key, options)


def learn_step(
    state: TrainState,
    frozen: Params | None,
    completions: Completions,
    *,
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    options: Options,
    teacher: str,
    lora: bool,
    method: str = "self_distillation",
    ema_decay: float = 0.999,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from completions: score both roles -> the method's loss -> gradient -> update.

    A non-finite loss, gradient or update leaves the state as it was and reports `finite` = 0: the caller stops.

    Returns:
      The new state, and scalar metrics (and `row_loss` [B]).
    """
    teacher_vars = teacher_variables(state, frozen, teacher=teacher, lora=lora)
    weights = rollout.loss_weights(completions, options.reduction)  # of the whole batch, before it is split

    def value_and_grad(trained: Params, part: Any) -> Any:
        completions, weights = part
        hidden = None
        if teacher_vars is not None:
            hidden = rollout.teacher_hidden(decoder, teacher_vars, completions, guidance=options.guidance)
        bound: dict[str, Any] = dict(decoder=decoder, options=options, method=method, lora=lora)
        return loss_and_gradient(trained, frozen, teacher_vars, hidden, completions, weights, **bound)

    (loss, sums), grads = _accumulate(value_and_grad, state.trained, (completions, weights), microbatches)

    new_state, grad_norm, finite = update(state, loss, grads, optimizer=optimizer, ema_decay=ema_decay)
    return new_state, _metrics(loss, grad_norm, finite, sums, completions)


def loss_and_gradient(
    trained: Params,
    frozen: Params | None,
    teacher_vars: Variables | None,
    hidden: jax.Array | None,
    completions: Completions,
    weights: rollout.Weights,
    *,
    decoder: Decoder,
    options: Options,
    method: str,
    lora: bool,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:
    """((loss, sums), gradient) of a method on completions that the teacher has scored: `hidden` of `rollout.teacher_hidden`."""

    def loss_fn(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables = student_variables(trained, frozen, lora=lora)
        scored = rollout.score(decoder, variables, teacher_vars, hidden, completions)
        return METHODS[method].loss_and_sums(scored, completions, weights, options)

    return jax.value_and_grad(loss_fn, has_aux=True)(trained)


def train_step(
    state: TrainState, frozen: Params | None, batch: Batch, seed: jax.Array, **static: Any
) -> tuple[TrainState, dict[str, jax.Array], Completions]:
    """`sample_step` and `learn_step` as one program, where nothing of the host's comes between; `static`: of `learn_step`."""
    completions = sample_step(state, frozen, batch, seed, **_of_sampling(static))
    new_state, metrics = learn_step(state, frozen, completions, **static)
    return new_state, metrics, completions


def update(
    state: TrainState, loss: jax.Array, grads: Params, *, optimizer: optax.GradientTransformation, ema_decay: float
) -> tuple[TrainState, jax.Array, jax.Array]:
    """The state after one update, the gradient's norm and whether all was finite; if not, the state is the old one."""
    grad_norm = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    ema = None
    if state.ema is not None:
        ema = jax.tree.map(lambda m, x: ema_decay * m + (1 - ema_decay) * x.astype(jnp.float32), state.ema, trained)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.global_norm(updates))
    new_state = TrainState(state.step + 1, trained, opt_state, ema)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state), grad_norm, finite


def _accumulate(value_and_grad: Callable, trained: Params, rows: Any, microbatches: int) -> Any:
    """Loss, sums and gradients added up over microbatches of the rows, one in memory at a time."""
    if microbatches == 1:
        return value_and_grad(trained, rows)
    # [B, ...] -> [A, B/A, ...] with rows dealt out in turn: every device keeps its own rows in every microbatch.
    parts = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1), rows
    )
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(value_and_grad, trained, first))
    (zero_value, zero_sums), zero_grads = zeros
    zero_sums = {k: v for k, v in zero_sums.items() if k != "row_loss"}

    def body(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        (value, sums), grads = value_and_grad(trained, part)
        row_loss = sums.pop("row_loss")
        return jax.tree.map(jnp.add, carry, ((value, sums), grads)), row_loss

    ((value, sums), grads), row_loss = jax.lax.scan(body, ((zero_value, zero_sums), zero_grads), parts)
    sums["row_loss"] = row_loss.swapaxes(0, 1).reshape(-1)
    return (value, sums), grads


def _metrics(
    loss: jax.Array, grad_norm: jax.Array, finite: jax.Array, sums: dict[str, jax.Array], completions: Completions
) -> dict[str, jax.Array]:
    mask, cut = completions.samples.mask, completions.samples.cut
    row_loss = sums.pop("row_loss")
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "finite": finite,
        **{name: value / jnp.maximum(count, 1) for name, (value, count) in sums.items()},
        "completion_length": mask.sum(axis=1).mean(),
        "share_cut": cut.mean(),
        "completion_tokens": mask.sum(),
        "row_loss": row_loss,
    }


def _of_sampling(static: dict[str, Any]) -> dict[str, Any]:
    """Of the static arguments of `learn_step`, those that `sample_step` takes."""
    return {name: static[name] for name in ("decoder", "options", "teacher", "lora")}


def jit_train_step(shardings: Any = None, **static: Any) -> jax.stages.Wrapped:
    """`train_step` with its static choices bound, the state donated and, over a mesh, its sharding kept."""
    out = None if shardings is None else (shardings, None, None)
    return jax.jit(functools.partial(train_step, **static), donate_argnums=0, out_shardings=out)


def jit_halves(shardings: Any = None, **static: Any) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """`sample_step` and `learn_step` likewise, for methods that grade in between on the host."""
    sample = jax.jit(functools.partial(sample_step, **_of_sampling(static)))
    out = None if shardings is None else (shardings, None)
    return sample, jax.jit(functools.partial(learn_step, **static), donate_argnums=0, out_shardings=out)
