"""Measuring methods side by side: the same folds, paired differences, intervals.

The best single expert is told twice: chosen on the training prompts, as one would have to, and
with hindsight on the judged prompts, which is the harder yardstick and the one gains are over.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.routing.methods import Fit
from experts.errors import DataError
from routers.dataset import TaskData
from routers.figures import MIN_COMPLETE
from routers.folds import make_folds
from routers.intervals import Interval, paired_bootstrap
from routers.training import fill_gaps

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

RESAMPLES = 4000
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """`scores` (n,): what the method's choices scored on each prompt, averaged over repeats.

    `gain` is over the best single expert with hindsight, `gain_over_trained` over the one that the
    training prompts show. `decide_ms` per prompt, embedding given.
    """

    name: str
    scores: Doubles
    gain: Interval
    gain_over_trained: Interval
    train_s: float
    decide_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods on one data set, and the marks between which they move."""

    name: str
    n_prompts: int
    experts: tuple[str, ...]
    best_single: str
    best_score: float
    random: float
    category_oracle: float
    prompt_oracle: float
    methods: tuple[Measured, ...]

    def to_dict(self, reference: str) -> dict[str, Any]:
        """As JSON; `behind` is by how much `reference` is ahead of each method, paired."""
        own = next((m for m in self.methods if m.name == reference), None)
        gap = self.prompt_oracle - self.best_score
        return {
            "data": self.name,
            "prompts": self.n_prompts,
            "experts": len(self.experts),
            "best_single": {"expert": self.best_single, "score": self.best_score},
            "random": self.random,
            "category_oracle": self.category_oracle,
            "prompt_oracle": self.prompt_oracle,
            "methods": {
                m.name: {
                    "score": float(m.scores.mean()),
                    "gain": _view(m.gain),
                    "gain_over_trained_best": _view(m.gain_over_trained),
                    "regret": self.prompt_oracle - float(m.scores.mean()),
                    "gap_closed": m.gain.mean / gap if gap > 0 else 0.0,
                    "behind": (
                        _view(paired_bootstrap(own.scores - m.scores, RESAMPLES))
                        if own is not None and own is not m
                        else None
                    ),
                    "train_s": m.train_s,
                    "decide_ms": m.decide_ms,
                }
                for m in self.methods
            },
        }


def compare(
    name: str,
    data: TaskData,
    embeddings: Floats,
    methods: Mapping[str, Fit],
    *,
    folds: int = 5,
    repeats: int = 1,
    size: int | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Cross-validate all methods on the prompts that every expert was graded on.

    With `size`, each method learns from so many prompts of the training folds.

    Raises:
        DataError: too few prompts that every expert was graded on.
    """
    data, embeddings = complete_part(data, embeddings)
    n = len(data.ids)
    rows = np.arange(n)
    names = {category: i for i, category in enumerate(sorted(map(str, set(data.categories))))}
    codes = np.array([names[str(category)] for category in data.categories])
    total = {method: np.zeros(n) for method in methods}
    trained_best = np.zeros(n)
    by_true_category = np.zeros(n)
    train_s = dict.fromkeys(methods, 0.0)
    decide_s = dict.fromkeys(methods, 0.0)
    for repeat in range(repeats):
        parts = make_folds(data.texts, codes, folds, seed + repeat)
        for number, test in enumerate(parts):
            train = np.setdiff1d(rows, test)
            if size is not None:
                draw = np.random.default_rng((seed, repeat, number))
                train = np.sort(draw.permutation(train)[:size])
            known = take(data, train)
            trained_best[test] += data.scores[test, known.scores.mean(axis=0).argmax()]
            by_true_category[test] += _true_category(known, codes[train], codes[test], data, test)
            for method, fit in methods.items():
                start = time.perf_counter()
                policy = fit(known, embeddings[train], seed)
                trained_at = time.perf_counter()
                values = policy(embeddings[test], [data.texts[i] for i in test])
                decide_s[method] += time.perf_counter() - trained_at
                train_s[method] += trained_at - start
                total[method][test] += data.scores[test, values.argmax(axis=1)]
            progress(f"{name}: fold {repeat * len(parts) + number + 1}/{repeats * len(parts)}")
    means = data.scores.mean(axis=0)
    best = int(means.argmax())
    runs = repeats * len(parts)
    return Comparison(
        name=name,
        n_prompts=n,
        experts=data.experts,
        best_single=data.experts[best],
        best_score=float(means[best]),
        random=float(data.scores.mean()),
        category_oracle=float(by_true_category.mean() / repeats),
        prompt_oracle=float(data.scores.max(axis=1).mean()),
        methods=tuple(
            Measured(
                name=method,
                scores=total[method] / repeats,
                gain=paired_bootstrap(total[method] / repeats - data.scores[:, best], RESAMPLES),
                gain_over_trained=paired_bootstrap(
                    (total[method] - trained_best) / repeats, RESAMPLES
                ),
                train_s=train_s[method] / runs,
                decide_ms=1000 * decide_s[method] / (repeats * n),
            )
            for method in methods
        ),
    )


def complete_part(data: TaskData, embeddings: Floats) -> tuple[TaskData, Floats]:
    """The prompts that nearly every expert was graded on, with the few gaps filled.

    Gaps are filled by how hard the prompt was for the others and how good the expert is.
    """
    share = (~np.isnan(data.graded)).mean(axis=1)
    kept = np.flatnonzero(share >= 0.8)
    if len(kept) < MIN_COMPLETE:
        raise DataError(
            f"only {len(kept)} prompts were graded on all experts: {MIN_COMPLETE} are needed"
        )
    part = take(data, kept)
    means = np.nanmean(part.scores, axis=0)
    scores = fill_gaps(part.scores, np.tile(means, (len(kept), 1)))
    return replace(part, scores=scores, inferred=None), embeddings[kept]


def take(data: TaskData, rows: Indices) -> TaskData:
    """The prompts of these rows."""
    return replace(
        data,
        ids=tuple(data.ids[i] for i in rows),
        texts=tuple(data.texts[i] for i in rows),
        categories=tuple(data.categories[i] for i in rows),
        scores=data.scores[rows],
        inferred=None if data.inferred is None else data.inferred[rows],
    )


def _true_category(
    known: TaskData,
    trained: NDArray[np.int64],
    asked: NDArray[np.int64],
    data: TaskData,
    test: Sequence[int] | Indices,
) -> Doubles:
    """Scores of the best expert of the true category, as the training prompts show it."""
    overall = known.scores.mean(axis=0)
    best = {code: int(known.scores[trained == code].mean(axis=0).argmax()) for code in set(trained)}
    chosen = [best.get(code, int(overall.argmax())) for code in asked]
    return np.asarray(data.scores[test, chosen])


def _view(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
