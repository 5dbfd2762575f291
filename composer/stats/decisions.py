"""Recent decisions: how they are stored, listed, found and exported."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

import orjson

from composer.state import State
from composer.stats.collector import Recent
from composer.stats.keys import DECISIONS, FEEDBACK, INDEX, PROMPT
from experts.errors import InvalidRequest, NotFound
from routers.explain import reason_of

MAX_LISTED = 500
MAX_NAMED = 32
"""Experts whose scores, and who were ruled out, are kept of a decision."""

MAX_REASON = 300
_PAGE = 200
_MAX_SCANNED = 50 * _PAGE
"""Decisions looked at to find those that a filter asks for."""


def stored_form(recent: Recent) -> str:
    """A decision and its outcome as JSON; without prompt and feedback, which are kept apart."""
    decision, outcome = recent.decision, recent.outcome
    ranked = decision.experts[:MAX_NAMED]
    ruled_out = list(decision.ranking.ruled_out.items())[:MAX_NAMED]
    return orjson.dumps(
        {
            "id": decision.id,
            "at": floor(recent.at * 1000) / 1000,
            "composition": decision.composition,
            "version": decision.version,
            "expert": decision.expert,
            "answered_by": outcome.expert,
            "category": decision.category,
            "category_probability": round(decision.scores.category_probability, 4),
            "uncertainty": round(decision.scores.uncertainty, 4),
            "general": decision.general,
            "reason": reason_of(decision),
            "cache": decision.cache,
            "kept": decision.kept,
            "route_ms": round(decision.route_ms, 3),
            "queue_ms": round(decision.queue_ms, 3),
            "saved_ms": round(decision.saved_ms, 3),
            "ranking": [candidate.id for candidate in ranked],
            "scores": {
                candidate.id: {
                    "quality": round(candidate.quality, 4),
                    "utility": round(candidate.utility, 4),
                }
                for candidate in ranked
            },
            "ruled_out": {expert: reason[:MAX_REASON] for expert, reason in ruled_out},
            "outcome": {
                "status": outcome.status,
                "http_status": outcome.http_status,
                "interface": outcome.interface,
                "attempts": outcome.attempts,
                "failed": [(e, reason[:MAX_REASON]) for e, reason in outcome.failed[:MAX_NAMED]],
                "first_token_ms": _rounded(outcome.first_token_ms),
                "total_ms": round(outcome.total_ms, 3),
                "prompt_tokens": outcome.prompt_tokens,
                "completion_tokens": outcome.completion_tokens,
                "estimated": outcome.estimated,
                "cost_usd": outcome.cost_usd,
                "streamed": outcome.streamed,
                "error": outcome.error[:MAX_REASON] if outcome.error else None,
            },
            "key": outcome.key,
        }
    ).decode()


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


@dataclass(frozen=True, slots=True)
class Page:
    """Decisions in their order. `missed`: some before them were trimmed before they were read."""

    views: list[dict[str, Any]]
    missed: bool


class Decisions:
    """Reads the stored decisions. A cursor is the place of one in their order."""

    def __init__(self, state: State) -> None:
        self._connection = state.connection

    async def newest(
        self,
        limit: int,
        *,
        before: str | None = None,
        expert: str | None = None,
        category: str | None = None,
    ) -> list[dict[str, Any]]:
        """Up to `limit` decisions before a cursor, newest first; of an expert (the one that
        answered, or was ranked first if nobody did) and a category.

        Raises:
            InvalidRequest: `before` is no cursor.
            StateUnavailable: Redis can't be reached.
        """
        end = "+" if before is None else f"({_checked(before, 'before')}"
        found: list[dict[str, Any]] = []
        scanned = 0
        while len(found) < limit and scanned < _MAX_SCANNED:
            call = self._connection.redis.xrevrange(DECISIONS, end, "-", count=_PAGE)
            entries = await self._connection.call(call)
            scanned += len(entries)
            for cursor, fields in entries:
                view = {**orjson.loads(fields["decision"]), "cursor": cursor}
                if expert is not None and (view["answered_by"] or view["expert"]) != expert:
                    continue
                if category is not None and view["category"] != category:
                    continue
                found.append(view)
            if len(entries) < _PAGE:
                break
            end = f"({entries[-1][0]}"
        return await self._completed(found[:limit])

    async def get(self, decision_id: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: there is no such decision, or none any more.
            StateUnavailable: Redis can't be reached.
        """
        redis = self._connection.redis
        cursor = await self._connection.call(redis.hget(INDEX, decision_id))
        entries = cursor and await self._connection.call(redis.xrange(DECISIONS, cursor, cursor))
        if not entries:
            raise NotFound(f"there is no decision '{decision_id}', or it is no longer kept")
        view = {**orjson.loads(entries[0][1]["decision"]), "cursor": cursor}
        return (await self._completed([view]))[0]

    async def after(self, cursor: str, limit: int) -> AsyncIterator[Page]:
        """Pages of up to `limit` decisions in all after a cursor (empty: from the oldest), oldest
        first. Paging on from the last one's cursor neither misses nor repeats any that is kept."""
        cursor = _checked(cursor, "cursor") if cursor else ""
        while limit > 0:
            count = min(limit, _PAGE)
            start = f"({cursor}" if cursor else "-"
            async with self._connection.redis.pipeline(transaction=True) as pipe:
                pipe.exists(DECISIONS)
                pipe.xrange(DECISIONS, start, "+", count=count)
                pipe.xinfo_stream(DECISIONS)
                found = await self._connection.call(pipe.execute(raise_on_error=False))
            exists, entries, info = found
            if not exists:
                return
            trimmed = info.get("max-deleted-entry-id", "0-0")
            missed = bool(cursor) and _order(trimmed) > _order(cursor)
            views = [{**orjson.loads(f["decision"]), "cursor": c} for c, f in entries]
            if views or missed:
                yield Page(await self._completed(views), missed)
            if len(entries) < count:
                return
            cursor = entries[-1][0]
            limit -= len(entries)

    async def _completed(self, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The decisions with what is kept apart from them: feedback, and prompts if there are."""
        if not views:
            return views
        ids = [view["id"] for view in views]
        async with self._connection.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(FEEDBACK, ids)
            pipe.mget([f"{PROMPT}{decision_id}" for decision_id in ids])
            feedback, prompts = await self._connection.call(pipe.execute())
        for view, given, prompt in zip(views, feedback, prompts, strict=True):
            view["feedback"] = _feedback_view(orjson.loads(given)) if given else None
            if prompt is not None:
                view["prompt"] = prompt
        return views


def _feedback_view(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": stored["score"], "comment": stored["comment"], "at": stored["at"]}


def _order(cursor: str) -> tuple[int, int]:
    first, _, second = cursor.partition("-")
    return int(first), int(second or 0)


def _checked(cursor: str, param: str) -> str:
    """
    Raises:
        InvalidRequest: it is not what we gave out.
    """
    first, dash, second = cursor.partition("-")
    parts = (first, second) if dash else (first,)
    if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
        raise InvalidRequest(f"'{param}' must be the cursor of a decision", param=param)
    return cursor
