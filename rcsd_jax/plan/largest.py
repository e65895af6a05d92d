"""The largest batch and completion that fit, found by compiling the whole step again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from rcsd_jax.models import sharding
from rcsd_jax.plan import measure, programs

DOUBLINGS = 4
"""How far from the config's own value the search goes, up or down."""


def search(config: ConfigDict, devices: Sequence[Any], report: Callable[[str], None]) -> dict[str, int | None]:
    """The largest batch at the config's completion length, and the longest completion at its batch.

    Doubled or halved from the config's value, then once half-way: about five compilations each.

    Returns:
      {"batch": ..., "completion": ...}; None where nothing tried fits.
    """

    def fits(key: str, value: int) -> bool:
        section, name = key.split(".")
        changed = config.copy_and_resolve_references()
        changed[section][name] = value
        memory, refused = measure.compile_one(programs.plan(changed, devices), "train step")
        report(f"{key} = {value}: {'does not fit' if refused else 'fits'}")
        return memory is not None

    rows = config.train.microbatches * sharding.row_shards("train", programs.plan(config, devices).mesh)
    limit = programs.decoder_config(config).max_position
    reason = config.teacher.reason_tokens
    longest = limit - max(config.data.max_student_prompt, config.data.max_teacher_prompt + reason)
    return {
        "batch": largest(lambda n: fits("train.batch_size", n), config.train.batch_size, unit=rows),
        "completion": largest(
            lambda n: fits("sampling.max_new_tokens", n), config.sampling.max_new_tokens, unit=128, limit=longest
        ),
    }


def largest(fits: Callable[[int], bool], start: int, *, unit: int, limit: int | None = None) -> int | None:
    """The largest value tried that fits, among multiples of `unit` up to `limit`; None if none does.

    Args:
      fits: whether a value fits; what is below one that fits, fits.
      start: the first value.
      unit: values are multiples of it, at least one.
      limit: the largest value of interest.
    """

    def rounded(value: float) -> int:
        value = max(int(value) // unit, 1) * unit
        return value if limit is None else min(value, limit)

    best, too_large, value = None, None, start
    for _ in range(DOUBLINGS + 1):
        if fits(value):
            best = value
            if too_large is not None or value == limit:
                break
            following = rounded(2 * value)
        else:
            too_large = value
            if best is not None:
                break
            following = rounded(value / 2)
        if following == value:
            break
        value = following
    if best is not None and too_large is not None:
        between = rounded((best + too_large) / 2)
        if best < between < too_large and fits(between):
            best = between
    return best
