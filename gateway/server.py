"""Running a gateway worker: the parts, the ASGI application, uvicorn."""

import gc
import socket

import uvicorn

from composer.config import Config
from composer.root import Parts, build
from gateway.app import Gateway
from gateway.chat import ChatEndpoint
from gateway.health import Health
from gateway.metrics import Metrics

KEEP_ALIVE_S = 75


async def serve(config: Config, redis_url: str, listener: socket.socket) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then finish what runs within the drain time."""
    async with build(config, redis_url) as parts:
        _settle_garbage_collector()
        await build_server(config, parts).serve(sockets=[listener])


def _settle_garbage_collector() -> None:
    """What is loaded by now stays: spare the collector looking at it for every few requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def build_server(config: Config, parts: Parts) -> uvicorn.Server:
    """The ASGI application on uvicorn, ready to serve."""
    metrics = Metrics()
    chat = ChatEndpoint(
        parts.pipeline,
        parts.dispatcher,
        metrics,
        config.limits,
        config.timeouts,
        log_requests=config.log.requests,
    )
    app = Gateway(
        chat,
        parts.pipeline,
        Health(parts.keeper, parts.conditions),
        metrics,
        config.limits,
        config.timeouts,
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.timeouts.drain_s),
        )
    )
