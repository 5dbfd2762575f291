"""The reason for a decision, in words."""

from routers.types import DIRECT, Decision


def reason_of(decision: Decision) -> str:
    """One sentence: what the prompt was taken for, and why this expert stands first."""
    scores, best = decision.scores, decision.experts[0]
    if decision.category == DIRECT:
        return f"the request names the expert '{best.id}'"
    if decision.general:
        where = f"unsure of the category: {scores.unsure_because};"
    else:
        where = f"category '{scores.category}' ({scores.category_probability:.2f}), where"
    if decision.kept:
        where = f"the session is with '{best.id}'; {where}"
    text = f"{where} '{best.id}' is expected to score {best.quality:.2f}"
    if len(decision.experts) > 1:
        second = decision.experts[1]
        text += f", next '{second.id}' {second.quality:.2f}"
    ruled_out = decision.ranking.ruled_out
    better = {e: scores.quality[e] for e in ruled_out if scores.quality[e] > best.quality}
    if better:
        expert = max(better, key=lambda e: better[e])
        text += f"; '{expert}' ({better[expert]:.2f}) was ruled out: {ruled_out[expert]}"
    return text
