"""Requests that an expert answers: decide, dispatch, relay, record."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from composer import sse
from composer.config import Config
from composer.dispatch import Answer, Dispatcher, Failed, NobodyAnswered, RequestRefused
from composer.logs import get_logger
from composer.outcome import Outcome, OutcomeSink, Status
from composer.pipeline import Pipeline
from composer.usage import NOTHING
from experts.errors import DeadlineExceeded, NotReady
from gateway.asgi import (
    ClientGone,
    Header,
    Receive,
    Scope,
    Send,
    header_value,
    read_body,
    send_answer,
)
from gateway.auth import PRINCIPAL
from gateway.bodies import parse_json, validate
from gateway.errors import http_error
from gateway.hangup import Hangup
from gateway.requests import RelayedRequest, session_of
from routers.explain import reason_of
from routers.types import Decision, Interface, RouteQuery

_SHOWN_PRIORS = 16


class RelayEndpoint:
    """Serves the requests of one interface, one after another; keeps nothing of them."""

    def __init__(
        self,
        kind: type[RelayedRequest],
        pipeline: Pipeline,
        dispatcher: Dispatcher,
        sink: OutcomeSink,
        config: Config,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._kind = kind
        self._pipeline = pipeline
        self._dispatcher = dispatcher
        self._sink = sink
        self._limits = config.limits
        self._timeouts = config.timeouts
        self._log_requests = config.log.requests
        self._store_prompts = config.stats.store_prompts
        self._clock = clock
        self._log = get_logger(kind.interface)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        start = self._clock()
        body = await read_body(scope, receive, self._limits, self._timeouts)
        payload = parse_json(body)
        request = validate(self._kind, payload)
        await self.relay(request, payload, scope, receive, send, request_id, start)

    async def relay(
        self,
        request: RelayedRequest,
        payload: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        start: float,
    ) -> None:
        """Have an expert answer `request`, which was read from `payload`."""
        query = request.query(session_of(scope, request.composer))
        payload = request.outgoing(payload)
        key = scope[PRINCIPAL].key
        async with Hangup(receive) as hangup:
            decision = await self._pipeline.decide(request.model, query)
            exchange = _Exchange(self, query, decision, key, request_id, start)
            try:
                await exchange.run(payload, send, explain=request.explain)
            except asyncio.CancelledError as cancelled:
                if hangup.happened:
                    exchange.record("cancelled", 499, error="the client hung up")
                    raise
                # The drain time is over: who still waits is told so, as an error like any other.
                await exchange.break_off(send)
                message = "the gateway is shutting down: send the request again"
                raise NotReady(message) from cancelled
        if hangup.happened:
            raise ClientGone


class _Exchange:
    """One request from its decision to its end."""

    def __init__(
        self,
        endpoint: RelayEndpoint,
        query: RouteQuery,
        decision: Decision,
        key: str,
        request_id: str,
        start: float,
    ) -> None:
        self._endpoint = endpoint
        self._query = query
        self._decision = decision
        self._key = key
        self._request_id = request_id
        self._start = start
        self._answer: Answer | None = None
        self._failed: Failed = ()
        self._first_token_ms: float | None = None

    @property
    def _interface(self) -> Interface:
        return self._query.needs.interface

    async def run(self, payload: dict[str, Any], send: Send, *, explain: bool) -> None:
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(endpoint._timeouts.request_s):
                self._answer = await endpoint._dispatcher.answer(
                    self._decision,
                    self._interface,
                    payload,
                    self._request_id,
                    self._key,
                    self._query.text,
                )
        except TimeoutError as error:
            self.record("error", 504, error="deadline exceeded")
            raise DeadlineExceeded(
                f"no expert answered within {endpoint._timeouts.request_s:g} s"
            ) from error
        except RequestRefused as refusal:
            self._failed = refusal.failed
            self.record("error", refusal.status, error="refused by the expert")
            await send_answer(send, refusal.status, refusal.body, self._headers())
            return
        except NobodyAnswered as nobody:
            self._failed = nobody.failed
            self.record("error", http_error(nobody.error).status, error=nobody.error.message)
            raise nobody.error from nobody
        self._failed = self._answer.failed
        try:
            await self._relay(send, explain)
        except TimeoutError as error:
            self.record("cancelled", 499, error="the client did not read its answer")
            raise ClientGone from error

    async def _relay(self, send: Send, explain: bool) -> None:
        assert self._answer is not None
        if self._answer.rest is None:
            await self._keep_session(self._answer.expert)
            async with self._reading():
                await send_answer(send, 200, self._answer.body, self._headers(explain))
            self.record("ok", 200)
        else:
            self._first_token_ms = self._elapsed_ms()
            await self._relay_stream(send, self._headers(explain))

    async def _relay_stream(self, send: Send, headers: list[Header]) -> None:
        assert self._answer is not None
        assert self._answer.rest is not None
        rest = self._answer.rest
        keeping: asyncio.Task[None] | None = None
        if self._query.session:
            # Beside the stream, which must not wait for it; before the stream's end.
            keeping = asyncio.create_task(self._keep_session(self._answer.expert))
        try:
            headers.append((b"cache-control", b"no-store"))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send_part(send, self._answer.body)
            async for data in rest:
                await self._send_part(send, data)
            if keeping is not None:
                await keeping
            await send({"type": "http.response.body", "body": b""})
        finally:
            rest.close()
            if keeping is not None:
                keeping.cancel()
        if rest.error is None:
            self.record("ok", 200)
        else:
            self.record("error", 200, error=rest.error)

    async def _keep_session(self, expert: str) -> None:
        """Before the client has its whole answer: its next turn may come to another worker."""
        if self._query.session:
            await self._endpoint._pipeline.keep(self._query, self._decision, expert)

    async def _send_part(self, send: Send, data: bytes) -> None:
        async with self._reading():
            await send({"type": "http.response.body", "body": data, "more_body": True})

    def _reading(self) -> asyncio.Timeout:
        """The deadline for the client to take what is sent to it."""
        return asyncio.timeout(self._endpoint._timeouts.idle_s)

    async def break_off(self, send: Send) -> None:
        """The gateway stops before the answer's end: a stream gets a last, proper event."""
        self.record("error", 503, error="the gateway is shutting down")
        if self._answer is not None and self._answer.rest is not None:
            event = sse.error_event("the gateway is shutting down", "shutting_down")
            await send({"type": "http.response.body", "body": event})

    def record(self, status: Status, http_status: int, error: str | None = None) -> None:
        answer = self._answer
        usage = answer.usage() if answer is not None else NOTHING
        outcome = Outcome(
            decision_id=self._decision.id,
            expert=answer.expert if answer is not None else None,
            status=status,
            http_status=http_status,
            failed=self._failed,
            first_token_ms=self._first_token_ms,
            total_ms=self._elapsed_ms(),
            streamed=answer is not None and answer.rest is not None,
            error=error,
            interface=self._interface,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            estimated=usage.estimated,
            cost_usd=usage.cost_usd,
            key=self._key,
            prompt=self._query.text if self._endpoint._store_prompts else "",
        )
        self._endpoint._sink.record(self._decision, outcome)
        if self._endpoint._log_requests or status != "ok":
            self._log(outcome)

    def _log(self, outcome: Outcome) -> None:
        decision = self._decision
        write = self._endpoint._log.info if outcome.status == "ok" else self._endpoint._log.warning
        write(
            "request",
            decision=decision.id,
            expert=outcome.expert,
            category=decision.category,
            cache=decision.cache,
            status=outcome.status,
            http_status=outcome.http_status,
            failed=outcome.failed or None,
            route_ms=round(decision.route_ms, 3),
            total_ms=round(outcome.total_ms, 1),
            error=outcome.error,
        )

    def _elapsed_ms(self) -> float:
        return (self._endpoint._clock() - self._start) * 1000

    def _headers(self, explain: bool = False) -> list[Header]:
        decision, answer = self._decision, self._answer
        headers = [
            (b"content-type", answer.content_type if answer is not None else b"application/json"),
            (b"x-request-id", self._request_id.encode()),
            (b"x-composer-decision", decision.id.encode()),
            (b"x-composer-category", header_value(decision.category)),
            (b"x-composer-cache", decision.cache.encode()),
            (b"x-composer-route-ms", f"{decision.route_ms:.2f}".encode()),
        ]
        if answer is not None:
            headers.append((b"x-composer-expert", answer.expert.encode()))
            headers.append((b"x-composer-attempts", str(answer.attempts).encode()))
        if explain:
            probability = f"{decision.scores.category_probability:.4f}".encode()
            headers.append((b"x-composer-category-probability", probability))
            headers.append((b"x-composer-reason", header_value(reason_of(decision))))
            if answer is not None and answer.prior:
                headers.append((b"x-composer-prior", header_value(_shown(answer.prior))))
        return headers


def _shown(prior: Mapping[str, float]) -> str:
    """A mixer's prior by expert, the strongest first."""
    strongest = sorted(prior.items(), key=lambda item: -item[1])[:_SHOWN_PRIORS]
    return ", ".join(f"{name}={value:g}" for name, value in strongest)
