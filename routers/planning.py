"""Which experts a deployment should hold: the mixed-integer program of Composition of Experts.

Every category gets one expert among those selected; the selected ones and the bases that they stand
on must fit the budget, where a base that several experts share counts once (facility location with
a knapsack). Solved by HiGHS through scipy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError

Doubles = NDArray[np.float64]

TIME_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One expert to choose from.

    `own_b` are the parameters (billions) that it adds to its base, or has if it stands alone;
    `active_b` those that work on a request. `price` in USD per request, `gpus` that it needs
    besides its base.
    """

    id: str
    own_b: float
    active_b: float
    base: str | None = None
    price: float = 0.0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment has. None is no limit; `max_price` is of the mean request."""

    params_b: float | None = None
    gpus: int | None = None
    max_price: float | None = None
    max_experts: int | None = None
    must_have: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """`quality` is the expected score, `low` and `high` its 95 % interval; `active_b` the mean
    parameters at work on a request; `mapping` says who answers which category; `worth` what the
    plan would lose without each expert (None: no plan is possible without it)."""

    limits: Limits
    quality: float
    low: float
    high: float
    params_b: float
    active_b: float
    price: float
    experts: tuple[str, ...]
    mapping: Mapping[str, str]
    worth: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is planned for.

    `scores` (n_categories, n_candidates) are expected scores and `errors` their standard errors,
    `shares` (n_categories,) those of the categories among all prompts. `bases` maps a base's id to
    its parameters and its GPUs.
    """

    categories: tuple[str, ...]
    shares: Doubles
    candidates: tuple[Candidate, ...]
    scores: Doubles
    errors: Doubles
    bases: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def solve(problem: Problem, limits: Limits, with_worth: bool = False) -> Plan | None:
    """The best plan within the limits; None if there is none.

    Raises:
        DataError: a must-have expert is no candidate, or the solver gives up.
    """
    known = {candidate.id for candidate in problem.candidates}
    if missing := limits.must_have - known:
        raise DataError(
            f"must-have experts that can't be planned: {', '.join(sorted(missing))}",
            param="must_have",
        )
    chosen = _solve(problem, limits, frozenset())
    if chosen is None:
        return None
    worth: dict[str, float | None] = {}
    if with_worth:
        quality = _quality(problem, chosen)
        for column in sorted(set(chosen)):
            expert = problem.candidates[column].id
            without = None
            if expert not in limits.must_have:
                without = _solve(problem, limits, frozenset((column,)))
            worth[expert] = None if without is None else quality - _quality(problem, without)
    return _plan(problem, limits, chosen, worth)


def frontier(problem: Problem, budgets: Sequence[float], limits: Limits) -> list[Plan]:
    """The best plan of each parameter budget that allows one, with what each expert is worth."""
    found = []
    for budget in sorted(budgets):
        plan = solve(
            problem,
            Limits(budget, limits.gpus, limits.max_price, limits.max_experts, limits.must_have),
            with_worth=True,
        )
        if plan is not None:
            found.append(plan)
    return found


def _quality(problem: Problem, chosen: Sequence[int]) -> float:
    rows = np.arange(len(problem.categories))
    return float(problem.shares @ problem.scores[rows, list(chosen)])


def _plan(
    problem: Problem, limits: Limits, chosen: Sequence[int], worth: Mapping[str, float | None]
) -> Plan:
    rows, columns = np.arange(len(problem.categories)), list(chosen)
    picked = [problem.candidates[column] for column in columns]
    quality = _quality(problem, chosen)
    error = float(np.sqrt(problem.shares**2 @ problem.errors[rows, columns] ** 2))
    kept = {candidate.id for candidate in picked} | limits.must_have
    held = [candidate for candidate in problem.candidates if candidate.id in kept]
    bases = {candidate.base for candidate in held if candidate.base is not None}
    return Plan(
        limits=limits,
        quality=quality,
        low=quality - 1.96 * error,
        high=quality + 1.96 * error,
        params_b=sum(c.own_b for c in held) + sum(problem.bases[base][0] for base in bases),
        active_b=float(problem.shares @ np.array([c.active_b for c in picked])),
        price=float(problem.shares @ np.array([c.price for c in picked])),
        experts=tuple(candidate.id for candidate in held),
        mapping={
            category: candidate.id
            for category, candidate in zip(problem.categories, picked, strict=True)
        },
        worth=dict(worth),
    )


def _solve(problem: Problem, limits: Limits, banned: frozenset[int]) -> list[int] | None:
    """The candidate of each category, or None if the limits allow no plan."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    c, m = problem.scores.shape
    bases = sorted(problem.bases)
    n_x, n = c * m, c * m + m + len(bases)
    rows: list[dict[int, float]] = []
    low: list[float] = []
    high: list[float] = []

    def constrain(entries: dict[int, float], least: float, most: float) -> None:
        rows.append(entries)
        low.append(least)
        high.append(most)

    for i in range(c):
        constrain({i * m + j: 1.0 for j in range(m)}, 1, 1)
        for j in range(m):
            constrain({i * m + j: 1.0, n_x + j: -1.0}, -np.inf, 0)
    held = {base: n_x + m + k for k, base in enumerate(bases)}
    for j, candidate in enumerate(problem.candidates):
        if candidate.base is not None:
            constrain({n_x + j: 1.0, held[candidate.base]: -1.0}, -np.inf, 0)
    if limits.params_b is not None:
        own = {n_x + j: candidate.own_b for j, candidate in enumerate(problem.candidates)}
        shared = {held[base]: problem.bases[base][0] for base in bases}
        constrain(own | shared, 0, limits.params_b)
    if limits.gpus is not None:
        own = {n_x + j: float(candidate.gpus) for j, candidate in enumerate(problem.candidates)}
        shared = {held[base]: float(problem.bases[base][1]) for base in bases}
        constrain(own | shared, 0, limits.gpus)
    if limits.max_experts is not None:
        constrain({n_x + j: 1.0 for j in range(m)}, 0, limits.max_experts)
    if limits.max_price is not None:
        prices = {
            i * m + j: float(problem.shares[i] * candidate.price)
            for i in range(c)
            for j, candidate in enumerate(problem.candidates)
        }
        constrain(prices, 0, limits.max_price)
    least, most = np.zeros(n), np.ones(n)
    for j, candidate in enumerate(problem.candidates):
        if candidate.id in limits.must_have:
            least[n_x + j] = 1
        if j in banned:
            most[n_x + j] = 0
    objective = np.zeros(n)
    objective[:n_x] = -(problem.shares[:, None] * problem.scores).ravel()
    matrix = csr_matrix(
        (
            [value for row in rows for value in row.values()],
            (
                [i for i, row in enumerate(rows) for _ in row],
                [column for row in rows for column in row],
            ),
        ),
        shape=(len(rows), n),
    )
    found = milp(
        objective,
        constraints=LinearConstraint(matrix, low, high),
        integrality=np.concatenate([np.ones(n_x), np.ones(n - n_x)]),
        bounds=Bounds(least, most),
        options={"time_limit": TIME_LIMIT_S, "mip_rel_gap": 1e-9},
    )
    if found.status == 2:
        return None
    if found.x is None:
        raise DataError(f"no plan within {TIME_LIMIT_S:.0f} s: {found.message}")
    return [int(row.argmax()) for row in found.x[:n_x].reshape(c, m)]
