"""The optimizer: AdamW behind clipping, with a schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax


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
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """AdamW behind global-norm clipping, and its learning-rate schedule (step -> rate), for logging.

    Weight decay is for matrices; norms and biases have none.

    `schedule` is one of "constant", "linear" (to zero at `steps`) and "cosine" (likewise), after a linear warm-up.
    """
    decay_steps = max(steps - warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(learning_rate, decay_steps),
    }[schedule]
    # The first update already has a rate of learning_rate / (warmup + 1): a rate of zero would waste a whole step.
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after
    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)
    return (optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw), rate


def _is_matrix(trained: Any) -> Any:
    # Layers are stacked: there a matrix has three axes, and two make vectors.
    return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim - (path[0].key == "layers") >= 2, trained)
