"""A cell: what is counted of one group of requests in one span of time.

It is a flat mapping from short names to whole numbers, so that adding two cells is adding their
numbers, wherever that is done: in a worker, in Redis, in a query. Times are summed in microseconds,
money in nano-dollars, feedback in millionths.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from composer.outcome import Outcome
from composer.stats.histogram import BUCKETS, bucket_of, percentile
from routers.types import Decision

Cell = defaultdict[str, int]

TOTAL, EXPERT, CATEGORY, COMPOSITION = "t", "e:", "c:", "n:"
"""Groups of a span of time: all requests, and those of one expert, category, composition, where
its name follows."""

REQUESTS = "n"
FAILED_BY = "fb:"
"""With an expert's name: attempts of it that failed and moved on down the ranking."""

FALLBACKS = "fb"
FEEDBACK, FEEDBACK_SUM = "fn", "fs"
_STATUS = {"ok": "ok", "error": "err", "cancelled": "can"}
_LATENCIES = {"queue": "q", "routing": "r", "first_token": "f", "total": "t"}
_BUCKETS = {
    letter: tuple(f"{letter}{index}" for index in range(BUCKETS)) for letter in _LATENCIES.values()
}
_Q, _R, _F, _T = (_BUCKETS[letter] for letter in _LATENCIES.values())


def new_cell() -> Cell:
    return defaultdict(int)


def add_request(cell: Cell, decision: Decision, outcome: Outcome) -> None:
    """Count one request. This is on the path of every request: microseconds, no loops."""
    cell[REQUESTS] += 1
    cell[_STATUS[outcome.status]] += 1
    cell[decision.cache] += 1
    if decision.saved_ms:
        cell["saved"] += int(decision.saved_ms * 1000)
    if outcome.prompt_tokens:
        cell["in"] += outcome.prompt_tokens
    if outcome.completion_tokens:
        cell["out"] += outcome.completion_tokens
    if outcome.estimated:
        cell["est"] += 1
    if outcome.cost_usd:
        cell["cost"] += round(outcome.cost_usd * 1e9)
    ms = decision.queue_ms
    cell["q"] += int(ms * 1000)
    cell[_Q[bucket_of(ms)]] += 1
    ms = decision.route_ms
    cell["r"] += int(ms * 1000)
    cell[_R[bucket_of(ms)]] += 1
    ms = outcome.total_ms
    cell["t"] += int(ms * 1000)
    cell[_T[bucket_of(ms)]] += 1
    if outcome.first_token_ms is not None:
        ms = outcome.first_token_ms
        cell["f"] += int(ms * 1000)
        cell[_F[bucket_of(ms)]] += 1
    for name, _ in outcome.failed:
        cell[FAILED_BY + name] += 1


def feedback_cell(n: int, score: float) -> dict[str, int]:
    """What `n` (-1: taken back) pieces of feedback that sum to `score` add."""
    return {FEEDBACK: n, FEEDBACK_SUM: round(score * 1e6)}


def merge(cell: Cell, other: Mapping[str, float]) -> None:
    for name, value in other.items():
        cell[name] += int(value)


def total(cells: Iterable[Mapping[str, float]]) -> Cell:
    summed = new_cell()
    for cell in cells:
        merge(summed, cell)
    return summed


def figures(cell: Mapping[str, int], of_requests: int) -> dict[str, Any]:
    """A cell as people read it; `of_requests` is what its share is of."""
    requests = cell.get(REQUESTS, 0)
    hits, misses = cell.get("hit", 0), cell.get("miss", 0)
    n_feedback = cell.get(FEEDBACK, 0)
    return {
        "requests": requests,
        "ok": cell.get("ok", 0),
        "errors": cell.get("err", 0),
        "cancelled": cell.get("can", 0),
        "fallbacks": cell.get(FALLBACKS, 0),
        "share": round(requests / of_requests, 6) if of_requests else 0.0,
        "cache": {
            "hit": hits,
            "miss": misses,
            "off": cell.get("off", 0),
            "hit_rate": round(hits / (hits + misses), 6) if hits + misses else None,
            "saved_ms": cell.get("saved", 0) / 1000,
        },
        "tokens": {
            "prompt": cell.get("in", 0),
            "completion": cell.get("out", 0),
            "estimated_requests": cell.get("est", 0),
        },
        "cost_usd": cell.get("cost", 0) / 1e9,
        "latency_ms": _latencies(cell),
        "feedback": {
            "n": n_feedback,
            "mean": round(cell.get(FEEDBACK_SUM, 0) / 1e6 / n_feedback, 6) if n_feedback else None,
        },
    }


def _latencies(cell: Mapping[str, int]) -> dict[str, Any]:
    counts: dict[str, dict[int, int]] = {letter: {} for letter in _LATENCIES.values()}
    for name, n in cell.items():
        if name[1:].isdigit():
            counts[name[0]][int(name[1:])] = n
    return {
        name: _latency(cell.get(letter, 0), counts[letter]) for name, letter in _LATENCIES.items()
    }


def _latency(microseconds: int, counts: Mapping[int, int]) -> dict[str, Any]:
    n = sum(counts.values())
    shown = {"n": n, "mean": microseconds / 1000 / n if n else None}
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        shown[name] = percentile(counts, share)
    return {key: value if value is None else round(value, 3) for key, value in shown.items()}


def marginals(
    expert: str, category: str, composition: str, cell: Cell
) -> Iterator[tuple[str, Mapping[str, int]]]:
    """What a cell of one expert, category and composition adds to each group that it belongs to.

    Of attempts that failed, an expert's figures count its own, all others count every one.
    """
    failed = {name: n for name, n in cell.items() if name.startswith(FAILED_BY)}
    plain = {name: n for name, n in cell.items() if name not in failed} if failed else cell
    every = {**plain, FALLBACKS: sum(failed.values())} if failed else plain
    yield TOTAL, every
    yield f"{CATEGORY}{category}", every
    yield f"{COMPOSITION}{composition}", every
    yield f"{EXPERT}{expert}", plain
    for name, n in failed.items():
        yield f"{EXPERT}{name.removeprefix(FAILED_BY)}", {FALLBACKS: n}
