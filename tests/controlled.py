"""A small gateway whose experts are cared for by a real controller, as a supervisor does it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from composer.config import Config
from composer.lease import Lease
from composer.lifecycle import Controller, EndpointBoard, Fleet, Verifier
from composer.state import LiveRecord, State
from composer.upstream import UpstreamClient
from composer.workers import wait_for_generation
from tests.small_composition import Running, gateway_config, small_gateway

EXPERTS = "/admin/v1/experts"
CHAT = "/v1/chat/completions"
NOTHING = {"kind": "remote", "name": "nothing", "url": "http://127.0.0.1:9"}


@asynccontextmanager
async def controller(config: Config, state: State) -> AsyncIterator[Controller]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        board = await enter(EndpointBoard(state))
        fleet = await enter(Fleet(config, state, board, lambda line: None))
        lease = await enter(Lease(state.connection, "experts", config.state_dir))
        client = await enter(UpstreamClient(config.limits, config.timeouts))
        yield await enter(
            Controller(
                state,
                fleet,
                board,
                lease,
                Verifier(client, deadline_s=30),
                drain_s=60,
                on_lost=lambda: None,
            )
        )


@asynccontextmanager
async def controlled_gateway(
    folder: Path, cache_dir: Path, **settings: object
) -> AsyncIterator[Running]:
    """Without experts at first, except for a composition of two that are yet to be registered."""
    settings = {"engines": [NOTHING], **settings}
    quality = {"greeting": {"one": 1.0, "two": 0.5}, "weather": {"one": 0.5, "two": 1.0}}
    config = gateway_config(folder, cache_dir, **settings)
    async with (
        small_gateway(folder, cache_dir, [], [], quality, ready=False, **settings) as running,
        controller(config, running.state),
    ):
        live = await running.state.live.get("auto")
        version = live.current.model_copy(update={"experts": ("one", "two")})
        await running.state.live.put({"auto": LiveRecord(current=version)})
        yield running


async def register(session: aiohttp.ClientSession, **spec: object) -> dict[str, Any]:
    async with session.post(EXPERTS, json=spec) as reply:
        view: dict[str, Any] = await reply.json()
        assert reply.status == 201, view
        return view


async def refused(session: aiohttp.ClientSession, **spec: object) -> tuple[int, Mapping[str, Any]]:
    """Status and error of a registration that must fail."""
    async with session.post(EXPERTS, json=spec) as reply:
        return reply.status, (await reply.json())["error"]


async def show(session: aiohttp.ClientSession, expert: str) -> dict[str, Any] | None:
    async with session.get(f"{EXPERTS}/{expert}") as reply:
        if reply.status == 404:
            return None
        view: dict[str, Any] = await reply.json()
        return view


async def ask(
    session: aiohttp.ClientSession, model: str, text: str = "hello there, how are you"
) -> tuple[int, str, Any]:
    """Status, the expert that answered, and the answer."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    async with session.post(CHAT, json=body) as reply:
        expert = reply.headers.get("x-composer-expert", "")
        return reply.status, expert, await reply.json()


async def until_state(
    session: aiohttp.ClientSession, expert: str, state: str, seconds: float = 15
) -> dict[str, Any]:
    """The expert's view once it is in this state."""
    view: dict[str, Any] | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                view = await show(session, expert)
                if view is not None and view["state"] == state:
                    return view
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{expert} is not {state}: {view}")


async def until_adopted(running: Running) -> None:
    """Until the gateway serves what is written by now."""
    generation = await running.state.generation()
    assert await wait_for_generation(running.state, generation) == (1, 1)
