"""Fitting the stack: settings, weights and margin, all from out-of-fold predictions.

What counts is the difference to the best single expert, on the experts that could win: being right
about the others changes no decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from routers.intervals import Interval, paired_bootstrap
from routers.predictor_training import Family, KernelFamily, LinearFamily, NeighbourFamily
from routers.stack import Stack, hold_back

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

IN_REACH = 0.08
"""An expert expected to score this much less than the leader on a prompt could still win it."""

MARGINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
FEW, MANY = 200, 500
CONFIDENCE_OF_FEW, CONFIDENCE = 0.5, 1.65
"""Deviations must pay off by so many standard errors, on `FEW` prompts and on `MANY`."""

PRIOR_DEVIATION = 0.2
"""Of the weights around the category map alone."""

NEVER = 1.0
"""No expert can be expected to be ahead by more: every prompt goes to the best single one."""

MAX_JUDGED = 12_000
MAX_CELLS = 8_000_000


@dataclass(frozen=True, slots=True)
class StackFit:
    """`expected` (n_judged, n_experts): out-of-fold, as served; `gain` over the best single expert
    on those rows, a little optimistic: settings, weights and margin were chosen on them."""

    stack: Stack
    judged: Indices
    expected: Doubles
    gain: Interval
    settings: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        stack = self.stack
        return {
            "weights": {
                "categories": stack.map_weight,
                "linear": stack.linear_weight,
                "kernel": stack.kernel_weight,
                "neighbours": stack.neighbour_weight,
            },
            "settings": self.settings,
            "margin": stack.margin,
        }


def fit_stack(
    features: Floats,
    scores: Doubles,
    complete: NDArray[np.bool_],
    by_category: Doubles,
    folds: Sequence[Indices],
    best: int,
    seed: int = 0,
    codes: Indices | None = None,
    joined: Sequence[int] = (),
) -> StackFit:
    """Fit all predictors, weigh them, and set the margin.

    Args:
        features: (n, d).
        scores: (n, n_experts), without gaps.
        complete: the rows (n,) that every expert was graded on: routing is judged on them alone.
        by_category: what the category map expects of each row, by a map blind to it.
        folds: test rows.
        best: index of the best single expert.
        codes: category indices (n,), of which `joined` are judged by themselves: few prompts of
            new categories would be lost among those of the old ones.
    """
    judged = _judged(complete, scores.shape[1], seed)
    inside = np.zeros(len(scores), dtype=bool)
    inside[judged] = True
    folds = [test[inside[test]] for test in folds]
    folds = [test for test in folds if test.size]
    targets = scores.astype(np.float32)
    families: dict[str, Family[Any]] = {
        "linear": LinearFamily(features, targets),
        "kernel": KernelFamily(features, targets, seed),
        "neighbours": NeighbourFamily(features, targets, seed),
    }
    actual = scores[judged]
    found = {
        name: {setting: values[judged] for setting, values in family.out_of_fold(folds)}
        for name, family in families.items()
    }
    weight = _relevance(
        [by_category[judged]] + [_middle(list(settings.values())) for settings in found.values()],
        best,
    )
    chosen = {
        name: min(settings, key=lambda setting: _error(settings[setting], actual, weight, best))
        for name, settings in found.items()
    }
    parts: list[NDArray[np.floating[Any]]] = [
        by_category[judged],
        *(found[name][chosen[name]] for name in families),
    ]
    centre = scores.mean(axis=0)
    weights = _weights(parts, actual, centre, weight, best)
    total = centre + sum(
        (w * (part - centre) for w, part in zip(weights, parts, strict=True)),
        np.zeros_like(actual),
    )
    margin = choose_margin(total, actual, best)
    by_row: float | Doubles = margin
    category_margins: Doubles | None = None
    if codes is not None and len(joined):
        category_margins = np.full(int(codes.max()) + 1, margin)
        apart = np.isin(codes[judged], joined)
        if apart.any():
            category_margins[list(joined)] = choose_margin(total[apart], actual[apart], best)
        by_row = np.where(codes >= 0, category_margins[codes], margin)[judged][:, None]
    expected = hold_back(total, best, by_row)
    rows = np.arange(len(actual))
    gain = paired_bootstrap(actual[rows, expected.argmax(axis=1)] - actual[:, best], 2000, seed)
    used = dict(zip(families, weights[1:], strict=True))
    # A part without weight is neither fitted nor carried along; nor is any if no prompt deviates.
    kept = {name: w for name, w in used.items() if w > 0}
    fitted = {name: families[name].fit(chosen[name]) for name in kept}
    stack = Stack(
        centre=centre,
        best=best,
        margin=margin,
        map_weight=float(weights[0]),
        category_margins=category_margins,
        linear=fitted.get("linear"),
        linear_weight=float(kept.get("linear", 0.0)),
        kernel=fitted.get("kernel"),
        kernel_weight=float(kept.get("kernel", 0.0)),
        neighbours=fitted.get("neighbours"),
        neighbour_weight=float(kept.get("neighbours", 0.0)),
    )
    return StackFit(stack, judged, expected, gain, chosen)


def choose_margin(expected: Doubles, actual: Doubles, best: int) -> float:
    """The margin whose deviations from the best single expert pay off most, among those that pay
    off significantly; `NEVER` if none does."""
    rows = np.arange(len(actual))
    errors = standard_errors(len(actual))
    found, margin = 0.0, NEVER
    for candidate in MARGINS:
        choice = hold_back(expected, best, candidate).argmax(axis=1)
        gains = actual[rows, choice] - actual[:, best]
        sure = gains.mean() - errors * gains.std() / np.sqrt(len(gains)) > 1e-12
        if sure and gains.mean() > found:
            found, margin = float(gains.mean()), candidate
    return margin


def standard_errors(n: int) -> float:
    """By how many standard errors deviations must pay off on `n` prompts.

    A one-sided test at 5 % where data are plenty. With little data it would never pass, so a lower
    bar is set: what is risked by deviating is then as uncertain as what is gained.
    """
    share = np.log(max(n, 1) / FEW) / np.log(MANY / FEW)
    return float(CONFIDENCE_OF_FEW + (CONFIDENCE - CONFIDENCE_OF_FEW) * np.clip(share, 0, 1))


def _judged(complete: NDArray[np.bool_], n_experts: int, seed: int) -> Indices:
    rows = np.flatnonzero(complete)
    most = max(min(MAX_JUDGED, MAX_CELLS // max(n_experts, 1)), 1)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    return rows


def _middle(arrays: Sequence[Floats]) -> Floats:
    return arrays[len(arrays) // 2]


def _relevance(parts: Sequence[NDArray[np.floating[Any]]], best: int) -> Doubles:
    """How often each expert is in reach of the lead, (n_experts,); 0 for the best single one."""
    shares = [(part >= part.max(axis=1, keepdims=True) - IN_REACH).mean(axis=0) for part in parts]
    weight: Doubles = np.mean(shares, axis=0)
    weight[best] = 0
    return weight


def _ahead(values: NDArray[np.floating[Any]], best: int) -> Doubles:
    return np.asarray(values - values[:, [best]], dtype=np.float64)


def _error(predicted: Floats, actual: Doubles, weight: Doubles, best: int) -> float:
    return float((((_ahead(predicted, best) - _ahead(actual, best)) ** 2) @ weight).mean())


def _weights(
    parts: Sequence[NDArray[np.floating[Any]]],
    actual: Doubles,
    centre: Doubles,
    weight: Doubles,
    best: int,
) -> Doubles:
    mean = centre - centre[best]
    kept = weight > 0
    scale = np.sqrt(weight[kept])
    columns = [((_ahead(part, best) - mean)[:, kept] * scale).ravel() for part in parts]
    target = ((_ahead(actual, best) - mean)[:, kept] * scale).ravel()
    if not target.size:
        return np.zeros(len(parts))
    matrix = np.stack(columns, axis=1)
    # Little evidence leaves the weights near the category map alone: a normal prior around it. The
    # normal equations have the same solution and the size of the number of parts.
    prior = np.zeros(len(parts))
    prior[0] = 1.0
    noise = float(((target - matrix @ prior) ** 2).mean())
    pull = max(noise, 1e-9) / PRIOR_DEVIATION**2
    gram = matrix.T @ matrix + pull * np.eye(len(parts))
    factor = np.linalg.cholesky(gram)
    solution, _ = nnls(factor.T, np.linalg.solve(factor, matrix.T @ target + pull * prior))
    weights: Doubles = solution
    return weights
