"""Figures and time series of what all workers have committed."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from composer.state import State
from composer.stats.cells import (
    CATEGORY,
    COMPOSITION,
    EXPERT,
    REQUESTS,
    TOTAL,
    Cell,
    figures,
    merge,
    new_cell,
    total,
)
from composer.stats.keys import (
    HOUR,
    HOURS_KEPT_S,
    MINUTE,
    MINUTES_KEPT_S,
    TOTALS,
    bucket_key,
)
from experts.errors import InvalidRequest

DEFAULT_SPAN_S = HOUR
FINE_SPAN_S = 6 * HOUR
"""Up to this span a series is by the minute, unless it is asked for otherwise."""

_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` to before `end`, in steps of `step` seconds, of which both are multiples."""

    start: int
    end: int
    step: int
    all_time: bool = False

    @property
    def steps(self) -> range:
        return range(self.start, self.end, self.step)


def span_of(
    now: float, start: float | None = None, end: float | None = None, step: int | None = None
) -> Span:
    """The whole minutes or hours from `start` to `end`, in Unix seconds or, if negative, before
    now; by default the last hour. A start before everything kept (0) means all time.

    Raises:
        InvalidRequest: the end is before the start, or a step that is not kept.
    """
    last = now if end is None else _absolute(end, now)
    first = last - DEFAULT_SPAN_S if start is None else _absolute(start, now)
    if first > last:
        raise InvalidRequest("'from' is after 'to'", param="from")
    if step not in (None, MINUTE, HOUR):
        raise InvalidRequest(f"'step' must be {MINUTE} or {HOUR} seconds", param="step")
    last = min(last, now)
    all_time = first < now - HOURS_KEPT_S and now - last < MINUTE
    fine = first >= now - MINUTES_KEPT_S - MINUTE
    if step == MINUTE and not fine:
        raise InvalidRequest(
            f"minutes are kept for {MINUTES_KEPT_S // HOUR} hours: ask for a 'step' of {HOUR}",
            param="step",
        )
    if step is None:
        step = MINUTE if fine and last - first <= FINE_SPAN_S + MINUTE else HOUR
    first = max(first, now - HOURS_KEPT_S)
    begin = int(first // step) * step
    return Span(begin, max(begin, -int(-last // step) * step), step, all_time)


def _absolute(at: float, now: float) -> float:
    return now + at if at < 0 else at


class Statistics:
    """Reads the counts that stand in Redis."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self._connection = state.connection
        self._clock = clock

    async def read(
        self, start: float | None = None, end: float | None = None, step: int | None = None
    ) -> dict[str, Any]:
        """Totals, the same by expert, category and composition, and series over a span of time.

        Raises:
            InvalidRequest: see `span_of`.
            StateUnavailable: Redis can't be reached.
        """
        span = span_of(self._clock(), start, end, step)
        groups: dict[str, Cell] = {}
        totals: dict[int, Cell] = {}
        by_expert: dict[str, dict[int, int]] = {}
        steps = span.steps
        for index in range(0, len(steps), _READ_AT_ONCE):
            part = steps[index : index + _READ_AT_ONCE]
            for at, bucket in zip(part, await self._buckets(span.step, part), strict=True):
                cells = {group: orjson.loads(raw) for group, raw in bucket.items()}
                _add(groups, cells)
                totals[at] = total([cells[TOTAL]] if TOTAL in cells else [])
                for group, cell in cells.items():
                    if group.startswith(EXPERT) and cell.get(REQUESTS):
                        expert = group.removeprefix(EXPERT)
                        by_expert.setdefault(expert, {})[at] = int(cell[REQUESTS])
            await asyncio.sleep(0)
        if span.all_time:
            raw = await self._connection.call(self._connection.redis.hgetall(TOTALS))
            groups = {group: total([orjson.loads(cell)]) for group, cell in raw.items()}
        return _view(span, groups, totals, by_expert)

    async def _buckets(self, step: int, starts: Iterable[int]) -> list[Mapping[str, str]]:
        async with self._connection.redis.pipeline(transaction=False) as pipe:
            for at in starts:
                pipe.hgetall(bucket_key(step, at))
            found: list[Mapping[str, str]] = await self._connection.call(pipe.execute())
        return found


def _add(groups: dict[str, Cell], cells: Mapping[str, Mapping[str, float]]) -> None:
    for group, cell in cells.items():
        if group not in groups:
            groups[group] = new_cell()
        merge(groups[group], cell)


def _view(
    span: Span,
    groups: Mapping[str, Cell],
    totals: Mapping[int, Cell],
    by_expert: Mapping[str, Mapping[int, int]],
) -> dict[str, Any]:
    whole = groups.get(TOTAL, new_cell())
    requests = whole[REQUESTS]

    def named(kind: str) -> dict[str, Any]:
        found = [
            (group.removeprefix(kind), cell)
            for group, cell in groups.items()
            if group.startswith(kind)
        ]
        found.sort(key=lambda item: (-item[1][REQUESTS], item[0]))
        return {name: figures(cell, requests) for name, cell in found}

    return {
        "object": "composer.stats",
        "from": span.start,
        "to": span.end,
        "step_s": span.step,
        "totals": figures(whole, requests),
        "by_expert": named(EXPERT),
        "by_category": named(CATEGORY),
        "by_composition": named(COMPOSITION),
        "series": [{"at": at, **figures(cell, requests)} for at, cell in totals.items()],
        "series_by_expert": {
            expert: [{"at": at, "requests": counts.get(at, 0)} for at in span.steps]
            for expert, counts in sorted(by_expert.items())
        },
    }
