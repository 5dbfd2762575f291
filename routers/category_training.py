"""Fitting the category router: which model, how hard, how sure.

Logistic regression, k-nearest-neighbour votes and a small perceptron compete on out-of-fold
log-likelihood after calibration. All figures are out-of-fold.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from routers.calibration import fit_temperature, softmax, threshold_for_accuracy
from routers.category import (
    CategoryModel,
    CategoryRouter,
    LinearModel,
    NeighbourModel,
    PerceptronModel,
    familiarity,
)
from routers.neighbourhood import Neighbourhood, mean_of_highest, unit_rows
from routers.predictor_training import make_neighbourhood

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

MAX_FITTED = 8000
"""More labelled prompts than this add time, not accuracy."""

MAX_VOTERS = 4096
SIMILAR = 3
"""So many of the nearest training prompts say how familiar a prompt is."""

CERTAINTY_WEIGHT = 0.05
"""More of it tells clean outliers better and is fooled by odd texts that look certain."""

RACE_FOLDS = 2
"""Models compete on so many folds; only the winner sees the others."""

PERCEPTRON_FROM = 20
PERCEPTRON_LEAST, PERCEPTRON_MOST = 1000, 20_000
"""A perceptron takes part with so many prompts per category, and between so many in all: beyond, it
would take most of the training's time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model with its settings: `fit(features, labels, n_categories)`."""

    name: str
    fit: Callable[[Floats, Indices, int], CategoryModel]


@dataclass(frozen=True, slots=True)
class CategoryFit:
    """`probabilities` (n, n_categories) and `familiarity` (n,) of the labelled prompts, by models
    that are blind to them."""

    router: CategoryRouter
    chosen: str
    losses: dict[str, float]
    probabilities: Doubles
    familiarity: Doubles


def fit_category_router(
    features: Floats,
    embeddings: Floats,
    labels: Indices,
    names: Sequence[str],
    folds: Sequence[Indices],
    *,
    target_accuracy: float,
    outlier_share: float,
    seed: int = 0,
) -> CategoryFit:
    """Choose, fit and calibrate.

    Args:
        features: (n, d) of the labelled prompts, whose category indices are `labels` (n,).
        embeddings: (n, d_embedding), unit rows; the distance test looks at them alone.
        folds: test rows; together all rows.
        target_accuracy: of the category on the prompts that the router is sure of.
        outlier_share: of the training prompts may count as far away.
    """
    neighbourhood, anchors = make_neighbourhood(embeddings, seed, SIMILAR)
    if len(names) == 1:
        return _single(features, embeddings, names[0], neighbourhood, anchors, folds, outlier_share)
    losses: dict[str, float] = {}
    best: tuple[float, Candidate, Doubles] | None = None
    race = folds[:RACE_FOLDS]
    for candidate in _candidates(len(labels), len(names), seed):
        logits = _out_of_fold(candidate, features, labels, len(names), race, seed)
        seen = np.concatenate(list(race))
        losses[candidate.name] = loss = _loss(logits[seen], labels[seen])
        if best is None or loss < best[0]:
            best = (loss, candidate, logits)
    assert best is not None
    _, winner, logits = best
    rest = _out_of_fold(winner, features, labels, len(names), folds[RACE_FOLDS:], seed)
    logits = np.where(np.isnan(logits), rest, logits)
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature)
    known = blind_familiarity(embeddings, neighbourhood, anchors, folds, probabilities)
    correct = probabilities.argmax(axis=1) == labels
    threshold = threshold_for_accuracy(probabilities.max(axis=1), correct, target_accuracy)
    router = CategoryRouter(
        categories=tuple(names),
        model=winner.fit(*_sample(features, labels, seed), len(names)),
        temperature=temperature,
        neighbourhood=neighbourhood,
        min_probability=threshold.value,
        min_familiarity=float(np.quantile(known, outlier_share)),
        certainty_weight=CERTAINTY_WEIGHT,
    )
    return CategoryFit(router, winner.name, losses, probabilities, known)


def blind_familiarity(
    embeddings: Floats,
    neighbourhood: Neighbourhood,
    anchors: Indices,
    folds: Sequence[Indices],
    probabilities: Doubles,
) -> Doubles:
    """Familiarity (n,) of each row with the anchors that are not of its fold."""
    similarity = np.zeros(len(embeddings))
    for test in folds:
        blind = ~np.isin(anchors, test)
        if not blind.any():
            blind[:] = True
        for start in range(0, len(test), 1024):
            rows = test[start : start + 1024]
            cosines = neighbourhood.cosines(embeddings[rows])[:, blind]
            similarity[rows] = mean_of_highest(cosines, neighbourhood.k)
    entropy = np.zeros(len(embeddings))
    if probabilities.shape[1] > 1:
        logs = np.log(np.maximum(probabilities, 1e-12))
        entropy = -(probabilities * logs).sum(axis=1) / np.log(probabilities.shape[1])
    return familiarity(similarity, entropy, CERTAINTY_WEIGHT)


