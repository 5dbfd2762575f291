"""One client connection, with bounds on the heads of its requests."""

import asyncio
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import HttpError, error_body

MAX_HEAD_BYTES = 64 << 10
HEAD_S = 30.0
NOT_HTTP = HttpError(400, "invalid_request_error", "invalid_http")


class BoundedProtocol(HttpToolsProtocol):
    """Drops a connection whose next request head is too long or does not arrive in time.

    An idle connection between two requests is bounded by the server's keep-alive time.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes: int | None = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP at all is refused in the same shape as all else."""
        body = error_body(NOT_HTTP, msg, None, f"req-{secrets.token_hex(12)}")
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_bytes is not None:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._drop()
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_S, self._drop)

    def _head_arrived(self) -> None:
        self._head_bytes = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop(self) -> None:
        self._head_arrived()
        self.transport.abort()
