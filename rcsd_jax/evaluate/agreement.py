"""How far two judges agree on the same criteria, beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLED = 1000


def table_of(pairs: Sequence[tuple[int, int]], categories: int) -> np.ndarray:
    """How often the first judge chose category i and the second j, [categories, categories]."""
    table = np.zeros((categories, categories))
    for first, second in pairs:
        table[first, second] += 1
    return table


def agreement(table: np.ndarray) -> float | None:
    """The share of pairs in which both judges chose the same category; None without pairs."""
    count = table.sum()
    return float(np.trace(table) / count) if count else None


def kappa(table: np.ndarray) -> float | None:
    """Cohen's kappa: 1 for full agreement, 0 for as much as chance brings.

    Disagreement counts by the square of the distance between the categories (the weighted kappa of ordered categories). With two
    categories, such as met and not met, this is the unweighted kappa.

    Args:
      table: of `table_of`, [k, k].

    Returns:
      None if chance brings no disagreement: there are no pairs, or both judges always chose the same category.

    Examples:
      >>> kappa(np.array([[20, 5], [10, 15]]))
      0.4
    """
    count = table.sum()
    place = np.arange(len(table))
    distance = (place[:, None] - place[None, :]) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(count, 1)
    expected = (distance * by_chance).sum()
    return float(1.0 - (distance * table).sum() / expected) if expected else None


def kappa_interval(tables: np.ndarray) -> list[float] | None:
    """The 95% bootstrap interval of `kappa` over questions, whose criteria are not independent.

    Args:
      tables: a table for each question, [N, k, k].

    Returns:
      [low, high], of the draws that have a kappa; None if none has.
    """
    count = len(tables)
    drawn = np.random.default_rng(0).integers(count, size=(_RESAMPLED, count))
    found = [one for one in (kappa(tables[draw].sum(axis=0)) for draw in drawn) if one is not None]
    return [float(x) for x in np.percentile(found, [2.5, 97.5])] if found else None
