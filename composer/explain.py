"""The reason for a decision, in words."""

from routers.types import GENERAL, Ranking, Scores


def explain(scores: Scores, ranking: Ranking) -> str:
    """One sentence: what the prompt was taken for, and why this expert stands first."""
    best = ranking.experts[0]
    if scores.category == GENERAL:
        where = f"unsure of the category: {scores.unsure_because}; over all prompts"
    else:
        where = f"category '{scores.category}' ({scores.category_probability:.2f}), where"
    text = f"{where} '{best.id}' is expected to score {best.quality:.2f}"
    if len(ranking.experts) > 1:
        second = ranking.experts[1]
        text += f", next '{second.id}' {second.quality:.2f}"
    better = {
        e: q for e, q in scores.quality.items() if e in ranking.ruled_out and q > best.quality
    }
    if better:
        expert = max(better, key=lambda e: better[e])
        text += f"; '{expert}' ({better[expert]:.2f}) was ruled out: {ranking.ruled_out[expert]}"
    return text
