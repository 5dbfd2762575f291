"""One attempt at one expert's engine over HTTP: send, then read with bounds and deadlines."""

import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson

from composer.config import Limits, Timeouts
from composer.state import Endpoint

FailureKind = Literal["connection", "timeout", "overloaded", "server", "refused", "broken"]
MAX_ERROR_BYTES = 64 << 10
MAX_RETRY_AFTER_S = 3600


class UpstreamFailure(Exception):
    """An attempt failed before any answer reached the client; another expert may be asked.

    `status` and `body` are the engine's own, where it answered at all.
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        status: int = 502,
        body: bytes = b"",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s

    @property
    def engine_is_down(self) -> bool:
        return self.kind in ("connection", "timeout")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose head has arrived with status 200."""

    response: aiohttp.ClientResponse

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamFailure: the connection broke, or the body is over `limit` bytes.
        """
        try:
            return await _bounded(self.response, limit)
        except TimeoutError as error:
            raise UpstreamFailure("timeout", "its answer stalled", status=504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailure("connection", f"its answer broke off ({_name(error)})") from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes as they come. Raises UpstreamFailure when the connection breaks or stalls."""
        try:
            async for data in self.response.content.iter_any():
                yield data
        except TimeoutError as error:
            raise UpstreamFailure("timeout", "its stream stalled", status=504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailure("connection", f"its stream broke ({_name(error)})") from error

    def close(self) -> None:
        """Drop the connection unless the answer was read to its end: the engine then stops."""
        if self.response.content.at_eof():
            self.response.release()
        else:
            self.response.close()


class UpstreamClient:
    """The one pooled HTTP client of a gateway worker."""

    def __init__(
        self, limits: Limits, timeouts: Timeouts, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._limits = limits
        self._timeouts = timeouts
        self._environ = environ
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(
                total=self._timeouts.request_s,
                sock_connect=self._timeouts.connect_s,
                sock_read=self._timeouts.idle_s,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            json_serialize=_no_json,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, endpoint: Endpoint, path: str, body: bytes, request_id: str) -> Reply:
        """Post `body` and wait for the head of the answer.

        Raises:
            UpstreamFailure: no connection, a deadline passed, or a status other than 200.
        """
        assert self._session is not None
        headers = {
            "content-type": "application/json",
            "x-request-id": request_id,
            # Bounds are on bytes as they come: a compressed answer could be any size.
            "accept-encoding": "identity",
        }
        key = ""
        if endpoint.api_key_env is not None:
            key = self._environ.get(endpoint.api_key_env, "")
            headers["authorization"] = f"Bearer {key}"
        if endpoint.api_base is not None:
            headers["x-composer-api-base"] = endpoint.api_base
        url = endpoint.base_url + path
        try:
            response = await self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            )
        except TimeoutError as error:
            raise UpstreamFailure("timeout", "it did not answer in time", status=504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailure("connection", f"no connection ({_name(error)})") from error
        if response.status == 200:
            return Reply(response)
        raise await _failure(response, key)


async def _failure(response: aiohttp.ClientResponse, key: str) -> UpstreamFailure:
    """What a status other than 200 means for the request. `key` is kept out of what is said."""
    try:
        body = await _bounded(response, MAX_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError, UpstreamFailure):
        body = b""
    finally:
        response.close()
    status = response.status
    if status in (401, 403):
        body = b'{"error": {"message": "its key was refused"}}'
    elif key:
        body = body.replace(key.encode(), b"[key]")
    kind: FailureKind = "refused"
    if status == 429:
        kind = "overloaded"
    elif status >= 500 or status in (401, 403, 404, 408) or status < 400:
        kind = "server"
    return UpstreamFailure(
        kind,
        f"status {status}: {error_message(body)}",
        status=status,
        body=body,
        retry_after_s=_seconds(response.headers.get("retry-after")),
    )


def error_message(body: bytes) -> str:
    """The message of an OpenAI-shaped error body, shortened; empty if there is none."""
    error = _error_object(body)
    message = error.get("message") if error else None
    return message[:300] if isinstance(message, str) else ""


def error_code(body: bytes) -> str | None:
    """The code of an OpenAI-shaped error body."""
    error = _error_object(body)
    code = error.get("code") if error else None
    return code if isinstance(code, str) else None


def _error_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return error if isinstance(error, dict) else None


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    plain = "content-encoding" not in response.headers
    if plain and response.content_length is not None and response.content_length <= limit:
        return await response.read()
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > limit:
            raise UpstreamFailure("broken", f"its answer is over {limit} bytes")
    return bytes(data)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds <= MAX_RETRY_AFTER_S else None


def _name(error: BaseException) -> str:
    return type(error).__name__


def _no_json(_: Any) -> str:
    raise TypeError("bodies are bytes")
