"""`coe plan`: from an artefact to the planning problem of its experts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from experts.spec import ExpertSpec
from routers.artefact import Artefact
from routers.planning import Candidate, Limits, Plan, Problem
from routers.two_step import TwoStepRouter

Doubles = NDArray[np.float64]

PRICED_TOKENS = (500, 500)
"""Prompt and answer of the request that prices are compared on."""


def problem_of(artefact: Artefact, gpu_params_b: float) -> tuple[Problem, list[str]]:
    """The planning problem, and the experts that are left out because their size is unknown.

    `gpu_params_b` is how many billion parameters one GPU holds.

    Raises:
        DataError: the router keeps no map, or no expert has a known size.
    """
    router = artefact.router
    if not isinstance(router, TwoStepRouter):
        raise DataError("this router keeps no scores by category: there is nothing to plan with")
    specs = {spec.id: spec for spec in artefact.manifest.specs}
    mapping = router.mapping
    columns = [
        j
        for j, expert in enumerate(mapping.experts)
        if expert in specs and (specs[expert].params_b is not None or specs[expert].kind == "null")
    ]
    left_out = [e for j, e in enumerate(mapping.experts) if j not in set(columns)]
    if not columns:
        raise DataError(
            "no expert of this artefact has a known size: train with --experts FILE that gives "
            "'params_b'",
            param="experts",
        )
    candidates = [_candidate(specs[mapping.experts[j]], specs, gpu_params_b) for j in columns]
    bases: dict[str, tuple[float, int]] = {}
    for candidate in candidates:
        if candidate.base is not None:
            size = specs[candidate.base].params_b or 0.0
            bases[candidate.base] = (size, _gpus(size, gpu_params_b))
    shares, scored = _evidence(artefact.manifest.report, mapping.by_category.shape)
    scores = mapping.by_category[:, columns]
    errors = np.sqrt(np.clip(scores * (1 - scores), 0, None) / np.maximum(scored[:, columns], 1))
    problem = Problem(mapping.categories, shares, tuple(candidates), scores, errors, bases)
    return problem, left_out


def default_budgets(problem: Problem) -> list[float]:
    """Budgets at which something can change: sizes of single experts and of all together."""
    alone = {
        c.own_b + (problem.bases[c.base][0] if c.base is not None else 0)
        for c in problem.candidates
    }
    whole = sum(c.own_b for c in problem.candidates) + sum(b[0] for b in problem.bases.values())
    doubled = {2 * size for size in alone if 2 * size < whole}
    return sorted({*alone, *doubled, whole})[:40]


def plan_view(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        "budget_b": plan.limits.params_b,
        "quality": plan.quality,
        "low": plan.low,
        "high": plan.high,
        "params_b": plan.params_b,
        "active_b": plan.active_b,
        "price": plan.price,
        "experts": list(plan.experts),
        "mapping": dict(plan.mapping),
        "worth": dict(plan.worth),
    }


def limits_of(
    gpus: int | None, max_price: float | None, max_experts: int | None, must_have: Sequence[str]
) -> Limits:
    return Limits(None, gpus, max_price, max_experts, frozenset(must_have))


def _candidate(spec: ExpertSpec, specs: Mapping[str, ExpertSpec], gpu_params_b: float) -> Candidate:
    size = spec.params_b or 0.0
    base = spec.base if spec.kind in ("lora", "prompt") and spec.base in specs else None
    if base is None and any(other.base == spec.id for other in specs.values()):
        # A base that answers itself: it is held once, whoever else stands on it.
        base = spec.id
    below = (specs[base].params_b or 0.0) if base is not None else 0.0
    own = max(size - below, 0.0)
    tokens_in, tokens_out = PRICED_TOKENS
    return Candidate(
        id=spec.id,
        own_b=own,
        active_b=size,
        base=base,
        price=(tokens_in * spec.price_in + tokens_out * spec.price_out) / 1e6,
        gpus=0 if base is not None else _gpus(size, gpu_params_b),
    )


def _gpus(params_b: float, gpu_params_b: float) -> int:
    return math.ceil(params_b / gpu_params_b) if params_b > 0 else 0


def _evidence(report: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Doubles, Doubles]:
    """Shares of the categories, and how many outcomes stand behind each cell of the map."""
    evidence = report.get("evidence") or {}
    shares = np.asarray(evidence.get("shares", []), dtype=np.float64)
    scored = np.asarray(evidence.get("scored", []), dtype=np.float64)
    if shares.shape != shape[:1] or scored.shape != shape:
        return np.full(shape[0], 1 / shape[0]), np.ones(shape)
    return shares / max(shares.sum(), 1e-12), scored
