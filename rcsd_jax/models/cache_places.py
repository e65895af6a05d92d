"""Which places of a row a cache keeps: all of them, or in layers with a window only the last ones, in a ring.

Place j of a whole row holds position j. Place j of a ring of R places holds the newest position p with p mod R = j.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.kernels.paged import PAGE

Number: TypeAlias = jax.Array | int
NOWHERE = -1
"""The number of a layer among layers of which it is none."""


def whole_pages(config: DecoderConfig, length: int) -> int:
    """At least `length` places; whole pages for Pallas."""
    return -(-length // PAGE) * PAGE if config.kernels == "pallas" else length


def ring_places(config: DecoderConfig, length: int, tokens: int = 1) -> int | None:
    """R, the places of a ring; None if a layer with a window keeps all places, as it does where a ring would not be shorter.

    R is at least window + tokens - 1. So new tokens replace only what the first of them no longer sees. A draft that was rejected
    stands up to tokens - 1 places after a row's last token. Counted back along the ring, it is older than the window.

    Args:
      config: of the decoder.
      length: places of a row, prompt and completion.
      tokens: new tokens of a row that are written together, at most.
    """
    if not config.slides:
        return None
    assert config.window is not None, "sliding layers have one"
    places = whole_pages(config, config.window + tokens - 1)
    return places if places < whole_pages(config, length) else None


def layers_of(config: DecoderConfig) -> tuple[list[int], list[int]]:
    """The layers without a window, and those with one."""
    slides = [config.kinds[kind].sliding for kind in config.kind_numbers]
    return [i for i, x in enumerate(slides) if not x], [i for i, x in enumerate(slides) if x]


def numbers(config: DecoderConfig, layer: Number) -> tuple[Number, Number]:
    """The number of a layer among those without a window, and among those with one; `NOWHERE` if it is none of them."""
    tables = []
    for layers in layers_of(config):
        table = [layers.index(i) if i in layers else NOWHERE for i in range(config.num_layers)]
        tables.append(table[layer] if isinstance(layer, int) else jnp.asarray(table, jnp.int32)[layer])
    return tables[0], tables[1]


def folded(pool: jax.Array, lengths: jax.Array, places: int) -> jax.Array:
    """Whole rows as rings: of each the last places in use, position p in place p mod R.

    Args:
      pool: [K, L, B, S, Hd].
      lengths: [B] int32, the places in use, which are a row's first.
      places: R.

    Returns:
      [K, L, B, min(S, R), Hd].
    """
    ring = pool[:, :, :, :places]
    for start in range(places, pool.shape[3], places):
        turn = pool[:, :, :, start : start + places]
        count = turn.shape[3]
        used = (start + jnp.arange(count) < lengths[:, None])[:, :, None]
        newer = jnp.where(used, turn, ring[:, :, :, :count])
        ring = newer if count == places else jnp.concatenate([newer, ring[:, :, :, count:]], axis=3)
    return ring
