"""Sessions stay with their expert: across turns, workers and failures."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from composer.state import Endpoint
from experts.spec import ExpertSpec
from gateway.auth import LOCAL, PRINCIPAL, Principal
from gateway.requests import ComposerOptions, session_of
from routers.ranking import stay
from routers.types import RankedExpert, Ranking
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import (
    SENTENCES,
    Running,
    gateway_config,
    gateway_worker,
    small_gateway,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/chat/completions"
TTL_S = 1.5


@dataclass(frozen=True)
class Two:
    """Two gateway workers on one Redis; `ann` is the best for greetings, `bob` for the weather."""

    first: Running
    other: aiohttp.ClientSession
    upstream: FaultyServer

    async def ask(
        self,
        category: str,
        session: str | None,
        *,
        other: bool = False,
        headers: dict[str, str] | None = None,
        **fields: object,
    ) -> str:
        """The expert that answered."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": SENTENCES[category]}],
            "composer": {} if session is None else {"session": session},
            **fields,
        }
        client = self.other if other else self.first.session
        async with client.post(PATH, json=body, headers=headers) as reply:
            assert reply.status == 200
            await reply.read()
            return reply.headers["x-composer-expert"]

    async def set_engine(self, name: str, state: Any) -> None:
        """Tell both workers, as a supervisor does, whether an expert's engine can be asked."""
        endpoint = Endpoint(engine=name, base_url=self.upstream.url, state=state)
        await self.first.state.endpoints.put({name: endpoint})
        await asyncio.sleep(0.7)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> AsyncIterator[Two]:
    specs = [ExpertSpec(id=name, kind="remote", engine=name) for name in ("ann", "bob")]
    specs.append(ExpertSpec(id="canned", kind="null", text="No."))
    quality = {
        "greeting": {"ann": 0.9, "bob": 0.3, "canned": 0.0},
        "weather": {"ann": 0.2, "bob": 0.7, "canned": 0.0},
    }
    folder = tmp_path_factory.mktemp("gateway")
    settings: dict[str, object] = {
        "sessions": {"ttl_s": TTL_S},
        "cache": {"timeout_ms": 100},
    }
    async with faulty_server() as upstream:
        endpoints = [
            Endpoint(engine=name, base_url=upstream.url, state="ready") for name in ("ann", "bob")
        ]
        async with small_gateway(folder, cache_dir, specs, endpoints, quality, **settings) as first:
            config = gateway_config(folder, cache_dir, **settings)
            async with gateway_worker(config, first.redis_url) as (_, other):
                yield Two(first, other, upstream)


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


