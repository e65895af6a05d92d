"""The largest batch and completion that fit, found by compiling the whole step again and again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcsd_jax.models import sharding
from rcsd_jax.plan import measure, networks, planned, programs
from rcsd_jax.plan.chips import GIB
from rcsd_jax.settings.stage import Settings

TRIES = 6
"""Values tried, the config's own among them."""

SPAN = 16
"""How many times the config's own value the search goes up."""


def search(
    config: Settings,
    devices: Sequence[Any],
    capacity: float,
    report: Callable[[str], None],
    *,
    own: float | None = None,
    folder: Path | None = None,
) -> dict[str, int | None]:
    """The largest batch at the config's completion length, and the longest completion at its batch.

    Args:
      config: of a stage.
      devices: of the slice.
      capacity: bytes of HBM of a chip.
      report: called with a line for every other value that is tried.
      own: bytes that the step needs as the config has it, if that is known.
      folder: keeps the compiler's answers.

    Returns:
      {"batch": ..., "completion": ...}; None where nothing tried fits.
    """
    own = _needed(config, devices, capacity, folder) if own is None else own

    def needed(key: str, value: int) -> float:
        section, name = key.split(".")
        changed = dataclasses.replace(getattr(config, section), **{name: value})
        found = _needed(dataclasses.replace(config, **{section: changed}), devices, capacity, folder)
        amount = f"{found / GIB:.2f} of {capacity / GIB:.2f} GiB" if math.isfinite(found) else "the compiler refuses it"
        report(f"{key} = {value}: {'fits' if found <= capacity else 'does not fit'}, {amount}")
        return found

    rows = config.train.microbatches * sharding.row_shards("train", programs.plan(config, devices).mesh)
    rows = math.lcm(rows, config.sampling.group, config.sampling.slots or 1)  # as the settings' checks want it
    limit = networks.decoder_config(config).max_position
    reason = config.teacher.reason_tokens
    longest = limit - max(config.data.max_student_prompt, config.data.max_teacher_prompt + reason)
    batch, completion = config.train.batch_size, min(config.sampling.max_new_tokens, longest)
    own_completion = own
    if completion < config.sampling.max_new_tokens:
        own_completion = needed("sampling.max_new_tokens", completion)
    return {
        "batch": largest(lambda n: needed("train.batch_size", n), batch, own, capacity, unit=rows),
        "completion": largest(
            lambda n: needed("sampling.max_new_tokens", n),
            completion,
            own_completion,
            capacity,
            unit=128,
            limit=longest,
        ),
    }


def _needed(config: Settings, devices: Sequence[Any], capacity: float, folder: Path | None) -> float:
    """Bytes that the step, or the larger of its two parts, needs on a chip; more than its capacity where the compiler refuses it."""
    plan = programs.plan(config, devices)
    found = 0.0
    for name in planned.WHOLE:
        if name in plan.programs:
            memory, refused = measure.compile_one(plan, name, folder)
            if memory is None:
                return max(measure.needed_bytes(refused) or math.inf, math.nextafter(capacity, math.inf))
            found = max(found, memory.needed)
    return found


def largest(
    needed: Callable[[int], float], start: int, own: float, capacity: float, *, unit: int, limit: int | None = None
) -> int | None:
    """The largest value tried that fits, among `start`, multiples of `unit` and `limit`; None if none does.

    Memory grows about as a line with batch and length, so that two values tell where the capacity is reached; what is
    returned was tried itself.

    Args:
      needed: bytes that a value needs, infinite if nobody knows how many.
      start: the first value.
      own: what it needs.
      capacity: what there is.
      unit: other values are multiples of it, at least one.
      limit: the largest value of interest, at least `start`.
    """
    highest = SPAN * start if limit is None else min(limit, SPAN * start)
    tried = {start: own}
    while len(tried) < TRIES:
        value = _next(tried, capacity, unit, highest)
        if value is None:
            break
        tried[value] = needed(value)
    return max((value for value, amount in tried.items() if amount <= capacity), default=None)


def _next(tried: dict[int, float], capacity: float, unit: int, highest: int) -> int | None:
    """The value to try next; None where the largest is known, or nearly."""
    best = max((value for value, amount in tried.items() if amount <= capacity), default=0)
    too_large = min((value for value, amount in tried.items() if amount > capacity), default=None)
    near = sorted((abs(amount - capacity), value) for value, amount in tried.items() if math.isfinite(amount))[:2]
    a, b = (value for _, value in near) if len(near) == 2 else (0, 0)
    if a != b and (slope := (tried[a] - tried[b]) / (a - b)) > 0:
        guess = a + (capacity - tried[a]) / slope
    elif too_large is None:
        guess = 2.0 * best
    else:
        guess = (best + too_large) / 2
    if too_large is not None:
        if best and too_large - best <= max(unit, best / 16):
            return None
        if not best < guess < too_large:  # no line after all
            guess = (best + too_large) / 2
    value = min(max(int(guess) // unit, 1) * unit, highest)
    return None if value <= best or (too_large is not None and value >= too_large) else value
