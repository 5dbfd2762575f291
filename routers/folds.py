"""Folds for cross-validation: balanced over categories, with equal prompts always together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def make_folds(texts: Sequence[str], codes: Indices, n_folds: int, seed: int = 0) -> list[Indices]:
    """Test rows of each fold, together all rows.

    Prompts that are the same but for case and white space share a fold, so that nothing is judged
    by a model that has seen it. `codes` (n,) are category indices, -1 for none. There are fewer
    folds where there are fewer different prompts.
    """
    keys = [" ".join(text.split()).lower() for text in texts]
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    n_folds = max(1, min(n_folds, len(first)))
    leaders = np.random.default_rng(seed).permutation(np.array(list(first.values())))
    leaders = leaders[np.argsort(codes[leaders], kind="stable")]
    fold_of = {keys[row]: i % n_folds for i, row in enumerate(leaders)}
    fold = np.array([fold_of[key] for key in keys])
    return [np.flatnonzero(fold == k) for k in range(n_folds)]
