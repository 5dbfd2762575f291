"""Scores as bytes: numbers in the order of an artefact's experts and categories, and no names.

Reading them can't run code, and gives nothing for bytes that another artefact's scores would make.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from routers.types import GENERAL, Scores

FORMAT = 1
MAX_REASON = 500
_HEAD = struct.Struct("<BHHhddd")
_GENERAL = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """Scores, and the milliseconds that it took to make them."""

    scores: Scores
    took_ms: float


def pack(entry: Entry, experts: Sequence[str], categories: Sequence[str]) -> bytes | None:
    """The entry as bytes; None if it does not score exactly these experts and categories."""
    scores = entry.scores
    try:
        quality = [scores.quality[expert] for expert in experts]
        probabilities = [scores.probabilities[category] for category in categories]
        category = _GENERAL if scores.category == GENERAL else categories.index(scores.category)
    except (KeyError, ValueError):
        return None
    if (len(scores.quality), len(scores.probabilities)) != (len(experts), len(categories)):
        return None
    numbers = struct.pack(f"<{len(quality) + len(probabilities)}d", *quality, *probabilities)
    head = _HEAD.pack(
        FORMAT,
        len(experts),
        len(categories),
        category,
        scores.uncertainty,
        scores.similarity,
        entry.took_ms,
    )
    return head + numbers + (scores.unsure_because or "").encode()[:MAX_REASON]


def unpack(data: bytes, experts: Sequence[str], categories: Sequence[str]) -> Entry | None:
    """The entry that `pack` wrote for these experts and categories; None for anything else."""
    n_experts, n_numbers = len(experts), len(experts) + len(categories)
    start = _HEAD.size + 8 * n_numbers
    if not start <= len(data) <= start + MAX_REASON:
        return None
    found, *sizes, category, uncertainty, similarity, took_ms = _HEAD.unpack_from(data)
    if (found, *sizes) != (FORMAT, n_experts, len(categories)):
        return None
    numbers = struct.unpack_from(f"<{n_numbers}d", data, _HEAD.size)
    if not all(map(math.isfinite, (*numbers, uncertainty, similarity, took_ms))):
        return None
    if not _GENERAL <= category < len(categories):
        return None
    scores = Scores(
        quality=dict(zip(experts, numbers[:n_experts], strict=True)),
        probabilities=dict(zip(categories, numbers[n_experts:], strict=True)),
        category=GENERAL if category == _GENERAL else categories[category],
        uncertainty=uncertainty,
        similarity=similarity,
        unsure_because=data[start:].decode("utf-8", "replace") or None,
    )
    return Entry(scores, took_ms)