def _candidates(n: int, n_categories: int, seed: int) -> list[Candidate]:
    found = [
        Candidate(f"logistic {strength:g}", partial(_logistic, strength=strength))
        for strength in (3.0, 12.0, 50.0)
    ]
    found += [Candidate(f"neighbours {k}", partial(_neighbours, k=k, seed=seed)) for k in (10, 30)]
    if max(PERCEPTRON_FROM * n_categories, PERCEPTRON_LEAST) <= n <= PERCEPTRON_MOST:
        found.append(Candidate("perceptron", partial(_perceptron, seed=seed)))
    return found


def _logistic(x: Floats, labels: Indices, n_categories: int, strength: float) -> LinearModel:
    present = np.unique(labels)
    if len(present) == 1:
        return _constant(x.shape[1], int(present[0]), n_categories)
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x, labels)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # scikit-learn keeps one row for two classes; the softmax form needs both.
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    whole = _constant(x.shape[1], -1, n_categories)
    whole.coefficients[model.classes_] = coefficients
    whole.intercepts[model.classes_] = intercepts
    return whole


def _constant(dimension: int, category: int, n_categories: int) -> LinearModel:
    """A model that is sure of one category; unseen ones are as good as ruled out."""
    intercepts = np.full(n_categories, UNSEEN, dtype=np.float32)
    if category >= 0:
        intercepts[category] = 0
    return LinearModel(np.zeros((n_categories, dimension), dtype=np.float32), intercepts)


UNSEEN = -20.0
"""Logit of a category that no training prompt of a fold has."""


def _neighbours(x: Floats, labels: Indices, n_categories: int, k: int, seed: int) -> NeighbourModel:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:MAX_VOTERS])
    anchors = np.ascontiguousarray(unit_rows(x[chosen]))
    return NeighbourModel(anchors, labels[chosen], n_categories, min(k, len(chosen)), 20.0)


def _perceptron(x: Floats, labels: Indices, n_categories: int, seed: int) -> CategoryModel:
    present = np.unique(labels)
    if len(present) < 3:
        return _logistic(x, labels, n_categories, 12.0)
    model = MLPClassifier(
        128, alpha=1e-3, learning_rate_init=2e-3, max_iter=30, tol=1e-3, random_state=seed
    )
    with warnings.catch_warnings():
        # Stopping early is meant: it regularises, and bounds the time.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x.astype(np.float32), labels)
    output = np.zeros((128, n_categories), dtype=np.float32)
    bias = np.full(n_categories, UNSEEN, dtype=np.float32)
    output[:, model.classes_] = model.coefs_[1]
    bias[model.classes_] = model.intercepts_[1]
    return PerceptronModel(
        model.coefs_[0].astype(np.float32), model.intercepts_[0].astype(np.float32), output, bias
    )


def _out_of_fold(
    candidate: Candidate,
    features: Floats,
    labels: Indices,
    n_categories: int,
    folds: Sequence[Indices],
    seed: int,
) -> Doubles:
    logits = np.full((len(labels), n_categories), np.nan)
    for test in folds:
        train = np.setdiff1d(np.arange(len(labels)), test)
        model = candidate.fit(*_sample(features[train], labels[train], seed), n_categories)
        logits[test] = model.logits(features[test])
    return logits


def _sample(features: Floats, labels: Indices, seed: int) -> tuple[Floats, Indices]:
    if len(labels) <= MAX_FITTED:
        return features, labels
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MAX_FITTED])
    return features[chosen], labels[chosen]


def _loss(logits: Doubles, labels: Indices) -> float:
    p = softmax(logits / fit_temperature(logits, labels))
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())


def _single(
    features: Floats,
    embeddings: Floats,
    name: str,
    neighbourhood: Neighbourhood,
    anchors: Indices,
    folds: Sequence[Indices],
    outlier_share: float,
) -> CategoryFit:
    probabilities = np.ones((len(features), 1))
    known = blind_familiarity(embeddings, neighbourhood, anchors, folds, probabilities)
    router = CategoryRouter(
        categories=(name,),
        model=_constant(features.shape[1], 0, 1),
        temperature=1.0,
        neighbourhood=neighbourhood,
        min_probability=0.0,
        min_familiarity=float(np.quantile(known, outlier_share)),
        certainty_weight=CERTAINTY_WEIGHT,
    )
    return CategoryFit(router, "one category", {}, probabilities, known)
