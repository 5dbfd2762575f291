"""The HTTP face of the engine: a plain ASGI application."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from experts.engines.embedded.answers import Shape, error_event, usage
from experts.engines.embedded.engine import Answer, ClientGone, Engine
from experts.engines.embedded.protocol import ApiError, ChatBody, CompletionBody, parse_body
from experts.engines.embedded.requests import Progress

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 4 << 20
_BODY_DEADLINE_S = 30.0
_SEND_DEADLINE_S = 60.0
_JSON = b"application/json"


class EngineApp:
    """Routes requests of the OpenAI API, health and metrics to an `Engine`."""

    def __init__(self, engine: Engine, *, started: int, api_key: str | None = None) -> None:
        self._engine = engine
        self._started = started
        self._authorization = f"Bearer {api_key}".encode() if api_key else None
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._find(scope)(scope, receive, send)
        except ApiError as error:
            await _respond(send, error.status, error.body(), headers=_error_headers(error))
        except ClientGone:
            log.debug("the client of %s hung up", scope["path"])

    def _find(self, scope: Scope) -> Handler:
        path: str = scope["path"]
        method, handler = self._routes.get(path, ("", None))
        if handler is None:
            raise ApiError(404, f"there is nothing at {path}", code="not_found")
        if scope["method"] != method:
            raise ApiError(405, f"{path} takes {method} only", code="method_not_allowed")
        if path.startswith("/v1/") and self._authorization is not None:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._authorization):
                raise ApiError(
                    401, "a valid Authorization: Bearer is needed", code="invalid_api_key"
                )
        return handler

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        models = [
            {"id": name, "object": "model", "created": self._started, "owned_by": "composer"}
            for name in self._engine.names
        ]
        await _respond(send, 200, orjson.dumps({"object": "list", "data": models}))

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = "ok" if self._engine.runner.healthy else "failed"
        if state == "ok" and self._engine.draining:
            state = "draining"
        await _respond(send, 200 if state == "ok" else 503, orjson.dumps({"status": state}))

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = self._engine.metrics.render()
        await _respond(send, 200, text, content_type=b"text/plain; version=0.0.4; charset=utf-8")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = parse_body(ChatBody, await _read_body(scope, receive))
        await self._answer(body, receive, send)

    async def _completion(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = parse_body(CompletionBody, await _read_body(scope, receive))
        await self._answer(body, receive, send)

    async def _answer(self, body: ChatBody | CompletionBody, receive: Receive, send: Send) -> None:
        answer = await self._engine.start_answer(body)
        watcher = asyncio.create_task(_watch(receive, answer))
        try:
            if body.stream:
                await _stream(Shape(body), answer, send)
            else:
                await _whole(Shape(body), answer, send)
        finally:
            self._engine.end_answer(answer)
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


async def _whole(shape: Shape, answer: Answer, send: Send) -> None:
    pieces: list[str] = []
    while True:
        progress = _checked(await answer.next())
        pieces.append(progress.text)
        if progress.finish is not None:
            counts = usage(answer.prompt_tokens, progress.completion_tokens)
            await _respond(send, 200, shape.whole("".join(pieces), progress.finish, counts))
            return


async def _stream(shape: Shape, answer: Answer, send: Send) -> None:
    # The status waits for the first token: what fails before it is a plain error that a gateway
    # can still answer by asking another expert.
    progress = _checked(await answer.next())
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    data = shape.opening()
    while True:
        data += shape.piece(progress.text)
        if progress.finish is not None:
            counts = usage(answer.prompt_tokens, progress.completion_tokens)
            await _send_part(send, data + shape.closing(progress.finish, counts), more=False)
            return
        if data:
            await _send_part(send, data, more=True)
        data = b""
        try:
            progress = _checked(await answer.next())
        except ApiError as error:
            await _send_part(send, error_event(error), more=False)
            return


async def _send_part(send: Send, data: bytes, *, more: bool) -> None:
    try:
        async with asyncio.timeout(_SEND_DEADLINE_S):
            await send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError as error:
        raise ClientGone from error


def _checked(progress: Progress) -> Progress:
    if progress.finish == "error":
        raise ApiError(500, progress.error or "the engine failed", code="engine_error")
    if progress.finish == "cancelled":
        raise ClientGone
    return progress


async def _watch(receive: Receive, answer: Answer) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    answer.hang_up()


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    too_large = ApiError(413, f"the body is over {_MAX_BODY_BYTES} bytes", code="request_too_large")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if int(announced) > _MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > _MAX_BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time", code="request_timeout") from error


def _error_headers(error: ApiError) -> list[tuple[bytes, bytes]]:
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.status in (408, 413):
        # The rest of the body is not read: the connection can't carry another request.
        headers.append((b"connection", b"close"))
    return headers


async def _respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = _JSON,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    fields = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
