"""A decision as JSON: the same object wherever it is shown."""

from typing import Any

from routers.explain import reason_of
from routers.types import Decision


def decision_view(decision: Decision, *, explain: bool) -> dict[str, Any]:
    """The decision; with `explain`, every score and who was ruled out and why."""
    view: dict[str, Any] = {
        "id": decision.id,
        "object": "composer.decision",
        "composition": decision.composition,
        "version": decision.version,
        "expert": decision.expert,
        "category": decision.category,
        "category_probability": round(decision.scores.category_probability, 4),
        "uncertainty": round(decision.scores.uncertainty, 4),
        "general": decision.general,
        "reason": reason_of(decision),
        "cache": decision.cache,
        "route_ms": round(decision.route_ms, 3),
        "queue_ms": round(decision.queue_ms, 3),
        "saved_ms": round(decision.saved_ms, 3),
        "kept": decision.kept,
        "ranking": [candidate.id for candidate in decision.experts],
    }
    if explain:
        view["scores"] = {
            candidate.id: {
                "quality": round(candidate.quality, 4),
                "utility": round(candidate.utility, 4),
            }
            for candidate in decision.experts
        }
        view["ruled_out"] = dict(decision.ranking.ruled_out)
        view["probabilities"] = {
            category: round(probability, 4)
            for category, probability in sorted(
                decision.scores.probabilities.items(), key=lambda item: -item[1]
            )
        }
        view["encoder"] = decision.encoder
    return view
