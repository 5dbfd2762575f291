"""Predictors of what each expert scores on this very prompt, beyond its category.

Each is fitted on the scores themselves, never on "the best expert": ties between experts make that
label arbitrary. All give expected scores (n, n_experts) of feature rows (n, d).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routers.neighbourhood import Neighbourhood

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """A linear map to experts: `weights` (d, n_experts), or (d, r) followed by `spread`
    (r, n_experts), which is what keeps thousands of experts cheap."""

    weights: Floats
    intercepts: Floats
    spread: Floats | None = None

    def __call__(self, rows: Floats) -> Floats:
        mapped = rows @ self.weights
        if self.spread is not None:
            mapped = mapped @ self.spread
        expected: Floats = mapped + self.intercepts
        return expected


@dataclass(frozen=True, slots=True)
class LinearPredictor:
    """Ridge regression on the features."""

    coefficients: Coefficients

    def predict(self, features: Floats) -> Floats:
        return self.coefficients(features)


@dataclass(frozen=True, slots=True)
class KernelPredictor:
    """Kernel ridge regression on `landmarks` (m, d) (Nystroem; Williams & Seeger 2001).

    Far from all landmarks it expects the intercepts: what an expert scores over all prompts.
    """

    landmarks: Floats
    gamma: float
    coefficients: Coefficients
    _norms: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Worth keeping: it would be half the work of a decision's kernel row.
        object.__setattr__(self, "_norms", squared_norms(self.landmarks))

    def predict(self, features: Floats) -> Floats:
        return self.coefficients(gaussian(features, self.landmarks, self.gamma, self._norms))


@dataclass(frozen=True, slots=True)
class NeighbourPredictor:
    """Mean of the `scores` (m, n_experts) of the nearest anchors; with a `spread` (r, n_experts),
    scores are (m, r) and it maps them to experts."""

    neighbourhood: Neighbourhood
    scores: Floats
    spread: Floats | None = None

    def predict(self, features: Floats) -> Floats:
        cosines, k = self.neighbourhood.cosines(features), self.neighbourhood.k
        nearest = np.argpartition(cosines, cosines.shape[1] - k, axis=1)[:, -k:]
        expected: Floats = self.scores[nearest].mean(axis=1)
        return expected if self.spread is None else expected @ self.spread


def squared_norms(rows: Floats) -> Floats:
    """Squared length of each row, (n,)."""
    norms: Floats = np.einsum("ij,ij->i", rows, rows)
    return norms


def gaussian(rows: Floats, landmarks: Floats, gamma: float, norms: Floats | None = None) -> Floats:
    """Kernel matrix exp(-gamma * squared distance), (n, m); `norms` of the landmarks, if known."""
    if norms is None:
        norms = squared_norms(landmarks)
    squared = squared_norms(rows)[:, None] + norms - 2 * (rows @ landmarks.T)
    kernel: Floats = np.exp(-gamma * np.maximum(squared, 0)).astype(np.float32)
    return kernel
