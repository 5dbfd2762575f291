"""Asking the ranked experts in turn until one answers.

Before the first token a failure moves on down the ranking; after it the client gets a final error
event. A stream is "before the first token" until an event that carries output has arrived.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from composer import sse
from composer.conditions import ConditionsTracker
from composer.config import Limits
from composer.mixing import Mixing, without_internals
from composer.snapshots import SnapshotKeeper
from composer.state import Endpoint
from composer.streaming import MAX_HEAD_BYTES, Stream
from composer.upstream import (
    Reply,
    UpstreamClient,
    UpstreamFailure,
    error_code,
    error_message,
)
from composer.usage import Meter, Usage, asking_for_usage, asks_for_usage
from experts.errors import (
    ArtefactError,
    ComposerError,
    DeadlineExceeded,
    ExpertUnavailable,
    InvalidRequest,
    Overloaded,
)
from experts.null import null_answer, null_stream
from experts.spec import ExpertSpec
from routers.types import Decision, Interface

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
PATHS: Mapping[Interface, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}

UNSERVED = "unsupported_interface"
"""Code of a refusal by an engine that lacks the call of the API that was asked for."""

Payload = Mapping[str, Any]
Failed = tuple[tuple[str, str], ...]


class RequestRefused(Exception):
    """An expert refused the request as malformed: its own answer goes to the client."""

    def __init__(self, status: int, body: bytes, failed: Failed) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.failed = failed


class NobodyAnswered(Exception):
    """Every expert of the ranking was asked and failed; `error` is what the client is told."""

    def __init__(self, error: ComposerError, failed: Failed) -> None:
        super().__init__(error.message)
        self.error = error
        self.failed = failed


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that has begun.

    `body` is whole when the request was not streamed, else the bytes up to the first token;
    `rest` then yields what follows, ending with an error event if the stream broke. `prior` is what
    a mixer was told of its experts.
    """

    expert: str
    failed: Failed
    content_type: bytes
    body: bytes
    rest: Stream | None
    meter: Meter
    prior: Mapping[str, float] | None = None

    @property
    def attempts(self) -> int:
        return len(self.failed) + 1

    def usage(self) -> Usage:
        """What the answer used; of a stream, up to now."""
        return self.meter.read(self.body if self.rest is None else None)


