"""What a study found, as JSON and as tables for a person."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eval.simulate.consistency import SEGMENT
from eval.simulate.study import BASELINE, CONFIDENCE, Interval, Summary

FIGURES = ("trace", "policy", "hits", "to bound", "loads", "mean s", "p99 s", "refused", "per s")
DIFFERENCES = ("trace", "policy", "mean wait less LRU's, s", "p99 wait less LRU's, s")


def figures(summaries: Sequence[Summary]) -> list[Sequence[str]]:
    """A row for each trace and policy, under `FIGURES`."""
    return [
        (
            summary.name,
            policy,
            f"{found.hit_rate:.3f}",
            f"{summary.bound_distance[policy]:.3f}",
            f"{found.loads:,.0f}",
            f"{found.wait_mean:.3f}",
            f"{found.wait_p99:.2f}",
            f"{found.refused:.1f}",
            f"{found.throughput:.2f}",
        )
        for summary in summaries
        for policy, found in summary.figures.items()
    ]


def differences(summaries: Sequence[Summary]) -> list[Sequence[str]]:
    """A row for each trace and policy that was compared over several seeds, under `DIFFERENCES`."""
    return [
        (
            summary.name,
            policy,
            _interval(against["wait_mean"], 3),
            _interval(against["wait_p99"], 2),
        )
        for summary in summaries
        for policy, against in summary.against_lru.items()
    ]


def notes(summaries: Sequence[Summary], cache: int) -> list[str]:
    """What the table's figures mean, and those that are of a trace alone."""
    lines = [
        f"{summary.name}: {summary.requests:,.0f} requests; hit rate of any policy at most "
        f"{summary.offline_bound:.3f}; {summary.segment_hit_rate:.3f} of each {SEGMENT} requests "
        f"go to their {cache} most asked experts"
        for summary in summaries
    ]
    lines.append("mean s, p99 s: waits for an expert to be in memory; per s: answers")
    if any(summary.against_lru for summary in summaries):
        lines.append(f"differences are paired by seed, with {CONFIDENCE:.0%} confidence intervals")
    return lines


def verdicts(summaries: Sequence[Summary], policy: str) -> list[str]:
    """Where a policy's wait is not surely below LRU's."""
    return [
        f"{summary.name}: {figure} of {policy} is not below {BASELINE}'s ({_interval(interval, 3)})"
        for summary in summaries
        for figure in ("wait_mean", "wait_p99")
        if (interval := summary.against_lru.get(policy, {}).get(figure)) is not None
        and interval.high >= 0
    ]


def as_json(summaries: Sequence[Summary], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "composer.simulation",
        "settings": settings,
        "results": [asdict(summary) for summary in summaries],
    }


def _interval(interval: Interval, digits: int) -> str:
    mean, low, high = (f"{x:+.{digits}f}" for x in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"
