"""Learning from preferences: strengths of experts by the Bradley-Terry model, and scores of them.

On a prompt of category c, expert a is preferred to b with probability sigmoid(t[c, a] - t[c, b])
(Bradley & Terry 1952), where t[c, e] = s[e] + d[c, e]: one strength for all prompts, and the
deviation of the category. Both have a ridge penalty, which is a normal prior; that of the
deviations is chosen on held-out comparisons. So a category with little evidence has nearly the
overall strengths. A tie counts as half a win for each.

A strength becomes a score by score[c, e] = sigmoid(o[c] + t[c, e]). Where no compared expert has
graded outcomes o is 0, and the score is the expected win rate against the average of the pool.
Where some have, o[c] puts the strengths on the scale of their outcomes: in the Rasch model, whose
score is sigmoid(strength - difficulty), the one of two experts that does better is given by
Bradley-Terry with the same strengths (Choppin 1968, Andrich 1978), so that only o is left to learn.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from routers.dataset import Preferences, TaskData

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

RIDGE = 0.5
"""Of the strengths: a prior deviation of 1.4, odds of 4 to 1."""

DEVIATION_RIDGES = (64.0, 16.0, 4.0, 1.0)
DEFAULT_RIDGE = 16.0
FOLDS = 5
MIN_COMPARISONS = 20
"""With fewer, nothing is held out."""

OFFSET_EVIDENCE = 10.0
"""So many outcomes of a category count as much as those of all others for its offset."""


@dataclass(frozen=True, slots=True)
class Strengths:
    """`overall` (n_experts,), `by_category` (n_categories, n_experts); both have mean 0."""

    experts: tuple[str, ...]
    overall: Doubles
    by_category: Doubles

    def of(self, categories: Indices) -> Doubles:
        """Strengths on prompts of these categories, -1 for none: (n, n_experts)."""
        rows = np.concatenate([self.by_category, self.overall[None, :]])
        found: Doubles = rows[categories]
        return found


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """`accuracy` is the share of held-out comparisons whose winner was the expert expected to win
    (None: too few to hold any out); `inferred` names experts that have no graded outcome."""

    n: int
    ties: int
    accuracy: float | None
    anchored: bool
    inferred: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def fit_strengths(
    preferences: Preferences, categories: Indices, n_categories: int, ridge: float = DEFAULT_RIDGE
) -> Strengths:
    """Maximum a posteriori strengths.

    Args:
        categories: category index of each comparison's prompt, -1 where it has none.
        ridge: of the deviations by category.
    """
    n_experts = len(preferences.experts)
    won, lost = preferences.winners, preferences.losers
    target = np.where(preferences.ties, 0.5, 1.0)
    known = categories >= 0
    row = np.where(known, categories, 0)
    penalty = np.concatenate([np.full(n_experts, RIDGE), np.full(n_categories * n_experts, ridge)])

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        s, d = flat[:n_experts], flat[n_experts:].reshape(n_categories, n_experts)
        margin = s[won] - s[lost]
        if n_categories:
            margin = margin + np.where(known, d[row, won] - d[row, lost], 0.0)
        surprise = expit(margin) - target
        cost = target * np.logaddexp(0, -margin) + (1 - target) * np.logaddexp(0, margin)
        gradient = penalty * flat
        gradient[:n_experts] += _sums(won, lost, surprise, n_experts)
        cells = n_experts + row[known] * n_experts
        gradient += _sums(cells + won[known], cells + lost[known], surprise[known], len(flat))
        return float(cost.sum() + 0.5 * (penalty * flat**2).sum()), gradient

    start = np.zeros(n_experts * (1 + n_categories))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    overall = found[:n_experts]
    return Strengths(
        preferences.experts, overall, overall + found[n_experts:].reshape(n_categories, n_experts)
    )


def infer_scores(data: TaskData) -> tuple[TaskData, PreferenceReport]:
    """Give the compared experts expected scores on the prompts that they were compared on, where
    no outcome was graded. They are marked as inferred."""
    preferences = data.preferences
    names = sorted({category for category in data.categories if category is not None})
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([-1 if c is None else index[c] for c in data.categories], dtype=np.int64)
    ridge, accuracy = _choose_ridge(preferences, labels, len(names))
    strengths = fit_strengths(preferences, labels[preferences.prompts], len(names), ridge)
    offsets, anchored = _offsets(data, strengths, labels, len(names))
    experts = tuple(sorted({*data.experts, *preferences.experts}))
    scores = np.full((len(data.ids), len(experts)), np.nan)
    scores[:, [experts.index(expert) for expert in data.experts]] = data.scores
    column = np.array([experts.index(expert) for expert in preferences.experts], dtype=np.int64)
    rows = np.unique(preferences.prompts)
    expected = np.full((len(data.ids), len(experts)), np.nan)
    expected[np.ix_(rows, column)] = expit(offsets[labels[rows], None] + strengths.of(labels[rows]))
    inferred = np.zeros(scores.shape, dtype=np.bool_)
    for side in (preferences.winners, preferences.losers):
        inferred[preferences.prompts, column[side]] = True
    inferred &= np.isnan(scores)
    report = PreferenceReport(
        n=len(preferences),
        ties=int(preferences.ties.sum()),
        accuracy=accuracy,
        anchored=anchored,
        inferred=tuple(e for e in preferences.experts if e not in data.experts),
    )
    scores = np.where(inferred, expected, scores)
    return replace(data, experts=experts, scores=scores, inferred=inferred), report


def _choose_ridge(
    preferences: Preferences, labels: Indices, n_categories: int
) -> tuple[float, float | None]:
    """Ridge of the deviations with the best held-out likelihood, and its held-out accuracy.

    All comparisons of one prompt are held out together.
    """
    if len(preferences) < MIN_COMPARISONS:
        return DEFAULT_RIDGE, None
    generator = np.random.default_rng(0)
    prompts, which = np.unique(preferences.prompts, return_inverse=True)
    fold = (generator.permutation(len(prompts)) % FOLDS)[which]
    categories = labels[preferences.prompts]
    best: tuple[float, float, Doubles] | None = None
    for ridge in DEVIATION_RIDGES:
        margin = np.zeros(len(preferences))
        for k in np.unique(fold):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            fitted = fit_strengths(
                _rows(preferences, train), categories[train], n_categories, ridge
            )
            strengths = fitted.of(categories[test])
            at = np.arange(len(test))
            margin[test] = (
                strengths[at, preferences.winners[test]] - strengths[at, preferences.losers[test]]
            )
        target = np.where(preferences.ties, 0.5, 1.0)
        cost = target * np.logaddexp(0, -margin) + (1 - target) * np.logaddexp(0, margin)
        loss = float(cost.mean())
        if best is None or loss < best[0]:
            best = (loss, ridge, margin)
    assert best is not None
    decided = best[2][~preferences.ties]
    accuracy = float((decided > 0).mean()) if decided.size else None
    return best[1], accuracy


def _rows(preferences: Preferences, rows: Indices) -> Preferences:
    return Preferences(
        preferences.experts,
        preferences.prompts[rows],
        preferences.winners[rows],
        preferences.losers[rows],
        preferences.ties[rows],
    )


def _offsets(
    data: TaskData, strengths: Strengths, labels: Indices, n_categories: int
) -> tuple[Doubles, bool]:
    """From strengths to the scale of the outcomes: (n_categories + 1,), the last one for prompts of
    no category. False: no compared expert has an outcome, the offsets are 0."""
    total = np.zeros(n_categories + 1)
    weight = np.zeros(n_categories + 1)
    groups: Sequence[int] = [*range(n_categories), -1]
    for expert, scores in zip(data.experts, data.graded.T, strict=True):
        if expert not in strengths.experts:
            continue
        j = strengths.experts.index(expert)
        for group in groups:
            found = scores[(labels == group) & ~np.isnan(scores)]
            if found.size:
                mean = (found.sum() + 0.5) / (found.size + 1)
                theta = strengths.of(np.array([group]))[0, j]
                total[group] += found.size * (logit(mean) - theta)
                weight[group] += found.size
    if not weight.any():
        return total, False
    overall = total.sum() / weight.sum()
    offsets: Doubles = (total + OFFSET_EVIDENCE * overall) / (weight + OFFSET_EVIDENCE)
    return offsets, True


def _sums(plus: Indices, minus: Indices, values: Doubles, size: int) -> Doubles:
    """Sums of `values` at the indices `plus` less those at `minus`, (size,)."""
    sums = np.bincount(plus, values, size) - np.bincount(minus, values, size)
    return sums.astype(np.float64)
