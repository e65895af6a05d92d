"""What a run says about settings that are allowed, and seldom meant."""

from __future__ import annotations

import jax

from rcsd_jax.settings.stage import Settings


def advice(config: Settings) -> list[str]:
    """A line for each such setting, with what to set instead."""
    lines = []
    if jax.default_backend() == "cpu" and config.model.dtype == "bfloat16":
        lines.append(
            "bfloat16 takes more than twice as long as float32 on a CPU: set model.dtype=float32 and model.param_dtype=float32"
        )
    if config.uncorrected_sampler:
        lines.append(
            "an int8 copy samples (sampling.int8_weights) and the loss does not correct for it: set loss.importance_clip=2"
        )
    return lines
