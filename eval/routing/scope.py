"""Category routing alone: accuracy, calibration, and prompts that belong to no category."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.calibration import expected_calibration_error
from routers.category import CategoryRouter
from routers.two_step import TwoStepRouter
from routers.types import GENERAL

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def scope_figures(
    router: TwoStepRouter,
    embeddings: Floats,
    texts: Sequence[str],
    categories: Sequence[str],
    outside: Floats,
    outside_texts: Sequence[str],
    share: float = 0.18,
) -> dict[str, float]:
    """How well prompts of the categories are told from others, weighted to `share` of others.

    `in_scope_accuracy` is the share of prompts of the categories that are both accepted and put
    into the right one.
    """
    step = router.category_router
    inside_found = [predict(router, e, t) for e, t in zip(embeddings, texts, strict=True)]
    outside_found = [predict(router, e, t) for e, t in zip(outside, outside_texts, strict=True)]
    right = np.array(
        [found.category == c for found, c in zip(inside_found, categories, strict=True)]
    )
    likeliest = np.array(
        [
            step.categories[found.likeliest] == c
            for found, c in zip(inside_found, categories, strict=True)
        ]
    )
    rejected_inside = np.array([found.category == GENERAL for found in inside_found])
    rejected_outside = np.array([found.category == GENERAL for found in outside_found])
    weight = len(inside_found) * share / (1 - share) / max(len(outside_found), 1)
    hits = rejected_outside.sum() * weight
    missed = (~rejected_outside).sum() * weight
    return {
        "auroc": auroc(
            np.array([found.uncertainty for found in inside_found]),
            np.array([found.uncertainty for found in outside_found]),
        ),
        "f1": float(2 * hits / max(2 * hits + missed + rejected_inside.sum(), 1e-12)),
        "in_scope_accuracy": float(right.mean()),
        "accuracy": float(likeliest.mean()),
        "coverage": float(1 - rejected_inside.mean()),
    }


def predict(router: TwoStepRouter, embedding: Floats, text: str) -> Any:
    """The category prediction of one prompt."""
    return router.category_router.predict(embedding, router.features(embedding, text))


def auroc(inside: Doubles, outside: Doubles) -> float:
    """Probability that a prompt from outside is the more uncertain of the two."""
    values = np.concatenate([inside, outside])
    _, rank = np.unique(values, return_inverse=True)
    counts = np.bincount(rank)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    total = mean_rank[rank[len(inside) :]].sum()
    n, m = len(outside), len(inside)
    return float((total - n * (n + 1) / 2) / max(n * m, 1))


def category_figures(
    router: CategoryRouter, features: Floats, categories: Sequence[str]
) -> dict[str, float]:
    """Accuracy and calibration error of the likeliest category."""
    index = {name: i for i, name in enumerate(router.categories)}
    labels = np.array([index.get(category, -1) for category in categories])
    probabilities = router.predict_proba(features).astype(np.float64)
    return {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "calibration_error": expected_calibration_error(probabilities, labels),
    }
