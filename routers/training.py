"""Training a two-step router from labelled task data, and the honest account of how good it is.

Every figure of the report is out-of-fold: a prompt is judged by a router whose weights and mapping
have not seen it. Four settings (regularisation, temperature, two thresholds) are chosen on these
same predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from experts.errors import DataError
from routers.calibration import (
    Threshold,
    expected_calibration_error,
    fit_temperature,
    softmax,
    threshold_for_accuracy,
)
from routers.category import CategoryRouter
from routers.dataset import TaskData
from routers.intervals import paired_bootstrap
from routers.mapping import fit_mapping
from routers.two_step import TwoStepRouter
from routers.types import GENERAL

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
MIN_COMPLETE = 10
"""So many prompts must have been scored on every expert for routing to be judged."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """`target_accuracy` of the category on the prompts that the router is sure of;
    `outlier_share` of training prompts that the distance test may call unknown."""

    folds: int = 5
    inverse_regularisation: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0)
    target_accuracy: float = 0.95
    outlier_share: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Out-of-fold figures. Scores are means over the prompts that every expert was scored on."""

    n_prompts: int
    n_scored: int
    categories: dict[str, int]
    experts: tuple[str, ...]
    category_accuracy: float
    calibration_error: float
    accepted_share: float
    accepted_accuracy: float
    routed: float | None = None
    best_single: float | None = None
    best_single_expert: str | None = None
    random: float | None = None
    oracle: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _OutOfFold:
    """Logits (n, n_categories) and nearest-anchor similarity (n,) from routers blind to the row."""

    logits: Doubles
    similarity: Doubles


def train_two_step(
    data: TaskData,
    embeddings: Floats,
    options: TrainingOptions | None = None,
    progress: Progress = lambda _: None,
) -> tuple[TwoStepRouter, TrainingReport]:
    """Fit category router and mapping.

    Args:
        data: prompts with categories, and outcomes of some experts on some of them.
        embeddings: (n_prompts, d), unit rows.

    Raises:
        DataError: fewer than two categories with two prompts each, or no outcomes at all.
    """
    options = options or TrainingOptions()
    names, labelled, labels, warnings = _labels(data)
    if not data.experts:
        raise DataError("the data has no outcomes: lines with 'expert' and 'score' are needed")
    x = embeddings[labelled]
    folds = _folds(labels, options)
    progress(f"category router: {len(names)} categories, {len(labels)} prompts")
    strength, oof = _choose_strength(x, labels, len(names), folds, options)
    temperature = fit_temperature(oof.logits, labels)
    probabilities = softmax(oof.logits / temperature)
    correct = probabilities.argmax(axis=1) == labels
    min_similarity = float(np.quantile(oof.similarity, options.outlier_share))
    threshold = threshold_for_accuracy(probabilities.max(axis=1), correct, options.target_accuracy)
    progress("mapping: categories to experts")
    router = TwoStepRouter(
        _category_router(x, labels, names, strength, temperature, threshold, min_similarity),
        fit_mapping(data.scores, data.categories, names, data.experts),
    )
    progress("evaluation: out-of-fold routing")
    if (~np.isnan(data.graded[labelled]).any(axis=1)).sum() < MIN_COMPLETE:
        warnings.append(
            f"no routed score: fewer than {MIN_COMPLETE} prompts were scored on every expert"
        )
    accepted = (probabilities.max(axis=1) >= threshold.value) & (oof.similarity >= min_similarity)
    report = TrainingReport(
        n_prompts=len(data.ids),
        n_scored=int((~np.isnan(data.graded)).any(axis=1).sum()),
        categories={name: int((labels == i).sum()) for i, name in enumerate(names)},
        experts=data.experts,
        category_accuracy=float(correct.mean()),
        calibration_error=expected_calibration_error(probabilities, labels),
        accepted_share=float(accepted.mean()),
        accepted_accuracy=float(correct[accepted].mean()) if accepted.any() else 0.0,
        warnings=tuple(warnings),
        **_routing_figures(data, labelled, names, folds, probabilities, accepted, options.seed),
    )
    return router, report


