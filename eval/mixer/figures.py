"""Shares and paired intervals, pooled over tasks and prompts."""

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000


Scored = Mapping[str, Sequence[float]]


def averaged(runs: Sequence[Scored]) -> dict[str, list[float]]:
    """Each prompt's mean over runs that differ by their seed."""
    return {
        name: [float(value) for value in np.mean([run[name] for run in runs], axis=0)]
        for name in runs[0]
    }


def interval(first: Scored, second: Scored, seed: int = 0) -> tuple[float, float, float]:
    """Mean difference of two methods on the same prompts and its 95 % interval, by resampling tasks
    and then the prompts of each (a prompt's two outcomes stay together)."""
    rng = np.random.default_rng(seed)
    names = sorted(first)
    differences = [np.asarray(first[name], float) - np.asarray(second[name]) for name in names]
    centre = float(np.mean([d.mean() for d in differences]))
    found = np.empty(RESAMPLES)
    for turn in range(RESAMPLES):
        drawn = rng.integers(0, len(names), len(names))
        means = [rng.choice(differences[task], len(differences[task])).mean() for task in drawn]
        found[turn] = np.mean(means)
    low, high = np.quantile(found, [0.025, 0.975])
    return centre, float(low), float(high)


def mean_score(graded: Scored) -> float:
    """Mean over tasks of the share of right answers."""
    return float(np.mean([np.mean(scores) for scores in graded.values()]))
