"""The decision cache: shared by gateways, bounded, flushed by version, and never in the way."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from composer.packing import Entry, pack, unpack
from composer.quick_redis import BREAK_S, QuickRedis
from composer.shared_cache import TABLES
from composer.state import Endpoint, State
from experts.spec import ExpertSpec
from routers.types import GENERAL, Scores
from tests.small_composition import (
    SENTENCES,
    Running,
    gateway_config,
    gateway_worker,
    redis_service,
    small_gateway,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 32
WRITE_S = 0.1
TIMEOUT_S = 0.1
CACHE = "/admin/v1/cache"


@dataclass(frozen=True)
class Two:
    """Two gateway workers on one Redis."""

    first: Running
    other: aiohttp.ClientSession

    @property
    def state(self) -> State:
        return self.first.state

    async def route(
        self, text: str, *, other: bool = False, **options: object
    ) -> tuple[int, dict[str, Any]]:
        session = self.other if other else self.first.session
        body = {"prompt": text, "composer": options}
        async with session.post("/v1/route", json=body) as reply:
            return reply.status, await reply.json()

    async def cached(self, text: str, *, other: bool = False) -> str:
        return (await self.route(text, other=other))[1]["cache"]

    async def table(self) -> str:
        return TABLES + (await self.state.live.get("auto")).current.version

    async def written(self) -> None:
        """Wait until what was scored has surely been written."""
        await asyncio.sleep(WRITE_S + 0.15)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> AsyncIterator[Two]:
    specs = [
        ExpertSpec(id="good", kind="remote", engine="one"),
        ExpertSpec(id="away", kind="remote", engine="two"),
        ExpertSpec(id="canned", kind="null", text="No."),
    ]
    quality = {
        "greeting": {"away": 0.9, "good": 0.6, "canned": 0},
        "weather": {"away": 0.1, "good": 0.2, "canned": 1},
    }
    endpoints = [Endpoint(engine="one", base_url="http://127.0.0.1:9", state="ready")]
    patch = pytest.MonkeyPatch()
    patch.setattr("composer.shared_cache.WRITE_S", WRITE_S)
    folder = tmp_path_factory.mktemp("gateway")
    cache = {"shared_entries": ROWS, "timeout_ms": TIMEOUT_S * 1000}
    async with small_gateway(folder, cache_dir, specs, endpoints, quality, cache=cache) as first:
        config = gateway_config(folder, cache_dir, cache=cache)
        async with gateway_worker(config, first.redis_url) as (_, other):
            yield Two(first, other)
    patch.undo()


def text() -> str:
    """A text that nobody has sent before."""
    return f"{SENTENCES['weather']} {random.random()}"


class TestSharing:
    async def test_what_one_worker_scored_is_a_hit_in_the_other(self, two: Two) -> None:
        prompt = text()
        assert await two.cached(prompt) == "miss"
        assert await two.cached(prompt) == "hit"
        await two.written()
        status, decision = await two.route(prompt, other=True, explain=True)
        own = (await two.route(prompt, explain=True))[1]
        assert (status, decision["cache"]) == (200, "hit")
        for field in ("scores", "probabilities", "category", "uncertainty", "reason"):
            assert decision[field] == own[field]
        assert decision["saved_ms"] > 0
        assert decision["queue_ms"] == 0

    async def test_prompts_are_not_stored_and_tables_expire(self, two: Two) -> None:
        prompt = f"{text()} zebrafish"
        await two.cached(prompt)
        await two.written()
        client = two.state.connection.redis
        assert 0 < await client.ttl(await two.table()) <= 86_400
        async with QuickRedis(two.first.redis_url, 1.0) as quick:

            async def rows(raw: Any) -> dict[bytes, bytes]:
                return await raw.hgetall(await two.table())

            held = await quick.ask(rows, {})
        assert held
        assert all(b"zebrafish" not in key + value for key, value in held.items())
        assert all(len(value) < 400 for value in held.values())

    async def test_table_has_no_more_rows_than_it_may(self, two: Two) -> None:
        await asyncio.gather(*(two.cached(text()) for _ in range(3 * ROWS)))
        await two.written()
        assert 10 < await two.state.connection.redis.hlen(await two.table()) <= ROWS

    async def test_row_of_another_text_or_of_garbage_is_a_miss(self, two: Two) -> None:
        prompts = [text() for _ in range(20)]
        await asyncio.gather(*(two.cached(prompt) for prompt in prompts))
        await two.written()
        client, table = two.state.connection.redis, await two.table()
        rows = await client.hkeys(table)
        await client.hset(table, mapping=dict.fromkeys(rows, "x" * 90))
        assert {await two.cached(p, other=True) for p in prompts} == {"miss"}

    async def test_hit_bypasses_no_policy(self, two: Two) -> None:
        prompt = text()
        await two.route(prompt)
        status, decision = await two.route(prompt, experts=["absent"])
        assert (status, decision["error"]["code"]) == (400, "no_eligible_expert")
        # The best by its scores, and not running: it is ruled out on a hit as on a miss.
        greeting = f"{SENTENCES['greeting']} {random.random()}"
        for state in ("miss", "hit"):
            _, decision = await two.route(greeting)
            assert (decision["cache"], decision["expert"]) == (state, "good")


class TestFlush:
    @pytest.mark.parametrize("every", [False, True])
    async def test_flushed_entries_are_used_by_no_worker(self, two: Two, every: bool) -> None:
        prompt, second = text(), text()
        for each in (prompt, second):
            await two.cached(each)
        await two.written()
        for each in (prompt, second):
            assert await two.cached(each, other=True) == "hit"
        version = (await two.state.live.get("auto")).current.version
        params = {} if every else {"version": version}
        async with two.first.session.delete(CACHE, params=params) as reply:
            assert (reply.status, (await reply.json())["flushed"]) == (200, True)
        assert await two.state.connection.redis.exists(await two.table()) == 0
        assert await two.cached(prompt) == "miss"
        await asyncio.sleep(0.8)
        assert await two.cached(second, other=True) == "miss"
        await two.written()
        async with two.first.session.get(CACHE) as reply:
            assert version in (await reply.json())["shared"]["versions"]

    async def test_flush_of_another_version_leaves_entries_alone(self, two: Two) -> None:
        prompt = text()
        await two.cached(prompt)
        async with two.first.session.delete(CACHE, params={"version": "other"}) as reply:
            assert reply.status == 200
        assert await two.cached(prompt) == "hit"

    async def test_bad_version_is_refused(self, two: Two) -> None:
        async with two.first.session.delete(CACHE, params={"version": "x" * 200}) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["param"]) == (400, "version")


class TestRedisAway:
    async def test_stopped_redis_costs_its_deadline_once(self, two: Two) -> None:
        process = two.first.redis._process
        assert process is not None
        await two.cached(text())
        os.kill(process.pid, signal.SIGSTOP)
        try:
            start = time.perf_counter()
            assert await two.cached(text()) == "miss"
            assert time.perf_counter() - start > TIMEOUT_S * 0.9
            start = time.perf_counter()
            for _ in range(5):
                assert await two.cached(text()) == "miss"
            assert time.perf_counter() - start < 5 * TIMEOUT_S
        finally:
            os.kill(process.pid, signal.SIGCONT)
        prompt = text()
        await asyncio.sleep(BREAK_S + 0.2)
        async with asyncio.timeout(10):
            while True:
                await two.cached(prompt)
                await two.written()
                if await two.cached(prompt, other=True) == "hit":
                    break
                prompt = text()

    async def test_answers_of_late_calls_are_never_taken_for_those_of_others(
        self, tmp_path: Path
    ) -> None:
        async with redis_service(tmp_path) as (service, url), QuickRedis(url, 0.05) as quick:

            async def ask(key: str) -> bytes | None:
                return await quick.ask(lambda client: client.get(key), None)

            for key in ("a", "b"):
                await quick.ask(lambda client, key=key: client.set(key, key), None)
            assert service._process is not None
            for _ in range(3):
                os.kill(service._process.pid, signal.SIGSTOP)
                assert await ask("a") is None
                assert not quick.available
                os.kill(service._process.pid, signal.SIGCONT)
                await asyncio.sleep(BREAK_S + 0.05)
                assert await ask("b") == b"b"
                assert await asyncio.gather(ask("a"), ask("b")) == [b"a", b"b"]


EXPERTS, CATEGORIES = ("one", "two", "three"), ("maths", "code")
numbers = st.floats(0, 1)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    return Entry(
        Scores(
            quality={expert: draw(numbers) for expert in EXPERTS},
            probabilities={category: draw(numbers) for category in CATEGORIES},
            category=draw(st.sampled_from([*CATEGORIES, GENERAL])),
            uncertainty=draw(numbers),
            similarity=draw(st.floats(-1, 1)),
            unsure_because=draw(st.none() | st.text(min_size=1, max_size=50)),
        ),
        took_ms=draw(st.floats(0, 1e4)),
    )


class TestPacking:
    @given(entry=entries())
    async def test_entry_comes_back_whole(self, entry: Entry) -> None:
        packed = pack(entry, EXPERTS, CATEGORIES)
        assert packed is not None
        assert unpack(packed, EXPERTS, CATEGORIES) == entry

    @given(entry=entries(), cut=st.integers(0, 200), junk=st.binary(max_size=600))
    async def test_other_bytes_give_no_entry_and_no_error(
        self, entry: Entry, cut: int, junk: bytes
    ) -> None:
        packed = pack(entry, EXPERTS, CATEGORIES) or b""
        unpack(junk, EXPERTS, CATEGORIES)
        assert unpack(packed[: min(cut, 60)], EXPERTS, CATEGORIES) is None
        assert unpack(packed, EXPERTS[:2], CATEGORIES) is None
        assert unpack(packed, EXPERTS, (*CATEGORIES, "more")) is None
        assert unpack(packed, (*EXPERTS[:2],), (*CATEGORIES, "more")) is None

    async def test_scores_of_other_experts_are_not_packed(self) -> None:
        scores = Scores({"one": 1.0}, {"maths": 1.0}, "maths", 0.0, 1.0)
        assert pack(Entry(scores, 1.0), EXPERTS, CATEGORIES) is None
        assert pack(Entry(scores, 1.0), ("one",), ()) is None

    async def test_every_field_of_scores_is_packed(self) -> None:
        assert {field.name for field in fields(Scores)} == {
            "quality",
            "probabilities",
            "category",
            "uncertainty",
            "similarity",
            "unsure_because",
        }
