"""Means of seeds with their intervals, and comparisons of arms seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats


class Estimate(NamedTuple):
    """A mean with the half-width of its 95% interval (Student's t over seeds); NaN for a single seed."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        digits = 3 if 0 < abs(self.mean) < 0.5 else 1  # entropies in nats need more digits than percent
        half = "" if np.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{half}"


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate from one value per seed."""
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        return Estimate(float(values.mean()), float("nan"), count)
    width = scipy.stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return Estimate(float(values.mean()), float(width), count)


def paired(values: Sequence[float], against: Sequence[float]) -> Estimate:
    """The estimate of the differences, seed by seed: with a seed, both arms saw the same questions."""
    return estimate(np.asarray(values, np.float64) - np.asarray(against, np.float64))


def same_order(ours: dict[str, float], published: dict[str, float]) -> tuple[list[str], list[str]]:
    """Sentences on pairs of arms: those whose order agrees with the published one, and those whose order does not."""
    agree, differ = [], []
    names = [name for name in published if name in ours]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if published[a] == published[b]:
                continue
            better, worse = (a, b) if published[a] > published[b] else (b, a)
            gap = ours[better] - ours[worse]
            if gap:
                (agree if gap > 0 else differ).append(f"{better} over {worse} ({gap:+.1f})")
    return agree, differ
