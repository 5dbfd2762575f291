"""Step two of two-step routing: from categories to the expected score of every expert."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Expected scores: `by_category` (n_categories, n_experts), `overall` (n_experts,).

    `overall` is the row of the category `general`: every prompt counts the same.
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

    Each expert's mean in a category is shrunk by its evidence towards what is expected of it there
    without any: the normal-normal empirical Bayes estimate (Efron & Morris 1975) with the variance
    between categories by moments (DerSimonian & Laird 1986). What is expected without evidence is
    how hard the category is (its mean over all experts) plus how good the expert is (its mean
    difference to that), so an expert that was only scored on easy prompts earns nothing by it.
    """
    members = np.array([[c == name for c in categories] for name in names], dtype=bool)
    members = members.reshape(len(names), scores.shape[0])
    prior = _expected_without_evidence(scores, members)
    by_category = np.empty((len(names), scores.shape[1]))
    for column in range(scores.shape[1]):
        by_category[:, column] = _shrink(scores[:, column], members, prior[:, column])
    return Mapping(
        tuple(names), tuple(experts), by_category, _overall(scores, members, by_category)
    )


def _expected_without_evidence(scores: Doubles, members: NDArray[np.bool_]) -> Doubles:
    """Difficulty of the category plus effect of the expert, (n_categories, n_experts)."""
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    overall = filled.sum() / max(known.sum(), 1)
    answered = known.sum(axis=1)
    mean_of_prompt = np.where(answered > 0, filled.sum(axis=1) / np.maximum(answered, 1), np.nan)
    difficulty = _shrink(mean_of_prompt, members, np.full(len(members), overall))
    expected = np.where(members.any(axis=0), difficulty @ members, overall)
    surplus = np.where(known, filled - expected[:, None], 0.0).sum(axis=0)
    effect = surplus / np.maximum(known.sum(axis=0), 1)
    prior: Doubles = np.clip(difficulty[:, None] + effect[None, :], 0.0, 1.0)
    return prior


def _overall(scores: Doubles, members: NDArray[np.bool_], by_category: Doubles) -> Doubles:
    """Expected scores over all prompts, the same mix of categories for every expert."""
    complete = ~np.isnan(scores).any()
    if complete:
        return np.asarray(scores.mean(axis=0))
    share = members.sum(axis=1) / max(members.sum(), 1)
    return np.asarray(share @ by_category)


def _shrink(scores: Doubles, members: NDArray[np.bool_], prior: Doubles) -> Doubles:
    """Shrunk means of one expert in each category: (n_categories,), between mean and `prior`."""
    known = ~np.isnan(scores)
    n = (members & known).sum(axis=1).astype(np.float64)
    seen = n > 0
    if seen.sum() < 2:
        return prior
    filled = np.where(known, scores, 0.0)
    means = np.where(seen, (members * filled).sum(axis=1) / np.maximum(n, 1), prior)
    freedom = float(n.sum() - seen.sum())
    if freedom > 0:
        residuals = np.where(members & known, (filled - means[:, None]) ** 2, 0.0).sum()
        within = residuals / freedom
    else:
        # One outcome a category says nothing of the noise: take that of a coin with this mean.
        centre = float(means[seen].mean())
        within = centre * (1 - centre)
    between = _between_variance((means - prior)[seen], n[seen], within)
    if between + within == 0:
        return means
    weight = between / (between + within / np.maximum(n, 1e-9))
    shrunk: Doubles = np.where(seen, prior + weight * (means - prior), prior)
    return shrunk


def _between_variance(deviations: Doubles, n: Doubles, within: float) -> float:
    """DerSimonian-Laird estimate of the variance of true deviations from the prior, at least 0."""
    if within == 0:
        return float(np.var(deviations))
    weights = n / within
    centre = (weights * deviations).sum() / weights.sum()
    q = (weights * (deviations - centre) ** 2).sum()
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, float((q - (len(deviations) - 1)) / scale))
