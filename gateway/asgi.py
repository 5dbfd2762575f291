"""The little of ASGI that the data plane needs: read a bounded body, send an answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson

from composer.config import Limits, Timeouts
from experts.errors import TooLarge, TooSlow

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Header = (b"content-type", b"application/json")

DISCARD_S = 5.0
DISCARD_BYTES = 64 << 20


class ClientGone(Exception):
    """The client hung up before its request was read or answered."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def header_value(text: str) -> bytes:
    """Text as a header value: what is not printable ASCII is percent-encoded."""
    return (
        text.encode() if text.isascii() and text.isprintable() else quote(text, " /,;:'").encode()
    )


async def read_body(scope: Scope, receive: Receive, limits: Limits, timeouts: Timeouts) -> bytes:
    """The whole request body, within its bound and its deadline.

    Raises:
        TooLarge, TooSlow: over the bound, or not in time.
        ClientGone: the client hung up.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limits.max_body_bytes:
        await discard(receive)
        raise _too_large(limits)
    message = await _receive(receive, timeouts)
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return _checked(body, limits)
    parts = bytearray(body)
    try:
        async with asyncio.timeout(timeouts.body_s):
            while message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts += message.get("body", b"")
                if len(parts) > limits.max_body_bytes:
                    if message.get("more_body", False):
                        await discard(receive)
                    raise _too_large(limits)
    except TimeoutError as error:
        raise _too_slow(timeouts) from error
    return _checked(bytes(parts), limits)


async def discard(receive: Receive) -> None:
    """Read on for a while: a client that still sends when it is answered may lose the answer.

    Call only while more of the body is to come.
    """
    discarded = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while discarded <= DISCARD_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _receive(receive: Receive, timeouts: Timeouts) -> Message:
    try:
        async with asyncio.timeout(timeouts.body_s):
            message = await receive()
    except TimeoutError as error:
        raise _too_slow(timeouts) from error
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _checked(body: bytes, limits: Limits) -> bytes:
    if len(body) > limits.max_body_bytes:
        raise _too_large(limits)
    return body


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the request body is over {limits.max_body_bytes} bytes: send less")


def _too_slow(timeouts: Timeouts) -> TooSlow:
    return TooSlow(f"the request body did not arrive within {timeouts.body_s:g} s")


async def send_answer(
    send: Send, status: int, body: bytes, headers: Iterable[Header] = (JSON_TYPE,)
) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any, headers: Iterable[Header] = ()) -> None:
    await send_answer(send, 200, orjson.dumps(value), (JSON_TYPE, *headers))
