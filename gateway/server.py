"""Running a gateway worker: the parts, the ASGI application, uvicorn."""

import asyncio
import gc
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import uvicorn

from composer.config import Config
from composer.keys import has_admin, no_admin_key
from composer.outcome import FanOut
from composer.root import Parts, build
from composer.snapshots import SnapshotKeeper
from composer.state import EMPTY_SNAPSHOT, KeyRecord
from gateway.admin import create_admin
from gateway.app import Gateway
from gateway.auth import Authenticator
from gateway.connection import BoundedProtocol
from gateway.embeddings import EmbeddingsEndpoint
from gateway.feedback import FeedbackEndpoint
from gateway.guard import LoopbackGuard
from gateway.health import Health
from gateway.metrics import Metrics
from gateway.relay import RelayEndpoint
from gateway.requests import ChatRequest, CompletionRequest, EmbeddingsRequest

KEEP_ALIVE_S = 75
LAST_WORDS_S = 1.0


class _Server(uvicorn.Server):
    """Stops on a signal and returns, where uvicorn would raise the signal again: what is left to do
    after serving must be done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.should_exit = True


async def serve(config: Config, redis_url: str, listeners: list[socket.socket]) -> None:
    """Serve on `listeners` until SIGTERM or SIGINT, then finish what runs within the drain time."""
    async with build(config, redis_url) as parts:
        _require_admin_key(config, parts.keeper)
        _settle_garbage_collector()
        server = build_server(config, parts)
        await server.serve(sockets=listeners)
        if server.server_state.tasks:
            # Requests that outlived the drain time were cancelled: let them say so and be counted.
            await asyncio.wait(server.server_state.tasks, timeout=LAST_WORDS_S)


def _require_admin_key(config: Config, keeper: SnapshotKeeper) -> None:
    """
    Raises:
        ConfigError: requests need keys, and nobody has one that may make others.
    """
    keys = _known_keys(keeper)
    if config.keys_required and keys is not None and not has_admin(keys.values()):
        raise no_admin_key(config)


def _known_keys(keeper: SnapshotKeeper) -> Mapping[str, KeyRecord] | None:
    """The keys by digest; None while the state has never been read."""
    snapshot = keeper.view.snapshot
    return None if snapshot is EMPTY_SNAPSHOT else snapshot.keys


def _settle_garbage_collector() -> None:
    """What is loaded by now stays: spare the collector looking at it for every few requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def build_server(config: Config, parts: Parts) -> uvicorn.Server:
    """The ASGI application on uvicorn, ready to serve."""
    metrics = Metrics()
    sink = FanOut(metrics, parts.recorder.collector)
    relays = {
        kind.interface: RelayEndpoint(kind, parts.pipeline, parts.dispatcher, sink, config)
        for kind in (ChatRequest, CompletionRequest, EmbeddingsRequest)
    }
    own = EmbeddingsEndpoint(parts.pipeline, parts.batcher, relays["embeddings"], config)
    health = Health(parts.keeper, parts.conditions)
    parts.recorder.on_flush = lambda backlog: metrics.follow(backlog, connected=health.connected)
    app = Gateway(
        {**relays, "embeddings": own},
        FeedbackEndpoint(parts.state, metrics, config.limits, config.timeouts),
        parts.pipeline,
        health,
        metrics,
        config.limits,
        config.timeouts,
        Authenticator(partial(_known_keys, parts.keeper), required=config.keys_required),
        LoopbackGuard() if config.is_local else None,
        create_admin(parts),
    )
    return _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            http=BoundedProtocol,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.timeouts.drain_s),
        )
    )
