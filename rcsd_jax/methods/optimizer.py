"""AdamW behind a clip of the gradient's norm, with a warm-up and a schedule."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from rcsd_jax.host import checks

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
}
"""(rate after the warm-up, steps after it) -> step -> rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The section `optimizer`; `settings/keys.py` says what each key means."""

    learning_rate: float
    schedule: str = checks.one_of(SCHEDULES)
    warmup_steps: int
    clip: float
    b1: float
    b2: float
    weight_decay: float

    def __post_init__(self) -> None:
        checks.choices(self)
        checks.finite(self, "learning_rate", "clip", "weight_decay")
        checks.need(self.learning_rate > 0, self, "learning_rate", "must be positive", "the paper's is 5e-6")
        checks.at_least_zero(self, "warmup_steps", "clip", "weight_decay")
        checks.share(self, "b1", "b2")


def make_optimizer(
    *,
    learning_rate: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    steps: int,
    clip: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    frozen: tuple[str, ...] = (),
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """AdamW behind global-norm clipping, and its learning-rate schedule (step -> rate), for logging.

    Weight decay is for matrices; norms, biases and the layers' parameters `frozen`, which get no gradient, have none.

    `schedule` is one of `SCHEDULES`, after a linear warm-up; "linear" and "cosine" fall to zero at `steps`.
    """
    after = SCHEDULES[schedule](learning_rate, max(steps - warmup_steps, 1))
    # The first update already has a rate of learning_rate / (warmup + 1): a rate of zero would waste a whole step.
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after
    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=functools.partial(_decays, frozen=frozen))
    return (optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw), rate


def _decays(trained: Any, frozen: tuple[str, ...]) -> Any:
    # Layers are stacked: there a matrix has three axes, and two make vectors.
    def is_matrix(path: Any, x: jax.Array) -> bool:
        return x.ndim - (path[0].key == "layers") >= 2 and path[-1].key not in frozen

    return jax.tree_util.tree_map_with_path(is_matrix, trained)
