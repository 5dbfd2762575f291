"""Categories that nobody labelled: grown from a few seeds, or found as clusters.

Growth follows the recipe inferred for Composition of Experts: an unlabelled prompt takes the label
that most of its labelled neighbours vote for, if the vote is clear and the neighbours are as near
as prompts of one category are to each other; repeated, so that labels spread.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from routers.neighbourhood import unit_rows

Floats = NDArray[np.float32]

MIN_SHARE = 0.8
ROUNDS = 3
NEIGHBOURS = 10
WITHIN_QUANTILE = 0.05
MAX_CLUSTERED = 8192
MAX_CLUSTERS = 24
PROMPTS_PER_CLUSTER = 50


def grow_labels(
    features: Floats, categories: Sequence[str | None], rounds: int = ROUNDS
) -> list[str | None]:
    """Labels spread from labelled prompts to unlabelled ones that are clearly alike."""
    grown = list(categories)
    names = sorted({c for c in grown if c is not None})
    unit = unit_rows(features)
    for _ in range(rounds):
        labelled = np.array([i for i, c in enumerate(grown) if c is not None], dtype=np.int64)
        open_rows = [i for i, c in enumerate(grown) if c is None]
        if not len(labelled) or not open_rows:
            break
        codes = np.array([names.index(str(grown[i])) for i in labelled])
        bar = _within(unit[labelled], codes)
        added = 0
        for start in range(0, len(open_rows), 1024):
            rows = open_rows[start : start + 1024]
            cosines = unit[rows] @ unit[labelled].T
            k = min(NEIGHBOURS, len(labelled))
            nearest = np.argpartition(cosines, cosines.shape[1] - k, axis=1)[:, -k:]
            similar = np.take_along_axis(cosines, nearest, axis=1)
            for row, who, near in zip(rows, codes[nearest], similar, strict=True):
                votes = np.bincount(who, np.maximum(near, 0), len(names))
                total = votes.sum()
                if total > 0 and votes.max() / total >= MIN_SHARE and near.mean() >= bar:
                    grown[row] = names[int(votes.argmax())]
                    added += 1
        if not added:
            break
    return grown


def _within(unit: Floats, codes: NDArray[np.int64]) -> float:
    """A low quantile of the cosine between a labelled prompt and the nearest of its category."""
    nearest = []
    for code in np.unique(codes):
        rows = unit[codes == code]
        if len(rows) > 1:
            cosines = rows @ rows.T
            np.fill_diagonal(cosines, -1)
            nearest.append(cosines.max(axis=1))
    return float(np.quantile(np.concatenate(nearest), WITHIN_QUANTILE)) if nearest else 0.5


def find_categories(features: Floats, seed: int = 0) -> list[str]:
    """Clusters of prompts as categories `found-01`, `found-02`, ..., the largest first."""
    unit = unit_rows(features)
    n_clusters = int(min(MAX_CLUSTERS, max(1, len(unit) // PROMPTS_PER_CLUSTER)))
    chosen = np.random.default_rng(seed).permutation(len(unit))[:MAX_CLUSTERED]
    model = KMeans(n_clusters, n_init=2, max_iter=50, random_state=seed).fit(unit[chosen])
    labels = model.predict(unit)
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    rank = np.empty(n_clusters, dtype=np.int64)
    rank[order] = np.arange(n_clusters)
    return [f"found-{rank[label] + 1:02d}" for label in labels]
