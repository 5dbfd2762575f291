"""A small HTTP client for the commands that talk to a running gateway."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from composer.cli.options import KEY_VARIABLE
from experts.errors import ComposerError

TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=5)

Body = bytes | AsyncIterator[bytes] | None


class GatewayError(ComposerError):
    """The gateway refused, or can't be reached. `status` is None if it did not answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def quoted(part: str) -> str:
    """A name as a part of a path. A slash in it stays: names of compositions may have one."""
    return quote(part, safe="/")


def auth_headers() -> dict[str, str]:
    """The header that carries the key of the environment, if there is one."""
    key = os.environ.get(KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


def call(
    method: str,
    url: str,
    path: str,
    *,
    json: Any = None,
    data: Body = None,
    params: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """One request to the gateway at `url`, from a command that is not asynchronous itself.

    Raises:
        GatewayError: with the gateway's own words.
    """

    async def run() -> Any:
        timeout = TIMEOUT if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            answer, _ = await request(
                session, method, url.rstrip("/") + path, json=json, data=data, params=params
            )
            return answer

    return asyncio.run(run())


async def post(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Post JSON; returns the JSON answer and its headers (lower-case names).

    Raises:
        GatewayError: with the gateway's own words.
    """
    return await request(session, "POST", url, json=body)


def fetch(url: str, path: str, *, params: Mapping[str, str] | None = None) -> bytes:
    """The bare body of an answer, for a command that is not asynchronous itself.

    Raises:
        GatewayError: with the gateway's own words.
    """

    async def run() -> bytes:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            raw, _ = await _exchange(session, "GET", url.rstrip("/") + path, params=params)
            return raw

    return asyncio.run(run())


async def request(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    json: Any = None,
    data: Body = None,
    params: Mapping[str, str] | None = None,
) -> tuple[Any, dict[str, str]]:
    """One request; returns the JSON answer (None if it is empty) and its headers (lower-case).

    Raises:
        GatewayError: with the gateway's own words.
    """
    raw, found = await _exchange(session, method, url, json=json, data=data, params=params)
    if not raw:
        return None, found
    try:
        return orjson.loads(raw), found
    except orjson.JSONDecodeError as error:
        raise GatewayError(f"no JSON from {url}") from error


async def _exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    json: Any = None,
    data: Body = None,
    params: Mapping[str, str] | None = None,
) -> tuple[bytes, dict[str, str]]:
    headers = auth_headers()
    if json is not None:
        data = orjson.dumps(json)
        headers["content-type"] = "application/json"
    try:
        async with session.request(method, url, data=data, params=params, headers=headers) as reply:
            raw = await reply.read()
            found = {key.lower(): value for key, value in reply.headers.items()}
            status = reply.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise GatewayError(f"no answer from {url}: {type(error).__name__} {error}") from error
    if status >= 300:
        raise refusal(url, status, raw)
    return raw, found


def refusal(url: str, status: int, body: bytes) -> GatewayError:
    """The error that says what the gateway said."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return GatewayError(f"status {status} from {url}, and no reason", status=status)
    return GatewayError(f"status {status}: {message}", status=status)
