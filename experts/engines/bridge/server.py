"""The bridge's HTTP server: three calls of the OpenAI API, each one call of LiteLLM."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import litellm
from aiohttp import web

from experts.engines.bridge.calls import address_of, arguments_of, key_of
from experts.engines.bridge.errors import BridgeError, bridge_error

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BUSY_RETRY_S = 1.0
NO_KEY = "none"

log = logging.getLogger(__name__)

Call = Callable[..., Awaitable[Any]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """`request_s` until an answer begins, or is whole; `idle_s` between pieces of a stream."""

    max_body_bytes: int
    max_in_flight: int
    request_s: float
    idle_s: float


def serve(host: str, port: int, bounds: Bounds, *, drain_s: float) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs within `drain_s`."""
    quiet_litellm()
    web.run_app(
        Bridge(bounds).application(),
        host=host,
        port=port,
        print=lambda *_: log.info("serving on port %d", port),
        access_log=None,
        shutdown_timeout=drain_s,
        handler_cancellation=True,
    )
    return 0


def quiet_litellm() -> None:
    """No telemetry, no callbacks, no retries of its own, nothing of a request in any log."""
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.num_retries = 0
    litellm.drop_params = False
    for hooks in ("callbacks", "input_callback", "success_callback", "failure_callback"):
        setattr(litellm, hooks, [])
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Bridge:
    """The handlers. Nothing is kept from one request to the next."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._in_flight = 0

    def application(self) -> web.Application:
        app = web.Application(
            client_max_size=self._bounds.max_body_bytes, middlewares=[_only_this_machine]
        )
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._handler("chat", litellm.acompletion))
        app.router.add_post(
            "/v1/completions", self._handler("completions", litellm.atext_completion)
        )
        app.router.add_post("/v1/embeddings", self._handler("embeddings", litellm.aembedding))
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "in_flight": self._in_flight})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    def _handler(self, interface: str, call: Call) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            key = key_of(request.headers.get("authorization"))
            try:
                async with self._place():
                    return await self._relay(request, interface, call, key)
            except Exception as error:
                known = bridge_error(error, key)
                log.warning(
                    "request %s: %s, status %d",
                    request.headers.get("x-request-id", "-")[:128],
                    type(error).__name__,
                    known.status,
                )
                return _refusal(known)

        return handle

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._in_flight >= self._bounds.max_in_flight:
            raise BridgeError(
                429, f"{self._in_flight} requests are being served", retry_after_s=BUSY_RETRY_S
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _relay(
        self, request: web.Request, interface: str, call: Call, key: str | None
    ) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise BridgeError(415, "the content type must be application/json")
        arguments = arguments_of(interface, await self._body(request))
        arguments["api_base"] = address_of(request.headers.get("x-composer-api-base"))
        # Without any key LiteLLM would look for one of its own.
        arguments["api_key"] = key or NO_KEY
        try:
            async with asyncio.timeout(self._bounds.request_s):
                answer = await call(
                    **arguments, timeout=self._bounds.request_s, max_retries=0, num_retries=0
                )
                if not arguments.get("stream"):
                    return web.json_response(_plain(answer.model_dump()), dumps=_dumps)
                # What fails before the first piece still gets a status of its own.
                pieces = aiter(answer)
                first = await anext(pieces, None)
        except TimeoutError:
            raise BridgeError(504, "the provider did not answer in time") from None
        try:
            return await self._stream(request, first, pieces, key)
        finally:
            await _close(answer)

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._bounds.idle_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            limit = self._bounds.max_body_bytes
            raise BridgeError(413, f"the request body is over {limit} bytes") from None
        except TimeoutError:
            raise BridgeError(408, "the request body did not arrive in time") from None

    async def _stream(
        self, request: web.Request, first: Any, pieces: AsyncIterator[Any], key: str | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-cache"}
        )
        await response.prepare(request)
        piece = first
        while piece is not None:
            await response.write(_event(_dumps(_plain(piece.model_dump(exclude_none=True)))))
            try:
                async with asyncio.timeout(self._bounds.idle_s):
                    piece = await anext(pieces, None)
            except Exception as error:
                stalled = BridgeError(504, "the provider's stream stalled")
                known = stalled if isinstance(error, TimeoutError) else bridge_error(error, key)
                log.warning("stream broken: %s", type(error).__name__)
                await response.write(_event(_dumps(known.body())))
                return response
        await response.write(_event("[DONE]"))
        return response


async def _close(answer: Any) -> None:
    """End a stream at the provider, whether or not it was read to its end."""
    for owner in (answer, getattr(answer, "completion_stream", None)):
        close = getattr(owner, "aclose", None)
        if close is not None:
            await close()
            return


@web.middleware
async def _only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a `Host` that is not loopback: a web page that had its name rebound to this one."""
    try:
        host = urlsplit(f"//{request.host}").hostname
    except ValueError:
        host = None
    if host not in LOOPBACK:
        return _refusal(BridgeError(403, "the Host header names a host that is not this machine"))
    return await handler(request)


def _refusal(error: BridgeError) -> web.Response:
    wait = {} if error.retry_after_s is None else {"retry-after": f"{error.retry_after_s:g}"}
    return web.json_response(error.body(), status=error.status, headers=wait, dumps=_dumps)


def _plain(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without a usage of no tokens at all: LiteLLM makes it up where none was told."""
    usage = answer.get("usage")
    if isinstance(usage, dict) and not usage.get("total_tokens"):
        del answer["usage"]
    return answer


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
