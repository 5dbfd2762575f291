"""How good routing is: its score beside the best single expert, random choice and the oracle."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.dataset import TaskData
from routers.intervals import paired_bootstrap
from routers.stack_training import StackFit

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

MIN_COMPLETE = 10
"""So many prompts must have been scored on every expert for routing to be judged on all of them."""


def routing_figures(
    data: TaskData,
    stacked: StackFit | None,
    by_category: Doubles,
    complete: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    """Out-of-fold score of routing against best single, random and oracle.

    The best single expert is chosen with hindsight, on the very prompts that it is judged on.
    """
    judged = np.flatnonzero(complete) if stacked is None else stacked.judged
    expected = by_category[judged] if stacked is None else stacked.expected
    scores = data.scores[judged]
    best = int(scores.mean(axis=0).argmax())
    return _figures(scores, expected, np.full(len(scores), best), data.experts[best], seed)


def _compared(graded: Doubles) -> Indices:
    """The prompts that two experts or more were graded on."""
    return np.flatnonzero((~np.isnan(graded)).sum(axis=1) >= 2)


def ragged_warning(graded: Doubles) -> str:
    reason = f"fewer than {MIN_COMPLETE} prompts were scored on every expert"
    n = len(_compared(graded))
    if n < MIN_COMPLETE:
        return f"no routed score: {reason}, and fewer on two or more"
    return f"{reason}: each of {n} prompts is judged among the experts that were scored on it"


def ragged_figures(
    data: TaskData, overall: Doubles, by_category: Doubles, seed: int
) -> dict[str, Any]:
    """The same where outcomes are missing: each prompt is judged among the experts graded on it.

    The best single expert is the first of them in the order of `overall` (n_experts,), what is
    expected of each over all prompts.
    """
    judged = _compared(data.graded)
    if len(judged) < MIN_COMPLETE:
        return {}
    scores = data.graded[judged]
    missing = np.isnan(scores)
    expected = np.where(missing, -np.inf, by_category[judged])
    single = np.where(missing, -np.inf, overall[None, :]).argmax(axis=1)
    return _figures(scores, expected, single, data.experts[int(overall.argmax())], seed)


def _figures(
    scores: Doubles, expected: Doubles, single: Indices, name: str, seed: int
) -> dict[str, Any]:
    """Figures of choosing by `expected` instead of the experts `single` (n,); NaN is not graded."""
    rows = np.arange(len(scores))
    routed, alone = scores[rows, expected.argmax(axis=1)], scores[rows, single]
    gain = paired_bootstrap(routed - alone, resamples=2000, seed=seed)
    return {
        "routed": float(routed.mean()),
        "best_single": float(alone.mean()),
        "best_single_expert": name,
        "random": float(np.nanmean(scores, axis=1).mean()),
        "oracle": float(np.nanmax(scores, axis=1).mean()),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }
