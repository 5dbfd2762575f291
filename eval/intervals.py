"""Confidence intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_bootstrap(
    differences: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of paired differences with its percentile bootstrap interval.

    `differences` holds one number a prompt: the score of one expert less that of the other on the
    same prompt, so that easy and hard prompts cancel out. ValueError when it is empty.
    """
    if len(differences) == 0:
        raise ValueError("no differences to resample")
    values = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), size=(rows, len(values)))].mean(axis=1)
            for rows in chunks(resamples, 1000)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def chunks(total: int, size: int) -> list[int]:
    """`total` in parts of at most `size`, so that memory stays bounded."""
    whole, rest = divmod(total, size)
    return [size] * whole + ([rest] if rest else [])
