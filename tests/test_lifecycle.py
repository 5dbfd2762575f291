"""The life of experts: leases, workers' heartbeats, verification, engines that follow."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from composer.lease import Lease
from composer.state import State, WorkerRecord
from composer.workers import has_let_go, prune_workers, wait_for_generation
from tests.small_composition import redis_service


@pytest_asyncio.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    async with redis_service(tmp_path) as (_, url), State(url) as client:
        yield client


async def until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


class TestLease:
    async def test_second_takes_over_within_its_time_when_the_first_is_gone(
        self, state: State, tmp_path: Path
    ) -> None:
        first = Lease(state.connection, "x", tmp_path / "a", ttl_s=0.5)
        second = Lease(state.connection, "x", tmp_path / "b", ttl_s=0.5)
        async with first, second:
            assert first.held
            assert not second.held
            assert second.elsewhere
            assert first._task is not None
            first._task.cancel()
            await until(lambda: second.held, 2)
            assert not first.held

    async def test_it_is_free_at_once_when_given_back(self, state: State, tmp_path: Path) -> None:
        async with Lease(state.connection, "x", tmp_path / "a"):
            pass
        async with Lease(state.connection, "x", tmp_path / "b") as other:
            assert other.held

    async def test_it_is_taken_over_at_once_when_a_killed_holder_was_in_the_same_place(
        self, state: State, tmp_path: Path
    ) -> None:
        killed = Lease(state.connection, "x", tmp_path)
        await killed._try()
        async with Lease(state.connection, "x", tmp_path) as again:
            assert again.held

    async def test_it_runs_out_when_redis_is_away(self, tmp_path: Path) -> None:
        async with (
            redis_service(tmp_path) as (redis, url),
            State(url) as state,
            Lease(state.connection, "x", tmp_path, ttl_s=0.6) as lease,
        ):
            assert redis._process is not None
            redis._stopping = True
            redis._process.kill()
            await until(lambda: not lease.held, 3)


def worker(name: str, generation: int, at: float, **in_flight: int) -> WorkerRecord:
    return WorkerRecord(
        id=name, pid=1, started_at=0, at=at, generation=generation, in_flight=in_flight
    )


class TestWorkers:
    async def test_waiting_ends_when_every_live_worker_serves_the_generation(
        self, state: State
    ) -> None:
        now = time.time()
        await state.workers.put(
            {"a": worker("a", 5, now), "b": worker("b", 4, now), "dead": worker("dead", 1, now - 9)}
        )
        assert await wait_for_generation(state, 5, timeout_s=0.1) == (1, 2)
        waiting = asyncio.create_task(wait_for_generation(state, 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await state.workers.put({"b": worker("b", 6, now)})
        assert await waiting == (2, 2)
        await prune_workers(state)
        assert set(await state.workers.all()) == {"a", "b"}

    def test_expert_is_let_go_when_all_know_and_nobody_answers_with_it(self) -> None:
        idle, busy = worker("a", 7, 0), worker("b", 7, 0, maths=1)
        assert has_let_go([idle], "maths", 7)
        assert not has_let_go([idle, busy], "maths", 7)
        assert not has_let_go([idle], "maths", 8)
        assert has_let_go([], "maths", 8)
