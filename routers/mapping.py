"""Step two of two-step routing: from categories to the expected score of every expert."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Expected scores: `by_category` (n_categories, n_experts), `overall` (n_experts,).

    `overall` is the row of the category `general`.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    by_category: Doubles
    overall: Doubles

    def expected(self, probabilities: NDArray[np.float32]) -> Doubles:
        """Expected score of each expert under a category distribution: (n_experts,)."""
        expected: Doubles = probabilities @ self.by_category
        return expected


def fit_mapping(
    scores: Doubles,
    categories: Sequence[str | None],
    names: Sequence[str],
    experts: Sequence[str],
) -> Mapping:
    """Learn the mapping from graded outcomes.

    Args:
        scores: (n_prompts, n_experts) in [0, 1], NaN where an outcome is missing.
        categories: category of each prompt, None where it has no label.
        names: the categories to make rows for.
        experts: ids of the columns.

    Each expert's mean in a category is shrunk towards its overall mean by its evidence: the
    normal-normal empirical Bayes estimate (Efron & Morris 1975) with the between-category variance
    by moments (DerSimonian & Laird 1986). A category without outcomes gets the overall mean.
    """
    counts = ~np.isnan(scores)
    total = counts.sum(axis=0)
    overall = np.where(total > 0, np.nansum(scores, axis=0) / np.maximum(total, 1), np.nan)
    members = np.array([[c == name for c in categories] for name in names], dtype=bool)
    members = members.reshape(len(names), scores.shape[0])
    by_category = np.tile(overall, (len(names), 1))
    for column in range(scores.shape[1]):
        by_category[:, column] = _shrink(scores[:, column], members, float(overall[column]))
    return Mapping(tuple(names), tuple(experts), by_category, overall)


def _shrink(scores: Doubles, members: NDArray[np.bool_], overall: float) -> Doubles:
    """Shrunk means of one expert in each category: (n_categories,)."""
    known = ~np.isnan(scores)
    n = (members & known).sum(axis=1).astype(np.float64)
    seen = n > 0
    if seen.sum() < 2:
        return np.full(len(members), overall)
    filled = np.where(known, scores, 0.0)
    means = np.where(seen, (members * filled).sum(axis=1) / np.maximum(n, 1), overall)
    residuals = np.where(members & known, (filled - means[:, None]) ** 2, 0.0).sum()
    within = residuals / max(float(n.sum() - seen.sum()), 1.0)
    between = _between_variance(means[seen], n[seen], within)
    if between + within == 0:
        return np.full(len(members), overall)
    weight = between / (between + within / np.maximum(n, 1e-9))
    shrunk: Doubles = np.where(seen, overall + weight * (means - overall), overall)
    return shrunk


def _between_variance(means: Doubles, n: Doubles, within: float) -> float:
    """DerSimonian-Laird estimate of the variance of true category means, at least 0."""
    if within == 0:
        return float(np.var(means))
    weights = n / within
    centre = (weights * means).sum() / weights.sum()
    q = (weights * (means - centre) ** 2).sum()
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, float((q - (len(means) - 1)) / scale))
