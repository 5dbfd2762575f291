"""Calibration of probabilities and the choice of the threshold below which a prompt is unsure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]


def fit_temperature(logits: Doubles, labels: Labels) -> float:
    """Temperature that minimises the negative log-likelihood (Guo et al. 2017), in [0.05, 20].

    `logits` (n, n_categories) must be out-of-fold; `labels` (n,) are column indices.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        log_norm = np.log(np.exp(scaled).sum(axis=1))
        return float((log_norm - scaled[np.arange(len(labels)), labels]).mean())

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(result.x))


def softmax(logits: Doubles) -> Doubles:
    """Row-wise softmax of (n, n_categories)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Doubles = shifted / shifted.sum(axis=1, keepdims=True)
    return normalised


def expected_calibration_error(probabilities: Doubles, labels: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[which == b].mean() - correct[which == b].mean()) * (which == b).mean()
        for b in range(bins)
        if (which == b).any()
    ]
    return float(sum(gaps))


@dataclass(frozen=True, slots=True)
class Threshold:
    """`coverage` is the share of prompts at or above `value`, `accuracy` theirs."""

    value: float
    coverage: float
    accuracy: float


def threshold_for_accuracy(
    confidence: Doubles, correct: NDArray[np.bool_], target: float
) -> Threshold:
    """Lowest threshold whose accepted prompts reach `target` accuracy.

    Where none does, the threshold that accepts the most accurate top tenth, so that the rule stays
    useful, with its true accuracy reported.
    """
    order = np.argsort(-confidence, kind="stable")
    accuracy = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    # Prompts of equal confidence are accepted together.
    ends = np.append(np.diff(confidence[order]) != 0, True)
    reached = np.flatnonzero((accuracy >= target) & ends)
    last = int(reached[-1]) if reached.size else max(len(order) // 10 - 1, 0)
    return Threshold(
        value=float(confidence[order][last]),
        coverage=(last + 1) / len(order),
        accuracy=float(accuracy[last]),
    )
