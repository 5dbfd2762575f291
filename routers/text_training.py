"""Learning the scaling and the projection of text features."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.utils.extmath import randomized_svd

from routers.text_features import (
    BUCKETS,
    Floats,
    TextFeatures,
    format_features,
    hashed_ngrams,
    plain,
)

N_TOPICS = 128
MAX_FITTED = 8192
"""So many texts are enough to find the topics."""

PART = 2048
"""So many texts are counted at a time."""


def fit_text_features(texts: Sequence[str], seed: int = 0) -> tuple[TextFeatures, Floats]:
    """Learn from the training texts; returns their rows as well, (n, dimension).

    Topic rows have a root mean square length of 1, as embeddings have; few texts give fewer topics.
    No label is used, so a row may be judged by features that were fitted on it.
    """
    cut = [plain(text) for text in texts]
    weighted = _counts(cut)
    documents = np.bincount(weighted.indices, minlength=BUCKETS)
    idf = (np.log((1 + len(texts)) / (1 + documents)) + 1).astype(np.float32)
    # In place: the matrix is the largest thing there is.
    weighted.data *= idf[weighted.indices]
    lengths = np.diff(weighted.indptr)
    row = np.repeat(np.arange(len(texts)), lengths)
    norms = np.sqrt(np.bincount(row, weighted.data**2, minlength=len(texts))).astype(np.float32)
    weighted.data /= np.repeat(np.maximum(norms, 1e-9), lengths)
    sample = weighted
    if len(texts) > MAX_FITTED:
        chosen = np.random.default_rng(seed).choice(len(texts), MAX_FITTED, replace=False)
        sample = weighted[np.sort(chosen)]
    n_topics = max(1, min(N_TOPICS, len(texts) // 4))
    _, _, components = randomized_svd(sample, n_topics, n_iter=2, random_state=seed)
    projection = components.T
    topics = weighted @ projection
    length = max(float(np.sqrt((topics**2).sum(axis=1).mean())), 1e-9)
    layout = np.stack([format_features(text) for text in cut])
    features = TextFeatures(
        idf=idf,
        projection=np.ascontiguousarray(projection / length, dtype=np.float32),
        centre=layout.mean(axis=0).astype(np.float32),
        scale=(1 / (layout.std(axis=0) + 1e-3)).astype(np.float32),
    )
    rows = np.hstack([topics / length, features.layout(layout)]).astype(np.float32)
    return features, rows


def _counts(texts: Sequence[str]) -> csr_matrix:
    """Weights 1 + log(count) of the n-grams of plain texts, (n, BUCKETS)."""
    parts = [_part(texts[start : start + PART]) for start in range(0, len(texts), PART)]
    return csr_matrix(vstack(parts, format="csr"))


def _part(texts: Sequence[str]) -> csr_matrix:
    found = [hashed_ngrams(text) for text in texts]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
    buckets = np.concatenate([buckets for buckets, _ in found])
    values = np.concatenate([values for _, values in found])
    return csr_matrix((values, buckets, ends), shape=(len(texts), BUCKETS))
