"""Stacking: the category map and the per-prompt predictors, each as far as it has shown its worth.

The weights are those of a non-negative regression on out-of-fold predictions (Breiman 1996), and an
expert other than the best single one is trusted only beyond a margin that paid off there. So a
prompt-level signal counts exactly as far as the data bear it out; where they bear out nothing,
every prompt goes to the best single expert.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.predictors import Floats, KernelPredictor, LinearPredictor, NeighbourPredictor

Doubles = NDArray[np.float64]

HAIR = 1e-6
"""An expert held back stands this far behind the best single one: less than any real difference,
more than a tie."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Weights of the parts, and when to trust their sum.

    `centre` (n_experts,) is what an expert scores over all prompts, `best` the index of the best
    single expert. Experts that are expected to be better than it by `margin` or less are held back
    just behind it; `margins` (n_experts,), where there are any, are those of each. `shifts`
    (n_categories, n_experts) move experts that joined later in each category;
    `category_margins` (n_categories,) go before both where a category joined later.
    """

    centre: Doubles
    best: int
    margin: float
    map_weight: float
    linear: LinearPredictor | None = None
    linear_weight: float = 0.0
    kernel: KernelPredictor | None = None
    kernel_weight: float = 0.0
    neighbours: NeighbourPredictor | None = None
    neighbour_weight: float = 0.0
    margins: Doubles | None = None
    shifts: Doubles | None = None
    category_margins: Doubles | None = None

    def expected(
        self, by_category: Doubles, features: Floats, probabilities: NDArray[np.floating[Any]]
    ) -> Doubles:
        """Expected scores (n, n_experts) of n prompts.

        Args:
            by_category: what the category map expects, (n, n_experts).
            features: (n, d).
            probabilities: of the categories, (n, n_categories).
        """
        total = self.combined(by_category, features, self.shift(probabilities))
        margin = self.margin if self.margins is None else self.margins
        if self.category_margins is not None:
            margin = self.category_margins[probabilities.argmax(axis=1)][:, None]
        return bounded(hold_back(total, self.best, margin))

    def shift(self, probabilities: NDArray[np.floating[Any]]) -> Doubles | None:
        """How far experts are moved on these prompts, (n, n_experts); None: nowhere."""
        return None if self.shifts is None else np.asarray(probabilities @ self.shifts)

    def combined(
        self, by_category: Doubles, features: Floats, shift: Doubles | None = None
    ) -> Doubles:
        """The weighted sum of all parts, before anybody is held back."""
        total = self.centre + self.map_weight * (by_category - self.centre)
        if self.linear is not None:
            total += self.linear_weight * (self.linear.predict(features) - self.centre)
        if self.kernel is not None:
            total += self.kernel_weight * (self.kernel.predict(features) - self.centre)
        if self.neighbours is not None:
            total += self.neighbour_weight * (self.neighbours.predict(features) - self.centre)
        return total if shift is None else total + shift


def hold_back(expected: Doubles, best: int, margin: float | Doubles) -> Doubles:
    """Put experts that are ahead of `best` by `margin` or less just behind it, in their order."""
    ahead = expected - expected[:, [best]]
    held = (ahead >= 0) & (ahead <= margin)
    held[:, best] = False
    if not held.any():
        return expected
    # Of those held back, the better stands nearer; all within a hair.
    behind = HAIR * (2 - ahead / (1 + ahead))
    found: Doubles = np.where(held, expected[:, [best]] - behind, expected)
    return found


def bounded(expected: Doubles) -> Doubles:
    """Bring every row into [0, 1] without making its best experts equal."""
    over = np.maximum(expected.max(axis=1, keepdims=True) - 1, 0)
    found: Doubles = np.maximum(expected - over, 0)
    return found