class Dispatcher:
    """Holds what an attempt needs; keeps nothing of a request, but which experts refuse to count
    the tokens of a stream."""

    def __init__(
        self,
        keeper: SnapshotKeeper,
        client: UpstreamClient,
        conditions: ConditionsTracker,
        limits: Limits,
        clock: Callable[[], float] = time.perf_counter,
        mixing: Mixing | None = None,
    ) -> None:
        self._keeper = keeper
        self._client = client
        self._conditions = conditions
        self._limits = limits
        self._clock = clock
        self._uncounted: set[str] = set()
        self._mixing = mixing or Mixing()

    async def answer(
        self,
        decision: Decision,
        interface: Interface,
        payload: Payload,
        request_id: str,
        tenant: str = "",
        text: str = "",
    ) -> Answer:
        """Ask the decision's experts in turn. A mixer's cache is shared by one tenant's
        requests, and its prior comes from `text`, what routing read of the request.

        Raises:
            RequestRefused: an expert called the request malformed.
            NobodyAnswered: with Overloaded, DeadlineExceeded or ExpertUnavailable.
        """
        failed: list[tuple[str, str]] = []
        failures: list[UpstreamFailure] = []
        for candidate in decision.experts:
            spec = self._keeper.view.snapshot.experts.get(candidate.id)
            if spec is None:
                failed.append((candidate.id, "no longer registered"))
                continue
            start = self._clock()
            try:
                outgoing, prior = await self._outgoing(spec, payload, decision, tenant, text)
                answer = await self._attempt(
                    spec, interface, outgoing, request_id, tuple(failed), start
                )
                return replace(answer, prior=prior) if prior else answer
            except UpstreamFailure as error:
                failure = _said_plainly(error, interface)
                if failure.kind == "refused" and not _another_may_fit(failure):
                    raise _refusal(failure, tuple(failed)) from error
                if failure.engine_is_down:
                    self._conditions.failed(spec.id, failure.reason)
                failed.append((spec.id, failure.reason))
                failures.append(failure)
        raise _nobody(failures, tuple(failed))

    async def _outgoing(
        self, spec: ExpertSpec, payload: Payload, decision: Decision, tenant: str, text: str
    ) -> tuple[Payload, Mapping[str, float]]:
        """The request without what we alone may say to engines, and with it for a mixer; a mixer's
        prior."""
        if spec.kind == "mixer":
            try:
                return await self._mixing.prepare(spec, payload, decision, tenant, text)
            except ArtefactError as error:
                raise UpstreamFailure("broken", error.message) from error
        return (without_internals(payload) if spec.kind != "remote" else payload), {}

    async def _attempt(
        self,
        spec: ExpertSpec,
        interface: Interface,
        payload: Payload,
        request_id: str,
        failed: Failed,
        start: float,
    ) -> Answer:
        streamed = payload.get("stream") is True
        if spec.kind == "null":
            return self._canned(spec, interface, payload, failed)
        endpoint = self._keeper.view.snapshot.endpoints.get(spec.engine or "")
        if endpoint is None:
            raise UpstreamFailure("connection", "its engine is not running")
        meter = Meter(spec, payload)
        self._conditions.started(spec.id)
        rest: Stream | None = None
        try:
            reply = await self._send(endpoint, spec, interface, payload, request_id)
            try:
                if streamed:
                    body, rest = await self._begin_stream(reply, spec, meter)
                else:
                    body = _whole(await reply.read(self._limits.max_answer_bytes), spec)
            except BaseException:
                reply.close()
                raise
        finally:
            if rest is None:
                self._conditions.finished(spec.id)
        if rest is not None:
            self._conditions.answered(spec.id, (self._clock() - start) * 1000)
        return Answer(spec.id, failed, EVENTS if streamed else JSON, body, rest, meter)

    async def _send(
        self,
        endpoint: Endpoint,
        spec: ExpertSpec,
        interface: Interface,
        payload: Payload,
        request_id: str,
    ) -> Reply:
        """Send the request; a stream's tokens are asked for, unless the engine refuses that."""
        path = PATHS[interface]
        if (
            payload.get("stream") is True
            and not asks_for_usage(payload)
            and spec.id not in self._uncounted
        ):
            body = expert_body(spec, asking_for_usage(payload))
            try:
                return await self._client.send(endpoint, path, body, request_id)
            except UpstreamFailure as failure:
                if failure.kind != "refused" or _another_may_fit(failure):
                    raise
            reply = await self._client.send(endpoint, path, expert_body(spec, payload), request_id)
            self._uncounted.add(spec.id)
            return reply
        return await self._client.send(endpoint, path, expert_body(spec, payload), request_id)

    def _canned(
        self, spec: ExpertSpec, interface: Interface, payload: Payload, failed: Failed
    ) -> Answer:
        streamed = payload.get("stream") is True
        chat = interface == "chat"
        if streamed:
            usage = asks_for_usage(payload)
            body = b"".join(null_stream(spec, chat=chat, include_usage=usage))
        else:
            body = null_answer(spec, chat=chat)
        content_type = EVENTS if streamed else JSON
        return Answer(spec.id, failed, content_type, body, None, Meter(spec, payload))

    async def _begin_stream(
        self, reply: Reply, spec: ExpertSpec, meter: Meter
    ) -> tuple[bytes, Stream]:
        """Read up to the first event that carries output."""
        chunks = _renaming(reply.chunks(), spec) if _must_rename(spec) else reply.chunks()
        watch = sse.EndWatch()
        head = bytearray()
        seen = 0
        async for data in chunks:
            head += data
            watch.feed(data)
            for end in sse.END.finditer(head, seen):
                event = bytes(head[seen : end.start()])
                seen = end.end()
                if sse.is_error(event):
                    raise UpstreamFailure("server", "its stream began with an error")
                if sse.carries_token(event):
                    closed = partial(self._conditions.finished, spec.id)
                    whole, pending = sse.split_whole(bytes(head))
                    rest = Stream(pending, chunks, reply, watch, spec.id, meter, closed)
                    return meter.pass_on(whole), rest
            if len(head) > MAX_HEAD_BYTES:
                raise UpstreamFailure("broken", "its stream has no output at its beginning")
        raise UpstreamFailure("broken", "its stream ended before the first token")


