"""Fitting the per-prompt predictors, with out-of-fold predictions for every setting at once.

Ridge solutions of all folds and penalties come from one Gram matrix: that of a fold's training
rows is the whole less that of its test rows. Landmarks, topics and projections are chosen without
labels, so they are shared by the folds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from routers.neighbourhood import Neighbourhood, unit_rows
from routers.predictors import (
    Coefficients,
    Floats,
    KernelPredictor,
    LinearPredictor,
    NeighbourPredictor,
    gaussian,
)

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Folds = Sequence[Indices]

PENALTIES = (5.0, 15.0, 50.0, 150.0)
KERNEL_PENALTIES = (1.0, 3.0, 10.0, 30.0)
GAMMAS = (0.3, 1.0)
NEIGHBOURS = (30, 60, 120, 240)
MAX_LANDMARKS = 512

MAX_ANCHORS = 8192
ANCHOR_DIMENSIONS = 128

MAX_WHOLE = 256
"""With more experts than this, coefficients are factored."""

RANK = 32

PredictorT = TypeVar("PredictorT", covariant=True)


class Family(Protocol[PredictorT]):
    """One kind of predictor over its settings."""

    def out_of_fold(self, folds: Folds) -> Iterator[tuple[str, Floats]]:
        """For every setting, predictions of the folds' rows by models blind to their fold: arrays
        (n, n_experts), NaN for rows in no fold."""

    def fit(self, setting: str) -> PredictorT:
        """Fit one setting on all rows."""


@dataclass(frozen=True, slots=True)
class _Ridge:
    """Ridge solutions for any part of the rows and any penalty, on centred columns."""

    rows: Floats
    scores: Floats

    def out_of_fold(
        self, folds: Folds, penalties: Sequence[float]
    ) -> Iterator[tuple[float, Floats]]:
        whole = _Moments.of(self.rows, self.scores)
        found = {p: np.full(self.scores.shape, np.nan, dtype=np.float32) for p in penalties}
        for test in folds:
            held = _Moments.of(self.rows[test], self.scores[test])
            for penalty, (weights, intercepts) in whole.less(held).solve(penalties):
                found[penalty][test] = self.rows[test] @ weights + intercepts
        yield from found.items()

    def fit(self, penalty: float) -> tuple[Doubles, Doubles]:
        _, solution = next(_Moments.of(self.rows, self.scores).solve((penalty,)))
        return solution


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over rows: all that ridge regression needs of them."""

    n: int
    x: Doubles
    y: Doubles
    xx: Doubles
    xy: Doubles

    @classmethod
    def of(cls, rows: Floats, scores: Floats) -> "_Moments":
        return cls(
            len(rows),
            rows.sum(axis=0, dtype=np.float64),
            scores.sum(axis=0, dtype=np.float64),
            (rows.T @ rows).astype(np.float64),
            (rows.T @ scores).astype(np.float64),
        )

    def less(self, part: "_Moments") -> "_Moments":
        return _Moments(
            self.n - part.n,
            self.x - part.x,
            self.y - part.y,
            self.xx - part.xx,
            self.xy - part.xy,
        )

    def solve(self, penalties: Sequence[float]) -> Iterator[tuple[float, tuple[Doubles, Doubles]]]:
        mean_x, mean_y = self.x / self.n, self.y / self.n
        gram = self.xx - self.n * np.outer(mean_x, mean_x)
        cross = self.xy - self.n * np.outer(mean_x, mean_y)
        values, vectors = np.linalg.eigh(gram)
        rotated = vectors.T @ cross
        for penalty in penalties:
            weights = 1 / (np.maximum(values, 0) + penalty)
            coefficients = vectors @ (rotated * weights[:, None])
            yield penalty, (coefficients, mean_y - mean_x @ coefficients)


def make_neighbourhood(rows: Floats, seed: int, k: int = 1) -> tuple[Neighbourhood, Indices]:
    """The neighbourhood of training prompts, and the rows of its anchors. No label is used."""
    unit = unit_rows(rows)
    _, vectors = np.linalg.eigh((unit.T @ unit).astype(np.float64))
    projection = np.ascontiguousarray(vectors[:, ::-1][:, :ANCHOR_DIMENSIONS], dtype=np.float32)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MAX_ANCHORS])
    return Neighbourhood(np.ascontiguousarray(unit[chosen] @ projection), projection, k), chosen


def _coefficients(weights: Doubles, intercepts: Doubles) -> Coefficients:
    """As single precision, and factored where there are many experts."""
    if weights.shape[1] <= MAX_WHOLE:
        return Coefficients(weights.astype(np.float32), intercepts.astype(np.float32))
    directions = _main_directions(weights @ weights.T)
    return Coefficients(
        np.ascontiguousarray(directions, dtype=np.float32),
        intercepts.astype(np.float32),
        np.ascontiguousarray(directions.T @ weights, dtype=np.float32),
    )


