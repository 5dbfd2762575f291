"""Experts and categories that join a trained router, without training the rest anew.

A new expert is described by the old ones: what it is expected to score is a mixture of what they
are expected to, moved by how it did on its own graded prompts, overall and by category. With few
prompts it is an average expert with an offset; the more there are, the more it is itself. A new
category, or more prompts of an old one, are fitted together with the rows that the artefact keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.dataset import TaskData
from routers.kept_rows import keys_of
from routers.mapping import Mapping
from routers.predictors import Coefficients, NeighbourPredictor
from routers.stack import Stack
from routers.training import Progress, TrainingOptions, TrainingReport, fit_on_features
from routers.two_step import TwoStepRouter

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

NOISE = 0.2
"""Variance of one outcome, nearly that of a coin."""

OFFSET_DEVIATION = 0.15
"""How far a new expert is from the mixture of old ones, before anything is known of it."""

MARGIN_ERRORS = 1.0
"""A new expert must be expected to be ahead by so many of its standard errors."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What was learned of a new expert: `mixture` (n_experts,) of the old ones, `offset`, and
    `shifts` (n_categories,); `error` is the standard error of its overall score."""

    id: str
    n: int
    mixture: Doubles
    offset: float
    shifts: Doubles
    error: float


def add_expert(
    router: TwoStepRouter,
    expert: str,
    embeddings: Floats,
    texts: Sequence[str],
    categories: Sequence[str | None],
    scores: Doubles,
) -> tuple[TwoStepRouter, Newcomer]:
    """The router with one more expert, graded on n prompts (`scores` (n,)); n may be 0.

    Raises:
        DataError: the expert is in the router.
    """
    if expert in router.mapping.experts:
        raise DataError(f"expert '{expert}' is in the router already", param="expert")
    newcomer = _learn(router, expert, embeddings, texts, categories, scores)
    mapping = _with_column(router.mapping, newcomer)
    stack = None if router.stack is None else _stack_with(router.stack, newcomer)
    kept = router.kept
    if kept is not None:
        column = np.full((len(kept.scores), 1), np.nan, dtype=np.float32)
        kept = replace(kept, scores=np.concatenate([kept.scores, column], axis=1))
    return replace(router, mapping=mapping, stack=stack, kept=kept), newcomer


def add_prompts(
    router: TwoStepRouter,
    data: TaskData,
    embeddings: Floats,
    options: TrainingOptions | None = None,
    progress: Progress = lambda _: None,
) -> tuple[TwoStepRouter, TrainingReport]:
    """The router fitted on its kept rows and on more prompts, which may be of new categories.

    Outcomes of experts that the router does not have are left out.

    Raises:
        DataError: the artefact keeps no rows.
    """
    kept = router.kept
    if kept is None or router.text_features is None:
        raise DataError("this artefact keeps no training rows: train it anew with more data")
    experts = router.mapping.experts
    column = {name: j for j, name in enumerate(data.experts)}
    fresh = np.full((len(data.ids), len(experts)), np.nan)
    for j, expert in enumerate(experts):
        if expert in column:
            fresh[:, j] = data.scores[:, column[expert]]
    names = router.category_router.categories
    old = [names[code] if code >= 0 else None for code in kept.codes]
    whole = TaskData(
        ids=tuple(map(str, range(len(old) + len(data.ids)))),
        texts=(*kept.keys(), *keys_of(embeddings.astype(np.float16))),
        categories=(*old, *data.categories),
        experts=experts,
        scores=np.concatenate([kept.scores.astype(np.float64), fresh]),
    )
    return fit_on_features(
        whole,
        np.concatenate([kept.embeddings.astype(np.float32), embeddings]),
        np.concatenate([kept.text_rows.astype(np.float32), router.text_features.rows(data.texts)]),
        router.text_features,
        options or TrainingOptions(),
        progress,
        joined=frozenset(c for c in data.categories if c is not None) - frozenset(names),
    )


def _learn(
    router: TwoStepRouter,
    expert: str,
    embeddings: Floats,
    texts: Sequence[str],
    categories: Sequence[str | None],
    scores: Doubles,
) -> Newcomer:
    names = router.category_router.categories
    m, n = len(router.mapping.experts), len(scores)
    even = np.full(m, 1 / m)
    if n == 0:
        error = float(np.sqrt(NOISE / (NOISE / OFFSET_DEVIATION**2)))
        return Newcomer(expert, 0, even, 0.0, np.zeros(len(names)), error)
    features = np.stack(
        [router.features(row, text) for row, text in zip(embeddings, texts, strict=True)]
    )
    probabilities = router.category_router.predict_proba(features).astype(np.float64)
    expected = probabilities @ router.mapping.by_category
    if router.stack is not None:
        shift = router.stack.shift(probabilities)
        expected = router.stack.combined(expected, features, shift)
    # Ridge regression around the even mixture: as sure of it as of one graded prompt an expert.
    centred = expected - expected.mean(axis=0)
    target = scores - scores.mean() - centred @ even
    pull = NOISE * m**2 * np.eye(m)
    mixture = even + np.linalg.solve(centred.T @ centred + pull, centred.T @ target)
    surplus = scores - expected @ mixture
    prior = NOISE / OFFSET_DEVIATION**2
    offset = float(surplus.sum() / (n + prior))
    surplus = surplus - offset
    codes = np.array(
        [
            names.index(category) if category in names else int(row.argmax())
            for category, row in zip(categories, probabilities, strict=True)
        ]
    )
    spread = _interaction(router.mapping.by_category)
    counts = np.bincount(codes, minlength=len(names))
    sums = np.bincount(codes, surplus, minlength=len(names))
    shifts = sums / (counts + NOISE / max(spread, 1e-6))
    error = float(np.sqrt(NOISE / (n + prior)))
    return Newcomer(expert, n, mixture, offset, shifts, error)


def _interaction(table: Doubles) -> float:
    """Variance of what is neither the category's difficulty nor the expert's general skill."""
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float(rest.var())


def _with_column(mapping: Mapping, newcomer: Newcomer) -> Mapping:
    column = mapping.by_category @ newcomer.mixture + newcomer.offset + newcomer.shifts
    overall = float(mapping.overall @ newcomer.mixture) + newcomer.offset
    return Mapping(
        mapping.categories,
        (*mapping.experts, newcomer.id),
        np.column_stack([mapping.by_category, np.clip(column, 0.0, 1.0)]),
        np.append(mapping.overall, min(max(overall, 0.0), 1.0)),
    )


def _stack_with(stack: Stack, newcomer: Newcomer) -> Stack:
    mixture, offset = newcomer.mixture, newcomer.offset
    centre = np.append(stack.centre, stack.centre @ mixture + offset)
    new = len(centre) - 1
    margins = np.full(len(stack.centre), stack.margin) if stack.margins is None else stack.margins
    lead = centre[new] - centre[stack.best]
    shifts = (
        np.zeros((len(newcomer.shifts), len(stack.centre)))
        if stack.shifts is None
        else stack.shifts
    )
    # The map has its share of the shift already.
    rest = (1 - stack.map_weight) * newcomer.shifts
    linear, kernel, neighbours = stack.linear, stack.kernel, stack.neighbours
    if linear is not None:
        linear = replace(linear, coefficients=_wider(linear.coefficients, mixture, offset))
    if kernel is not None:
        kernel = replace(kernel, coefficients=_wider(kernel.coefficients, mixture, offset))
    if neighbours is not None:
        neighbours = _more_neighbours(neighbours, mixture, offset)
    return replace(
        stack,
        centre=centre,
        best=new if lead > newcomer.error else stack.best,
        margins=np.append(margins, MARGIN_ERRORS * newcomer.error),
        shifts=np.column_stack([shifts, rest]),
        linear=linear,
        kernel=kernel,
        neighbours=neighbours,
    )


def _more_neighbours(
    neighbours: NeighbourPredictor, mixture: Doubles, offset: float
) -> NeighbourPredictor:
    if neighbours.spread is not None:
        # An offset is no direction of the factored scores: the column goes without it.
        column = (neighbours.spread @ mixture).astype(np.float32)
        return replace(neighbours, spread=np.column_stack([neighbours.spread, column]))
    column = (neighbours.scores @ mixture + offset).astype(np.float32)
    return replace(neighbours, scores=np.column_stack([neighbours.scores, column]))


def _wider(coefficients: Coefficients, mixture: Doubles, offset: float) -> Coefficients:
    intercepts = np.append(coefficients.intercepts, coefficients.intercepts @ mixture + offset)
    last = coefficients.spread if coefficients.spread is not None else coefficients.weights
    wider = np.column_stack([last, last @ mixture]).astype(np.float32)
    if coefficients.spread is not None:
        return Coefficients(coefficients.weights, intercepts.astype(np.float32), wider)
    return Coefficients(wider, intercepts.astype(np.float32))
