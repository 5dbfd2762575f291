"""A conversation with a running gateway: streamed turns that remember what was said."""

import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson

from composer.cli.client import GatewayError, auth_headers

PATH = "/v1/chat/completions"
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=300)
MAX_LINE = 1 << 20
MAX_ERROR = 64 << 10

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Conversation:
    """`async with` opens the connection. `show` gets each piece of an answer as it comes, `tell`
    the expert and the reason before it."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        system: str | None,
        session: str | None,
        sticky: bool,
        switch_gain: float,
        show: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.model = model
        self._url = url.rstrip("/")
        self._system = system
        self._sticky = sticky
        self._switch_gain = switch_gain
        self._show = show
        self._tell = tell
        self._client: aiohttp.ClientSession | None = None
        self.start_anew(session)

    def start_anew(self, session: str | None = None) -> None:
        """Forget what was said, and begin another session."""
        self._session = session or uuid.uuid4().hex
        self._messages: list[dict[str, str]] = []
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    async def open(self) -> None:
        self._client = aiohttp.ClientSession(
            timeout=TIMEOUT, headers=auth_headers(), read_bufsize=MAX_LINE
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def say(self, text: str) -> None:
        """One turn. What came of an answer that is stopped or breaks is remembered; a turn without
        any answer is not.

        Raises:
            GatewayError: the gateway refused, can't be reached, or the answer broke off.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        answer = ""
        try:
            async for piece in self._stream(asked):
                answer += piece
                self._show(piece)
        finally:
            if answer:
                self._messages = [*asked, {"role": "assistant", "content": answer}]

    async def _stream(self, messages: list[dict[str, str]]) -> AsyncIterator[str]:
        assert self._client is not None
        options: dict[str, Any] = {"explain": True}
        if self._sticky:
            options |= {"session": self._session, "switch_gain": self._switch_gain}
        body = {"model": self.model, "messages": messages, "stream": True, "composer": options}
        url = self._url + PATH
        headers = {"content-type": "application/json"}
        try:
            async with self._client.post(url, data=orjson.dumps(body), headers=headers) as reply:
                if reply.status != 200:
                    raise GatewayError(
                        f"status {reply.status}: {_message(await reply.content.read(MAX_ERROR))}",
                        status=reply.status,
                    )
                self._tell(_why(reply.headers.get))
                async for line in reply.content:
                    if piece := _piece(line):
                        yield piece
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise GatewayError(f"no answer from {url}: {type(error).__name__} {error}") from error


def _why(header: Callable[[str, str], str]) -> str:
    """Who answers, and why, in a line."""
    attempts = header("x-composer-attempts", "1")
    tried = "" if attempts == "1" else f" (after {int(attempts) - 1} that failed)"
    return f"{header('x-composer-expert', '')}{tried}: {unquote(header('x-composer-reason', ''))}"


def _piece(line: bytes) -> str:
    """The text that a line of the stream adds, without control characters: a terminal would obey
    them.

    Raises:
        GatewayError: the line tells of an error.
    """
    data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
    if not data.startswith(b"{"):
        return ""
    if b'"error"' in data and (message := _message(data)):
        raise GatewayError(message)
    try:
        delta = orjson.loads(data)["choices"][0]["delta"]
        return _CONTROLS.sub("", delta.get("content") or "")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return ""


def _message(body: bytes) -> str:
    """The message of an OpenAI-shaped error; empty if it is none."""
    try:
        error = orjson.loads(body)["error"]
        return _CONTROLS.sub("", str(error["message"]))
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""
