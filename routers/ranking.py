"""From scores to a ranking: who is eligible, then the policy, then load as the tie-break.

Done after the decision cache, so that a cached score can never bypass a need or a permission.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from experts.errors import ExpertUnavailable, NoEligibleExpert
from experts.spec import ExpertSpec
from routers.types import Needs, Policy, RankedExpert, Ranking, RouteQuery

TIE = 1e-9
"""Utilities closer than this are a tie, which the cheaper and less loaded expert wins."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known of the experts at this moment.

    `unavailable` (id -> reason), `latency_ms` (id -> recent time to first token), `load`
    (id -> requests in flight).
    """

    unavailable: Mapping[str, str] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    load: Mapping[str, int] = field(default_factory=dict)


def rank(
    quality: Mapping[str, float],
    experts: Mapping[str, ExpertSpec],
    query: RouteQuery,
    conditions: Conditions,
    default_weight: float = 1.0,
) -> Ranking:
    """Rank the experts that `quality` names for `query`.

    `default_weight` is the weight of quality for a request that does not set its own.

    A `null` expert takes part only where no other expert of the composition is expected to do
    better: a canned text answers the prompts it was made for, and is no fallback for the others.

    Raises:
        ExpertUnavailable: nobody is left, and someone was ruled out for being unavailable.
        NoEligibleExpert: nobody is left; says by which need each was ruled out.
    """
    ruled_out: dict[str, str] = {}
    eligible: list[ExpertSpec] = []
    canned: list[ExpertSpec] = []
    best_answer = 0.0
    for expert_id, expected in quality.items():
        spec = experts.get(expert_id)
        if spec is None:
            ruled_out[expert_id] = "not registered"
            continue
        if spec.kind == "null":
            canned.append(spec)
        elif expected > best_answer:
            best_answer = expected
        if reason := why_not(spec, query.needs, query.policy, conditions):
            ruled_out[expert_id] = reason
        else:
            eligible.append(spec)
    for loser in [spec.id for spec in canned if quality[spec.id] < best_answer]:
        eligible = [spec for spec in eligible if spec.id != loser]
        ruled_out[loser] = "a canned answer is no fallback"
    if not eligible:
        _refuse(ruled_out, conditions)
    own = query.policy.quality_weight
    weight = default_weight if own is None else own
    costs = _costs(eligible)
    load = conditions.load
    candidates = []
    for spec, cost in zip(eligible, costs, strict=True):
        expected = quality[spec.id]
        utility = weight * expected - (1 - weight) * cost
        place = (-round(utility / TIE), cost, load.get(spec.id, 0), spec.id)
        candidates.append((place, RankedExpert(spec.id, expected, utility)))
    candidates.sort()
    return Ranking(tuple([candidate for _, candidate in candidates]), ruled_out)


def stay(ranking: Ranking, expert: str | None, switch_gain: float) -> Ranking:
    """The ranking with the session's expert first, the others behind it as they were.

    The ranking itself comes back where that expert stands first already, is no candidate, or is
    expected to score more than `switch_gain` below the best.
    """
    best = ranking.experts[0]
    own = next((c for c in ranking.experts if c.id == expert), best)
    if own is best or best.quality - own.quality > switch_gain:
        return ranking
    others = tuple(candidate for candidate in ranking.experts if candidate is not own)
    return Ranking((own, *others), ranking.ruled_out)


def _refuse(ruled_out: Mapping[str, str], conditions: Conditions) -> NoReturn:
    reasons = "; ".join(f"{expert}: {reason}" for expert, reason in ruled_out.items())
    if any(conditions.unavailable.get(e) == reason for e, reason in ruled_out.items()):
        raise ExpertUnavailable(f"no expert is available for this request now ({reasons})")
    raise NoEligibleExpert(f"no expert can answer this request ({reasons})", ruled_out)


def why_not(spec: ExpertSpec, needs: Needs, policy: Policy, conditions: Conditions) -> str | None:
    """The first need or limit that rules an expert out, in words; None if it is eligible.

    Being away comes last, so that it is the reason only of an expert that could answer otherwise.
    """
    if policy.experts is not None and spec.id not in policy.experts:
        return "not among the experts that the request allows"
    if spec.kind == "null":
        return "a canned text makes no embeddings" if needs.interface == "embeddings" else None
    return (
        _unmet_need(spec, needs)
        or (None if policy.is_free else _over_limit(spec, needs, policy, conditions))
        or conditions.unavailable.get(spec.id)
    )


def _unmet_need(spec: ExpertSpec, needs: Needs) -> str | None:
    if needs.context_tokens > spec.context_length:
        return (
            f"the prompt has at least {needs.context_tokens} tokens, "
            f"its context holds {spec.context_length}"
        )
    if needs.capabilities and not needs.capabilities <= spec.capabilities:
        return f"it lacks: {', '.join(sorted(needs.capabilities - spec.capabilities))}"
    if needs.interface == "chat":
        return None
    if spec.kind == "prompt":
        return f"a request for {needs.interface} has no place for its system prompt"
    if needs.prompts > 1 and "n" not in spec.capabilities:
        return "it takes one prompt a request"
    return None


def _over_limit(
    spec: ExpertSpec, needs: Needs, policy: Policy, conditions: Conditions
) -> str | None:
    if policy.max_params_b is not None and (
        spec.params_b is None or spec.params_b > policy.max_params_b
    ):
        size = "unknown" if spec.params_b is None else f"{spec.params_b:g}"
        return f"its size ({size} B) is over max_params_b {policy.max_params_b:g}"
    if policy.max_price is not None and request_price(spec, needs) > policy.max_price:
        return f"its price for this request is over max_price {policy.max_price:g}"
    latency, limit = conditions.latency_ms.get(spec.id), policy.max_latency_ms
    if limit is not None and latency is not None and latency > limit:
        return f"its first token takes {latency:.0f} ms, over max_latency_ms {limit:g}"
    return None


def request_price(spec: ExpertSpec, needs: Needs) -> float:
    """Price of a request in USD, from the prompt's length and the answer's allowed length.

    An answer of unstated length is taken to fill what the context leaves, 4,096 tokens at most.
    """
    room = max(spec.context_length - needs.context_tokens, 0)
    output = min(needs.output_tokens if needs.output_tokens is not None else 4096, room)
    return (needs.context_tokens * spec.price_in + output * spec.price_out) / 1e6


def _costs(specs: Sequence[ExpertSpec]) -> list[float]:
    """Cost of each expert as a share of the dearest: by output price, else by parameters."""
    raw = [spec.price_out for spec in specs]
    dearest = max(raw)
    if dearest == 0:
        raw = [spec.params_b or 0.0 for spec in specs]
        dearest = max(raw) or 1.0
    return [cost / dearest for cost in raw]