def _labels(data: TaskData) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Category names, the rows that carry a usable label, and their labels."""
    counts: dict[str, int] = {}
    for category in data.categories:
        if category is not None:
            counts[category] = counts.get(category, 0) + 1
    warnings = [
        f"category '{name}' has a single prompt and is left out"
        for name, n in sorted(counts.items())
        if n < 2
    ]
    if GENERAL in counts:
        warnings.append(f"'{GENERAL}' is where unsure prompts go: as a label it is left out")
    names = sorted(name for name, n in counts.items() if n >= 2 and name != GENERAL)
    if len(names) < 2:
        raise DataError(
            f"two categories with two prompts each are needed, the data has {len(names)}",
            param="category",
        )
    index = {name: i for i, name in enumerate(names)}
    labelled = [i for i, c in enumerate(data.categories) if c in index]
    labels = [index[c] for c in data.categories if c in index]
    return names, np.array(labelled, dtype=np.int64), np.array(labels, dtype=np.int64), warnings


def _folds(labels: NDArray[np.int64], options: TrainingOptions) -> list[NDArray[np.int64]]:
    """Test rows of each fold, stratified by category."""
    n_folds = int(min(options.folds, np.bincount(labels).min()))
    splitter = StratifiedKFold(n_splits=n_folds, shuffle=True, random_state=options.seed)
    return [test for _, test in splitter.split(np.zeros(len(labels)), labels)]


def _fit(x: Floats, labels: NDArray[np.int64], strength: float) -> tuple[Doubles, Doubles]:
    """Coefficients (n_categories, d) and intercepts (n_categories,) of a softmax regression."""
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-6).fit(x, labels)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # scikit-learn keeps one row for two classes; the softmax form needs both.
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    return coefficients, intercepts


def _out_of_fold(
    x: Floats,
    labels: NDArray[np.int64],
    n_categories: int,
    folds: Sequence[NDArray[np.int64]],
    strength: float,
) -> _OutOfFold:
    logits = np.zeros((len(labels), n_categories))
    similarity = np.zeros(len(labels))
    for test in folds:
        train = np.setdiff1d(np.arange(len(labels)), test)
        coefficients, intercepts = _fit(x[train], labels[train], strength)
        logits[test] = x[test] @ coefficients.T + intercepts
        similarity[test] = (x[test] @ x[train].T).max(axis=1)
    return _OutOfFold(logits, similarity)


def _choose_strength(
    x: Floats,
    labels: NDArray[np.int64],
    n_categories: int,
    folds: Sequence[NDArray[np.int64]],
    options: TrainingOptions,
) -> tuple[float, _OutOfFold]:
    """Regularisation with the best out-of-fold log-likelihood after temperature scaling."""
    best: tuple[float, float, _OutOfFold] | None = None
    for strength in options.inverse_regularisation:
        oof = _out_of_fold(x, labels, n_categories, folds, strength)
        p = softmax(oof.logits / fit_temperature(oof.logits, labels))
        loss = float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())
        if best is None or loss < best[0]:
            best = (loss, strength, oof)
    assert best is not None
    return best[1], best[2]


def _category_router(
    x: Floats,
    labels: NDArray[np.int64],
    names: Sequence[str],
    strength: float,
    temperature: float,
    threshold: Threshold,
    min_similarity: float,
) -> CategoryRouter:
    coefficients, intercepts = _fit(x, labels, strength)
    return CategoryRouter(
        categories=tuple(names),
        coefficients=coefficients.astype(np.float32),
        intercepts=intercepts.astype(np.float32),
        temperature=temperature,
        anchors=np.ascontiguousarray(x, dtype=np.float32),
        min_probability=threshold.value,
        min_similarity=min_similarity,
    )


def _routing_figures(
    data: TaskData,
    labelled: NDArray[np.int64],
    names: Sequence[str],
    folds: Sequence[NDArray[np.int64]],
    probabilities: Doubles,
    accepted: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    """Out-of-fold score of routing against best single, random and oracle.

    The best single expert is chosen with hindsight, on the very prompts that it is judged on.
    """
    scores = data.scores[labelled]
    categories = [data.categories[i] for i in labelled]
    complete = ~np.isnan(data.graded[labelled]).any(axis=1)
    if complete.sum() < MIN_COMPLETE:
        return {}
    routed = np.full(len(scores), np.nan)
    for test in folds:
        train = np.setdiff1d(np.arange(len(scores)), test)
        mapping = fit_mapping(scores[train], [categories[i] for i in train], names, data.experts)
        expected = np.where(
            accepted[test, None], probabilities[test] @ mapping.by_category, mapping.overall
        )
        routed[test] = scores[test, expected.argmax(axis=1)]
    routed, scores = routed[complete], scores[complete]
    best = int(scores.mean(axis=0).argmax())
    gain = paired_bootstrap(routed - scores[:, best], seed=seed)
    return {
        "routed": float(routed.mean()),
        "best_single": float(scores[:, best].mean()),
        "best_single_expert": data.experts[best],
        "random": float(scores.mean()),
        "oracle": float(scores.max(axis=1).mean()),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }
