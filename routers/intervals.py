"""Confidence intervals of paired comparisons."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_bootstrap(differences: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of the mean of paired differences, shape (n,)."""
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no differences to bootstrap")
    generator = np.random.default_rng(seed)
    means = np.array(
        [values[generator.integers(0, values.size, values.size)].mean() for _ in range(resamples)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