def _main_directions(gram: Doubles) -> Doubles:
    """Eigenvectors of the largest eigenvalues, (n, RANK)."""
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1][:, :RANK])


class LinearFamily:
    """Ridge regression on the features."""

    def __init__(self, features: Floats, scores: Floats) -> None:
        self._ridge = _Ridge(features, scores)

    def out_of_fold(self, folds: Folds) -> Iterator[tuple[str, Floats]]:
        for penalty, found in self._ridge.out_of_fold(folds, PENALTIES):
            yield f"penalty {penalty:g}", found

    def fit(self, setting: str) -> LinearPredictor:
        return LinearPredictor(_coefficients(*self._ridge.fit(float(setting.split()[1]))))


class KernelFamily:
    """Ridge regression on the Gaussian kernel of landmarks, for several widths."""

    def __init__(self, features: Floats, scores: Floats, seed: int) -> None:
        chosen = np.random.default_rng(seed).permutation(len(features))[:MAX_LANDMARKS]
        self._landmarks = np.ascontiguousarray(features[np.sort(chosen)])
        self._features = features
        self._scores = scores

    def out_of_fold(self, folds: Folds) -> Iterator[tuple[str, Floats]]:
        for gamma in GAMMAS:
            rows, _ = self._rows(gamma)
            for penalty, found in _Ridge(rows, self._scores).out_of_fold(folds, KERNEL_PENALTIES):
                yield f"gamma {gamma:g} penalty {penalty:g}", found

    def fit(self, setting: str) -> KernelPredictor:
        _, gamma, _, penalty = setting.split()
        rows, whitening = self._rows(float(gamma))
        weights, intercepts = _Ridge(rows, self._scores).fit(float(penalty))
        return KernelPredictor(
            self._landmarks, float(gamma), _coefficients(whitening @ weights, intercepts)
        )

    def _rows(self, gamma: float) -> tuple[Floats, Doubles]:
        """Nystroem features (n, r), and the whitening (m, r) that makes them of the kernel."""
        inner = gaussian(self._landmarks, self._landmarks, gamma).astype(np.float64)
        values, vectors = np.linalg.eigh(inner)
        kept = values > 1e-5 * max(float(values[-1]), 1e-12)
        whitening = vectors[:, kept] / np.sqrt(values[kept])
        rows = np.empty((len(self._features), whitening.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), 4096):
            part = slice(start, start + 4096)
            rows[part] = gaussian(self._features[part], self._landmarks, gamma) @ whitening
        return rows, whitening


class NeighbourFamily:
    """Nearest neighbours by cosine, for several numbers of them."""

    def __init__(self, features: Floats, scores: Floats, seed: int) -> None:
        self._features = features
        self._scores = scores
        self._neighbourhood, self._anchors = make_neighbourhood(features, seed)

    def out_of_fold(self, folds: Folds) -> Iterator[tuple[str, Floats]]:
        inside = np.zeros(len(self._scores), dtype=bool)
        smallest = len(self._anchors)
        for test in folds:
            inside[test] = True
            smallest = min(smallest, len(self._anchors) - int(inside[self._anchors].sum()))
            inside[test] = False
        counts = [k for k in NEIGHBOURS if k <= smallest // 3] or [max(1, smallest // 3)]
        found = {k: np.full(self._scores.shape, np.nan, dtype=np.float32) for k in counts}
        for test in folds:
            inside[test] = True
            blind = np.flatnonzero(~inside[self._anchors])
            inside[test] = False
            for start in range(0, len(test), 1024):
                rows = test[start : start + 1024]
                cosines = self._neighbourhood.cosines(self._features[rows])[:, blind]
                self._fill(found, rows, cosines, self._anchors[blind])
        for k in counts:
            yield f"k {k}", found[k]

    def _fill(
        self, found: dict[int, Floats], rows: Indices, cosines: Floats, anchors: Indices
    ) -> None:
        most = max(found)
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosines, nearest, axis=1), axis=1, kind="stable")
        nearest = anchors[np.take_along_axis(nearest, order, axis=1)]
        total = np.zeros((len(rows), self._scores.shape[1]))
        start = 0
        for k in sorted(found):
            total += self._scores[nearest[:, start:k]].sum(axis=1, dtype=np.float64)
            found[k][rows] = total / k
            start = k

    def fit(self, setting: str) -> NeighbourPredictor:
        neighbourhood = replace(
            self._neighbourhood, k=min(int(setting.split()[1]), len(self._anchors))
        )
        scores = np.ascontiguousarray(self._scores[self._anchors], dtype=np.float32)
        if scores.shape[1] <= MAX_WHOLE:
            return NeighbourPredictor(neighbourhood, scores)
        directions = _main_directions((scores @ scores.T).astype(np.float64)).astype(np.float32)
        return NeighbourPredictor(neighbourhood, directions, directions.T @ scores)
