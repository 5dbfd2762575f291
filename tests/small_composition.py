"""A gateway in this process, over a real Redis-compatible server, with chosen experts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from composer.config import Config, load_config
from composer.processes import Command
from composer.redis_server import redis_command, socket_path
from composer.root import build
from composer.services import Service
from composer.state import (
    CompositionVersion,
    Endpoint,
    ExpertRecord,
    ExpertStatus,
    LiveRecord,
    State,
)
from experts.errors import StateUnavailable
from experts.spec import ExpertSpec
from gateway.server import build_server
from routers.artefact import save_artefact
from routers.category import linear_category_router
from routers.encoders import load_encoder
from routers.mapping import Mapping as ExpertMapping
from routers.two_step import TwoStepRouter

SENTENCES = {"greeting": "hello there, how are you", "weather": "will it rain in Rome tomorrow"}


@dataclass(frozen=True)
class Running:
    """`session` has the gateway's URL as its base."""

    url: str
    session: aiohttp.ClientSession
    redis: Service
    state: State
    redis_url: str


@asynccontextmanager
async def redis_service(folder: Path) -> AsyncIterator[tuple[Service, str]]:
    """The embedded server; yields its service and URL."""
    command = Command("redis", redis_command(folder), log=folder / "redis.log")
    async with Service(command, folder / "processes") as service:
        url = f"unix://{socket_path(folder)}"
        async with State(url) as state, asyncio.timeout(10):
            while True:
                try:
                    await state.ping()
                    break
                except StateUnavailable:
                    await asyncio.sleep(0.02)
        yield service, url


def write_artefact(
    folder: Path, cache_dir: Path, quality: Mapping[str, Mapping[str, float]]
) -> str:
    """A two-step router that knows the two sentences; `quality` is category -> expert -> score."""
    encoder = load_encoder("onnx", cache_dir, threads=1)
    anchors = encoder.encode(list(SENTENCES.values()))
    experts = tuple(next(iter(quality.values())))
    table = np.array([[quality[c][e] for e in experts] for c in SENTENCES])
    router = TwoStepRouter(
        linear_category_router(
            categories=tuple(SENTENCES),
            coefficients=anchors * 20,
            intercepts=np.zeros(2, np.float32),
            temperature=1.0,
            anchors=anchors,
            min_probability=0.6,
            min_similarity=0.3,
        ),
        ExpertMapping(tuple(SENTENCES), experts, table, table.mean(axis=0)),
    )
    return save_artefact(folder, router, name="auto", encoder=encoder.id)


@asynccontextmanager
async def small_gateway(
    folder: Path,
    cache_dir: Path,
    specs: list[ExpertSpec],
    endpoints: list[Endpoint],
    quality: Mapping[str, Mapping[str, float]],
    *,
    ready: bool = True,
    **settings: object,
) -> AsyncIterator[Running]:
    """`ready`: wait until some expert can be asked."""
    config = gateway_config(folder, cache_dir, **settings)
    version = write_artefact(folder / "artefact", cache_dir, quality)
    async with redis_service(folder) as (redis, url), State(url) as state:
        await state.migrate()
        await put_ready(state, specs)
        await state.endpoints.put({endpoint.engine: endpoint for endpoint in endpoints})
        await make_live(state, version, folder / "artefact")
        async with gateway_worker(config, url, ready=ready) as (base, session):
            yield Running(base, session, redis, state, url)


@asynccontextmanager
async def gateway_worker(
    config: Config, url: str, *, ready: bool = True
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """One gateway worker on a Redis that is there; yields its URL and a session based on it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with build(config, url) as parts:
        server = build_server(config, parts)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession(base) as session:
                if ready:
                    await until_ready(session)
                yield base, session
        finally:
            server.should_exit = True
            await task


async def put_ready(state: State, specs: Iterable[ExpertSpec]) -> None:
    """Experts that were verified, as far as the gateway knows."""
    specs = list(specs)
    await state.experts.put({spec.id: ExpertRecord(spec=spec) for spec in specs})
    await state.statuses.put({spec.id: ExpertStatus(state="ready") for spec in specs})


async def make_live(state: State, version: str, artefact: Path) -> CompositionVersion:
    record = CompositionVersion(name="auto", version=version, artefact=str(artefact))
    await state.live.put({"auto": LiveRecord(current=record)})
    return record


def gateway_config(folder: Path, cache_dir: Path, **settings: object) -> Config:
    flags = {"state_dir": str(folder), "cache_dir": str(cache_dir), **settings}
    return load_config(None, flags=flags, environ={})


async def until_ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                async with session.get("/health/ready") as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
