"""The gateway as one plain ASGI application: a table of routes, errors, request ids."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from composer.config import Limits, Timeouts
from composer.dispatch import PATHS
from composer.logs import get_logger, request_id
from composer.pipeline import Pipeline
from experts.errors import ComposerError, Overloaded
from gateway.asgi import (
    JSON_TYPE,
    ClientGone,
    Header,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    replayed,
    send_answer,
    send_json,
)
from gateway.auth import NOBODY, PRINCIPAL, Authenticator
from gateway.bodies import bound_fields, parse_json, validate
from gateway.dashboard import DASHBOARD, Dashboard
from gateway.errors import INTERNAL, HttpError, error_body, http_error, retry_after
from gateway.guard import LoopbackGuard
from gateway.health import Health
from gateway.metrics import Metrics
from gateway.models import find_model, list_models
from gateway.requests import RouteRequest, session_of
from gateway.views import decision_view
from routers.types import Interface

Handler = Callable[[Scope, Receive, Send, str], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

NOT_FOUND = HttpError(404, "invalid_request_error", "not_found")
WRONG_METHOD = HttpError(405, "invalid_request_error", "method_not_allowed")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_WATCHED = "/v1/"
_ONE_MODEL = "/v1/models/"
_ADMIN = "/admin/"
_STREAMED_BODIES = (
    "/admin/v1/datasets",
    "/admin/v1/compositions/import",
    "/admin/v1/import",
)
"""Paths whose handlers read large bodies piece by piece, within their own bounds."""


class Gateway:
    """Routes requests to handlers and turns every error into an OpenAI-shaped answer."""

    def __init__(
        self,
        interfaces: Mapping[Interface, Handler],
        feedback: Handler,
        pipeline: Pipeline,
        health: Health,
        metrics: Metrics,
        limits: Limits,
        timeouts: Timeouts,
        auth: Authenticator,
        guard: LoopbackGuard | None,
        admin: Application,
    ) -> None:
        self._auth = auth
        self._admin = admin
        self._pipeline = pipeline
        self._health = health
        self._metrics = metrics
        self._limits = limits
        self._timeouts = timeouts
        self._guard = guard
        self._in_flight = 0
        self._log = get_logger("gateway")
        self._routes: dict[str, dict[str, Handler]] = {
            **{PATHS[interface]: {"POST": handler} for interface, handler in interfaces.items()},
            "/v1/feedback": {"POST": feedback},
            "/v1/route": {"POST": self._route},
            "/v1/models": {"GET": self._models},
            _ONE_MODEL: {"GET": self._model},
            "/health/live": {"GET": self._live},
            "/health/ready": {"GET": self._ready},
            "/metrics": {"GET": self._render_metrics},
            "/openapi.json": {"GET": self._openapi},
            DASHBOARD: {"GET": Dashboard()},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application serves HTTP, not {scope['type']}")
        current_id = _request_id(scope)
        token = request_id.set(current_id)
        started = _Started(send)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            if self._guard is not None:
                self._guard.check(scope)
            scope[PRINCIPAL] = self._auth.check(scope)
            handler = self._find(scope)
            if self._in_flight > self._limits.max_in_flight and scope["path"].startswith(_WATCHED):
                raise Overloaded(f"{self._limits.max_in_flight} requests are being served")
            await handler(scope, receive, started, current_id)
        except ClientGone:
            pass
        except _Unrouted as error:
            await self._refuse(started, error.http, error.message, None, current_id, error.headers)
        except ComposerError as error:
            http = http_error(error)
            wait = retry_after(error)
            headers = [(b"retry-after", wait.encode())] if wait else []
            await self._refuse(started, http, error.message, error.param, current_id, headers)
        except Exception:
            self._log.exception("unexpected error", path=scope["path"])
            message = "an unexpected error happened; the log has it under this request id"
            await self._refuse(started, INTERNAL, message, None, current_id, [])
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            request_id.reset(token)

    def _find(self, scope: Scope) -> Handler:
        path = scope["path"]
        if path.startswith(_ADMIN):
            return self._control
        prefix = DASHBOARD if Dashboard.serves(path) else _ONE_MODEL
        methods = self._routes.get(prefix if path.startswith(prefix) else path)
        if methods is None:
            raise _Unrouted(NOT_FOUND, f"there is nothing at {scope['path'][:200]!r}", [])
        method = scope["method"]
        # The server sends the head alone of what answers a HEAD request.
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(methods)
            raise _Unrouted(
                WRONG_METHOD,
                f"{path} takes {allowed}",
                [(b"allow", allowed.encode())],
            )
        return handler

    async def _refuse(
        self,
        started: "_Started",
        http: HttpError,
        message: str,
        param: str | None,
        current_id: str,
        headers: list[Header],
    ) -> None:
        self._metrics.refused(http.code)
        if started.yes:
            return
        body = error_body(http, message, param, current_id)
        own: list[Header] = [JSON_TYPE, (b"x-request-id", current_id.encode()), *headers]
        if http.status in (408, 413):
            own.append((b"connection", b"close"))
        await send_answer(started, http.status, body, own)

    async def _control(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        if scope["path"] not in _STREAMED_BODIES:
            body = await read_body(scope, receive, self._limits, self._timeouts)
            if b"json" in (header(scope, b"content-type") or b"json") and body:
                bound_fields(parse_json(body))
            receive = replayed(body, receive)
        await self._admin(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        body = await read_body(scope, receive, self._limits, self._timeouts)
        request = validate(RouteRequest, parse_json(body))
        decision = await self._pipeline.decide(
            request.model, request.query(session_of(scope, request.composer))
        )
        view = decision_view(decision, explain=request.explain)
        await send_json(send, view, [(b"x-request-id", current_id.encode())])

    async def _models(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        models = list_models(self._pipeline.view, self._pipeline.encoder)
        await send_json(send, models, [(b"x-request-id", current_id.encode())])

    async def _model(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        entry = find_model(
            self._pipeline.view, self._pipeline.encoder, scope["path"].removeprefix(_ONE_MODEL)
        )
        await send_json(send, entry, [(b"x-request-id", current_id.encode())])

    async def _live(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        await send_json(send, {"status": "live"})

    async def _ready(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        status, report = self._health.report(whole=scope[PRINCIPAL] is not NOBODY)
        await send_answer(send, status, report)

    async def _render_metrics(
        self, scope: Scope, receive: Receive, send: Send, current_id: str
    ) -> None:
        self._metrics.state_connected.set(self._health.connected)
        kind = (b"content-type", b"text/plain; version=1.0.0; charset=utf-8")
        await send_answer(send, 200, self._metrics.render(), (kind,))

    async def _openapi(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        from gateway.openapi import document_body

        # Made once, which takes long enough to keep others waiting.
        await send_answer(send, 200, await asyncio.to_thread(document_body))


class _Unrouted(Exception):
    def __init__(self, http: HttpError, message: str, headers: list[Header]) -> None:
        super().__init__(message)
        self.http = http
        self.message = message
        self.headers = headers


class _Started:
    """Remembers whether an answer has begun: after that no error can be sent."""

    __slots__ = ("_send", "yes")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.yes = False

    def __call__(self, message: Any) -> Awaitable[None]:
        self.yes = True
        return self._send(message)


def _request_id(scope: Scope) -> str:
    """The client's request id if it is a sane one, else a new one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"req-{secrets.token_hex(12)}"
