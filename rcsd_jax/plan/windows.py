"""How far the layers of a decoder see, and what attention reads because of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rcsd_jax.models.config import DecoderConfig

Windows: TypeAlias = Sequence[int | None]
"""Of every layer, how many tokens one sees, itself included; None: all before it."""

GLOBAL: Windows = (None,)


def windows_of(config: DecoderConfig) -> Windows:
    """Of all layers."""
    return [config.window if config.kinds[number].sliding else None for number in config.kind_numbers]


def mean(windows: Windows, of: Callable[[int | None], float]) -> float:
    """The mean over the layers of something that depends on their windows.

    Examples:
      >>> mean([512, None], lambda window: window or 1024)
      768.0
    """
    return sum(count * of(window) for window, count in Counter(windows).items()) / len(windows)


def places_read(place: int, block: int, window: int | None) -> int:
    """Places of the cache that the token at a place reads: those that it sees, in whole blocks.

    Examples:
      >>> places_read(9, 4, None), places_read(9, 4, 2), places_read(9, 4, 3)
      (12, 4, 8)
    """
    first = 0 if window is None else max(place + 1 - window, 0)
    return block * (place // block - first // block + 1)
