"""How far the layers of a decoder see, and what attention reads because of it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels import paged, splash
from rcsd_jax.plan.packing import blocks_computed

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


def read_of_a_full_cache(config: DecoderConfig, places: int) -> float:
    """Places of a row that a token in the last block reads; the mean over these tokens and over layers."""
    block = paged.block(places)
    tokens = range(max(places - block, 0), places)
    read = lambda window: sum(places_read(token, block, window) for token in tokens) / len(tokens)
    return mean(windows_of(config), read)


def within_windows(config: DecoderConfig, row: int, sequences: int = 1) -> tuple[int, float]:
    """`Program.row` and `.attended` of rows of equally long sequences."""
    if sequences == 1 and not config.slides:
        return 0, 1.0
    padded = row + splash.padding(row)
    computed = functools.partial(blocks_computed, [row // sequences] * sequences, padded, splash.block(padded))
    return padded, mean(windows_of(config), lambda window: computed(window=window))