class TestSessions:
    @pytest.mark.parametrize("other", [False, True])
    async def test_next_turn_goes_to_the_same_expert_in_every_worker(
        self, two: Two, name: str, other: bool
    ) -> None:
        assert await two.ask("weather", None) == "bob"
        assert await two.ask("greeting", name) == "ann"
        assert await two.ask("weather", name, other=other) == "ann"
        assert await two.ask("weather", name, other=other, stream=True) == "ann"
        assert await two.ask("weather", "another") == "bob"

    async def test_streamed_turn_is_remembered_too(self, two: Two, name: str) -> None:
        assert await two.ask("greeting", name, stream=True) == "ann"
        assert await two.ask("weather", name, other=True) == "ann"

    async def test_session_may_stand_in_a_header(self, two: Two, name: str) -> None:
        headers = {"x-composer-session": name}
        assert await two.ask("greeting", None, headers=headers) == "ann"
        assert await two.ask("weather", None, headers=headers) == "ann"
        assert await two.ask("weather", name) == "ann"

    async def test_plain_completion_belongs_to_the_session_too(self, two: Two, name: str) -> None:
        assert await two.ask("greeting", name) == "ann"
        body = {"prompt": SENTENCES["weather"], "composer": {"session": name}}
        async with two.first.session.post("/v1/completions", json=body) as reply:
            assert reply.headers["x-composer-expert"] == "ann"

    async def test_session_is_forgotten_after_a_silence(self, two: Two, name: str) -> None:
        assert await two.ask("greeting", name) == "ann"
        for _ in range(4):
            await asyncio.sleep(TTL_S / 2)
            assert await two.ask("weather", name) == "ann"
        await asyncio.sleep(TTL_S + 0.1)
        assert await two.ask("weather", name) == "bob"

    async def test_decision_says_in_words_that_the_session_decided(
        self, two: Two, name: str
    ) -> None:
        await two.ask("greeting", name)
        for category, kept in (("weather", True), ("greeting", False)):
            body = {"prompt": SENTENCES[category], "composer": {"session": name}}
            async with two.first.session.post("/v1/route", json=body) as reply:
                decision = await reply.json()
            assert (decision["expert"], decision["kept"]) == ("ann", kept)
            assert ("the session is with 'ann'" in decision["reason"]) is kept

    async def test_fallback_becomes_the_sessions_expert(self, two: Two, name: str) -> None:
        assert await two.ask("greeting", name) == "ann"
        await two.set_engine("ann", "failed")
        assert await two.ask("greeting", name) == "bob"
        await two.set_engine("ann", "ready")
        for other in (False, True):
            assert await two.ask("greeting", name, other=other) == "bob"

    async def test_request_may_say_when_it_would_leave_its_expert(
        self, two: Two, name: str
    ) -> None:
        assert await two.ask("greeting", name) == "ann"
        for gain, expert in ((0.6, "ann"), (0.2, "bob")):
            options = {"session": name, "switch_gain": gain}
            assert await two.ask("weather", None, composer=options) == expert

    async def test_session_can_not_bypass_the_policy(self, two: Two, name: str) -> None:
        assert await two.ask("greeting", name) == "ann"
        options = {"session": name, "experts": ["bob"]}
        assert await two.ask("greeting", None, composer=options) == "bob"

    async def test_sessions_name_is_not_stored(self, two: Two, name: str) -> None:
        await two.ask("greeting", name)
        keys = await two.first.state.connection.redis.keys("*")
        assert any("session" in key for key in keys)
        assert all(name not in key for key in keys)

    async def test_worker_keeps_its_sessions_when_redis_is_stopped(
        self, two: Two, name: str
    ) -> None:
        assert await two.ask("greeting", name) == "ann"
        process = two.first.redis._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            assert await two.ask("weather", name) == "ann"
            assert await two.ask("greeting", f"{name}-new") == "ann"
            assert await two.ask("weather", f"{name}-new") == "ann"
        finally:
            os.kill(process.pid, signal.SIGCONT)

    @pytest.mark.parametrize("session", ["", "x" * 129, 5, ["a"]])
    async def test_bad_session_is_refused(self, two: Two, session: object) -> None:
        body = {"prompt": "x", "composer": {"session": session}}
        async with two.first.session.post("/v1/route", json=body) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["param"]) == (400, "composer.session")

    async def test_bad_session_header_is_refused(self, two: Two) -> None:
        headers = {"x-composer-session": "x" * 129}
        body = {"prompt": "x"}
        async with two.first.session.post("/v1/route", json=body, headers=headers) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["param"]) == (400, "x-composer-session")


async def test_sessions_of_one_key_are_not_those_of_another() -> None:
    options = ComposerOptions(session="same")
    keys = [LOCAL, Principal("key-1", frozenset({"user"})), Principal("key-2", frozenset({"user"}))]
    assert len({session_of({PRINCIPAL: key, "headers": []}, options) for key in keys}) == 3


@pytest.mark.parametrize(
    ("expert", "switch_gain", "first"),
    [
        ("worse", 1.0, "worse"),
        ("worse", 0.5, "worse"),
        ("worse", 0.3, "best"),
        ("middle", 0.3, "middle"),
        ("best", 0.0, "best"),
        ("absent", 1.0, "best"),
        (None, 1.0, "best"),
    ],
)
async def test_session_moves_only_when_another_is_better_by_more_than_the_switch_gain(
    expert: str | None, switch_gain: float, first: str
) -> None:
    ranked = tuple(
        RankedExpert(name, quality, quality)
        for name, quality in (("best", 0.9), ("middle", 0.7), ("worse", 0.4))
    )
    ranking = Ranking(ranked, {})
    after = stay(ranking, expert, switch_gain)
    assert after.experts[0].id == first
    assert sorted(after.experts) == sorted(ranked)
    assert list(after.experts[1:]) == [c for c in ranked if c.id != first]
