"""Training a router from labelled task data, and the honest account of how good it is.

Two methods. `two-step` is Composition of Experts: category router, then the category map. `auto`
looks at the text beside the embedding and stacks per-prompt predictors on the map, each weighed by
what it was worth out-of-fold; where nothing beats the best single expert, every prompt goes there.

Every figure of the report is out-of-fold: a prompt is judged by a router whose weights and mapping
have not seen it. A few settings (regularisation, temperature, thresholds, the stack's weights and
margin) are chosen on these same predictions; `coe eval` measures without that.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.calibration import expected_calibration_error
from routers.category_training import CategoryFit, fit_category_router
from routers.dataset import TaskData
from routers.discovery import find_categories, grow_labels
from routers.figures import MIN_COMPLETE, ragged_figures, ragged_warning, routing_figures
from routers.folds import make_folds
from routers.kept_rows import keep_rows
from routers.mapping import fit_mapping
from routers.stack_training import StackFit, fit_stack
from routers.text_features import TextFeatures
from routers.text_training import fit_text_features
from routers.two_step import TwoStepRouter
from routers.types import GENERAL

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
MIN_PROMPTS = 4
FEW = 400
"""With fewer prompts than this, twice as many folds leave more to learn from."""

Progress = Callable[[str], None]
Method = Literal["auto", "two-step"]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """`target_accuracy` of the category on the prompts that the router is sure of;
    `outlier_share` of training prompts that the distance test may call unknown; `grow` spreads
    labels to unlabelled prompts that are clearly alike."""

    method: Method = "auto"
    folds: int = 5
    target_accuracy: float = 0.95
    outlier_share: float = 0.025
    grow: bool = False
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
    method: str = "two-step"
    category_model: str = ""
    category_losses: dict[str, float] = field(default_factory=dict)
    stack: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Labels:
    """`names` of the categories, the category index of every prompt (-1: none), warnings."""

    names: tuple[str, ...]
    codes: Indices
    warnings: list[str]


def train_router(
    data: TaskData,
    embeddings: Floats,
    options: TrainingOptions | None = None,
    progress: Progress = lambda _: None,
) -> tuple[TwoStepRouter, TrainingReport]:
    """Fit a router.

    Args:
        data: prompts, with categories and outcomes of some experts on some of them.
        embeddings: (n_prompts, d), unit rows.

    Raises:
        DataError: no outcomes at all, too few prompts, or embeddings that are no numbers; for
            `two-step`, fewer than two categories with two prompts each.
    """
    options = options or TrainingOptions()
    _check(data, embeddings)
    text_features, rows = None, np.zeros((len(data.texts), 0), dtype=np.float32)
    if options.method == "auto":
        progress(f"text features of {len(data.texts)} prompts")
        text_features, rows = fit_text_features(data.texts, options.seed)
    return fit_on_features(data, embeddings, rows, text_features, options, progress)


def fit_on_features(
    data: TaskData,
    embeddings: Floats,
    text_rows: Floats,
    text_features: TextFeatures | None,
    options: TrainingOptions,
    progress: Progress = lambda _: None,
    joined: frozenset[str] = frozenset(),
) -> tuple[TwoStepRouter, TrainingReport]:
    """`train_router` from where `text_rows` (n_prompts, t) are known; the texts of `data` only say
    which prompts are equal. `joined` are categories that are judged by themselves."""
    auto = text_features is not None
    features = np.hstack([embeddings, text_rows])
    labels = _labels(data, features, options)
    n_folds = options.folds * (2 if len(data.texts) < FEW else 1)
    folds = make_folds(data.texts, labels.codes, n_folds, options.seed)
    known = np.flatnonzero(labels.codes >= 0)
    progress(f"category router: {len(labels.names)} categories, {len(known)} prompts")
    fit = fit_category_router(
        features[known],
        embeddings[known],
        labels.codes[known],
        labels.names,
        _inside(folds, known, len(features)),
        target_accuracy=options.target_accuracy,
        outlier_share=options.outlier_share,
        seed=options.seed,
    )
    progress("mapping: categories to experts")
    mapping = fit_mapping(data.scores, _named(labels), labels.names, data.experts)
    probabilities = fit.router.predict_proba(features).astype(np.float64)
    probabilities[known] = fit.probabilities
    by_category = _blind_map(data, labels, probabilities, folds)
    complete = np.asarray(~np.isnan(data.graded).any(axis=1))
    warnings = list(labels.warnings)
    stacked: StackFit | None = None
    if complete.sum() < MIN_COMPLETE:
        warnings.append(ragged_warning(data.graded))
    elif auto:
        progress("per-prompt predictors")
        stacked = fit_stack(
            features,
            fill_gaps(data.scores, by_category),
            complete,
            by_category,
            folds,
            int(mapping.overall.argmax()),
            options.seed,
            labels.codes,
            [i for i, name in enumerate(labels.names) if name in joined],
        )
    router = TwoStepRouter(
        fit.router,
        mapping,
        text_features,
        stacked.stack if stacked is not None else None,
        keep_rows(embeddings, text_rows, labels.codes, data.graded, options.seed) if auto else None,
    )
    progress("evaluation: out-of-fold routing")
    report = _report(
        data,
        labels,
        fit,
        known,
        options,
        stacked,
        by_category,
        np.asarray(mapping.overall, dtype=np.float64),
        complete,
        warnings,
    )
    return router, report


def train_two_step(
    data: TaskData,
    embeddings: Floats,
    options: TrainingOptions | None = None,
    progress: Progress = lambda _: None,
) -> tuple[TwoStepRouter, TrainingReport]:
    """`train_router` with the method `two-step`."""
    options = replace(options or TrainingOptions(), method="two-step")
    return train_router(data, embeddings, options, progress)


def fill_gaps(scores: Doubles, by_category: Doubles) -> Doubles:
    """Scores with every missing one as expected: by the category map, and how much better or worse
    than that the prompt went for the experts that did answer it."""
    known = ~np.isnan(scores)
    if known.all():
        return scores
    surplus = np.where(known, scores - by_category, 0.0).sum(axis=1) / (known.sum(axis=1) + 1)
    return np.where(known, scores, np.clip(by_category + surplus[:, None], 0.0, 1.0))


def _check(data: TaskData, embeddings: Floats) -> None:
    if not data.experts:
        raise DataError("the data has no outcomes: lines with 'expert' and 'score' are needed")
    if len(data.texts) < MIN_PROMPTS:
        raise DataError(
            f"{MIN_PROMPTS} prompts are needed at least, the data has {len(data.texts)}"
        )
    if not np.isfinite(embeddings).all():
        raise DataError("an embedding is not a number: the encoder is damaged")


def _labels(data: TaskData, features: Floats, options: TrainingOptions) -> _Labels:
    """Category names and codes: given, grown, or found where the data has none."""
    categories: list[str | None] = list(data.categories)
    warnings: list[str] = []
    auto = options.method == "auto"
    if auto and options.grow:
        categories = grow_labels(features, categories)
        grown = data.categories.count(None) - categories.count(None)
        warnings.append(f"{grown} unlabelled prompts have the category of those they are like")
    counts: dict[str, int] = {}
    for category in categories:
        if category is not None:
            counts[category] = counts.get(category, 0) + 1
    warnings += [
        f"category '{name}' has a single prompt and is left out"
        for name, n in sorted(counts.items())
        if n < 2
    ]
    if GENERAL in counts:
        warnings.append(f"'{GENERAL}' is where unsure prompts go: as a label it is left out")
    names = sorted(name for name, n in counts.items() if n >= 2 and name != GENERAL)
    if not names and auto:
        categories = list(find_categories(features, options.seed))
        names = sorted({c for c in categories if c is not None})
        warnings.append(f"no prompt has a category: {len(names)} were found as clusters")
    if len(names) < (1 if auto else 2):
        raise DataError(
            f"two categories with two prompts each are needed, the data has {len(names)}",
            param="category",
        )
    index = {name: i for i, name in enumerate(names)}
    codes = np.array([index.get(c, -1) if c is not None else -1 for c in categories])
    return _Labels(tuple(names), codes.astype(np.int64), warnings)


def _named(labels: _Labels) -> list[str | None]:
    return [labels.names[code] if code >= 0 else None for code in labels.codes]


def _inside(folds: Sequence[Indices], rows: Indices, n: int) -> list[Indices]:
    """The folds of `rows` (of n), as positions in it."""
    position = np.full(n, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    found = [position[test] for test in folds]
    return [test[test >= 0] for test in found if (test >= 0).any()]


def _blind_map(
    data: TaskData, labels: _Labels, probabilities: Doubles, folds: Sequence[Indices]
) -> Doubles:
    """What the category map expects of each prompt when it has not seen its scores."""
    named = _named(labels)
    found = np.zeros(data.scores.shape)
    rows = np.arange(len(named))
    for test in folds:
        train = np.setdiff1d(rows, test)
        mapping = fit_mapping(
            data.scores[train], [named[i] for i in train], labels.names, data.experts
        )
        found[test] = probabilities[test] @ mapping.by_category
    return found


def _report(
    data: TaskData,
    labels: _Labels,
    fit: CategoryFit,
    known: Indices,
    options: TrainingOptions,
    stacked: StackFit | None,
    by_category: Doubles,
    overall: Doubles,
    complete: NDArray[np.bool_],
    warnings: list[str],
) -> TrainingReport:
    codes = labels.codes[known]
    correct = fit.probabilities.argmax(axis=1) == codes
    certain = fit.probabilities.max(axis=1) >= fit.router.min_probability
    accepted = certain & (fit.familiarity >= fit.router.min_familiarity)
    return TrainingReport(
        n_prompts=len(data.ids),
        n_scored=int((~np.isnan(data.graded)).any(axis=1).sum()),
        categories={name: int((codes == i).sum()) for i, name in enumerate(labels.names)},
        experts=data.experts,
        category_accuracy=float(correct.mean()),
        calibration_error=expected_calibration_error(fit.probabilities, codes),
        accepted_share=float(accepted.mean()),
        accepted_accuracy=float(correct[accepted].mean()) if accepted.any() else 0.0,
        method=options.method,
        category_model=fit.chosen,
        category_losses=fit.losses,
        stack=stacked.to_dict() if stacked is not None else {},
        evidence=_evidence(data, labels),
        warnings=tuple(warnings),
        **(
            ragged_figures(data, overall, by_category, options.seed)
            if complete.sum() < MIN_COMPLETE
            else routing_figures(data, stacked, by_category, complete, options.seed)
        ),
    )


def _evidence(data: TaskData, labels: _Labels) -> dict[str, Any]:
    """Shares of the categories, and how many outcomes of each expert each of them has."""
    members = labels.codes[None, :] == np.arange(len(labels.names))[:, None]
    graded = ~np.isnan(data.graded)
    return {
        "shares": (members.sum(axis=1) / max(int(members.sum()), 1)).tolist(),
        "scored": (members.astype(np.int64) @ graded.astype(np.int64)).tolist(),
    }