def expert_body(spec: ExpertSpec, payload: Payload) -> bytes:
    """The request as the expert's engine gets it: its own model name, its system prompt first.

    Raises:
        InvalidRequest: the body is nested too deeply to be written again.
    """
    outgoing = {**payload, "model": spec.upstream_name}
    if spec.system_prompt is not None and "messages" in outgoing:
        outgoing["messages"] = _with_system_prompt(spec.system_prompt, outgoing["messages"])
    try:
        return orjson.dumps(outgoing)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"the request body can't be relayed: {error}") from error


def _with_system_prompt(prompt: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the expert's prompt before the conversation, joined with the client's own if any."""
    first = messages[0]
    own = first.get("content")
    if first.get("role") in ("system", "developer") and isinstance(own, str):
        return [{**first, "content": f"{prompt}\n\n{own}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def _must_rename(spec: ExpertSpec) -> bool:
    return spec.upstream_name != spec.id


def _whole(body: bytes, spec: ExpertSpec) -> bytes:
    """A whole answer, at least shaped like a JSON object; parsed only where it must change."""
    if not body.lstrip().startswith(b"{"):
        raise UpstreamFailure("broken", "its answer is not JSON")
    return _renamed(body, spec)


def _renamed(body: bytes, spec: ExpertSpec) -> bytes:
    """The answer under the expert's id, where a remote engine serves it under another name."""
    if not _must_rename(spec):
        return body
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamFailure("broken", "its answer is not JSON") from error
    if isinstance(answer, dict) and "model" in answer:
        answer["model"] = spec.id
        return orjson.dumps(answer)
    return body


async def _renaming(chunks: AsyncIterator[bytes], spec: ExpertSpec) -> AsyncIterator[bytes]:
    """Whole events, each under the expert's id."""
    pending = b""
    async for data in chunks:
        *events, pending = sse.END.split(pending + data)
        for event in events:
            yield _renamed_event(event, spec) + b"\n\n"
        if len(pending) > MAX_HEAD_BYTES:
            raise UpstreamFailure("broken", "one event of its stream is too long")
    if pending:
        yield _renamed_event(pending, spec)


def _renamed_event(event: bytes, spec: ExpertSpec) -> bytes:
    if not event.startswith(b"data: {"):
        return event
    return b"data: " + _renamed(event[6:], spec)


def _said_plainly(failure: UpstreamFailure, interface: Interface) -> UpstreamFailure:
    """An engine without the call that was asked for refuses the request: trying again won't help.

    Every engine has chats, so there a path that is not found is a fault of the engine.
    """
    if interface == "chat" or failure.status not in (404, 405):
        return failure
    reason = f"its engine does not serve {PATHS[interface]}"
    error = {"message": reason, "type": "invalid_request_error", "param": None, "code": UNSERVED}
    return UpstreamFailure("refused", reason, status=400, body=orjson.dumps({"error": error}))


def _another_may_fit(failure: UpstreamFailure) -> bool:
    """Whether a refusal speaks of this expert's limits rather than of the request."""
    return error_code(failure.body) in ("context_length_exceeded", UNSERVED)


def _refusal(failure: UpstreamFailure, failed: Failed) -> Exception:
    """The expert's own words where they have the shape of an error, else ours."""
    if error_message(failure.body):
        return RequestRefused(failure.status, failure.body, failed)
    message = f"the expert refused the request with status {failure.status} and no message"
    return NobodyAnswered(InvalidRequest(message), failed)


def _nobody(failures: list[UpstreamFailure], failed: Failed) -> Exception:
    """What the client is told: to change the request only if every expert asked for that."""
    passing = [failure for failure in failures if failure.kind != "refused"]
    if failures and not passing:
        return _refusal(failures[-1], failed)
    tried = "; ".join(f"{expert}: {reason}" for expert, reason in failed)
    last = passing[-1] if passing else None
    error: ComposerError
    if last is not None and last.kind == "overloaded":
        retry = last.retry_after_s or 1.0
        error = Overloaded(f"the experts are busy ({tried})", retry_after_s=retry)
    elif last is not None and last.kind == "timeout":
        error = DeadlineExceeded(f"no expert answered in time ({tried})")
    else:
        error = ExpertUnavailable(f"no expert could answer ({tried})", retry_after_s=2.0)
    return NobodyAnswered(error, failed)
