"""Decisions and outcomes as tests know them, and a Redis server that can be stopped and killed."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from composer.config import StatsConfig
from composer.outcome import Outcome
from composer.services import Service
from composer.state import State
from composer.stats import Recorder
from routers.types import Decision, RankedExpert, Ranking, Scores
from tests.small_composition import redis_service

Known = tuple[Decision, Outcome]
_ids = count()


def known(
    expert: str = "a",
    category: str = "maths",
    *,
    composition: str = "auto",
    ranked: tuple[str, ...] = ("a", "b"),
    route_ms: float = 1.0,
    queue_ms: float = 0.0,
    saved_ms: float = 0.0,
    cache: str = "miss",
    **outcome: object,
) -> Known:
    """One request: what was decided, and what became of it."""
    decision = Decision(
        id=f"dec-{next(_ids):08d}",
        composition=composition,
        version="v1" if composition else "",
        scores=Scores(dict.fromkeys((*ranked, "c"), 0.5), {category: 0.9}, category, 0.1, 0.8),
        ranking=Ranking(tuple(RankedExpert(e, 0.5, 0.5) for e in ranked), {"c": "it lacks: tools"}),
        cache=cache,  # type: ignore[arg-type]
        encoder="e",
        route_ms=route_ms,
        queue_ms=queue_ms,
        saved_ms=saved_ms,
    )
    plain = Outcome(decision.id, expert, "ok", 200, total_ms=100.0)
    return decision, replace(plain, **outcome)  # type: ignore[arg-type]


def many_known(n: int, seed: int = 0) -> Iterator[Known]:
    chance = random.Random(seed)
    for _ in range(n):
        yield known(
            chance.choice("ab"),
            chance.choice(["maths", "sql", "general"]),
            composition=chance.choice(["auto", "auto", ""]),
            cache=chance.choice(["hit", "miss", "off"]),
            total_ms=chance.lognormvariate(5, 1.5),
            route_ms=chance.lognormvariate(0, 1),
            first_token_ms=chance.choice([None, chance.lognormvariate(3, 1)]),
            prompt_tokens=chance.randrange(100),
            completion_tokens=chance.randrange(100),
            cost_usd=chance.random() / 1000,
        )


@dataclass(frozen=True)
class Store:
    folder: Path
    service: Service
    url: str
    state: State


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[Store]:
    async with redis_service(folder) as (service, url), State(url) as state:
        yield Store(folder, service, url, state)


def recorder(state: State, **settings: object) -> Recorder:
    """One that has not started: it flushes when it is told to."""
    return Recorder(state, StatsConfig.model_validate(settings))


async def record(state: State, outcomes: list[Known], **settings: object) -> None:
    worker = recorder(state, **settings)
    for decision, outcome in outcomes:
        worker.collector.record(decision, outcome)
    await worker.flush()
