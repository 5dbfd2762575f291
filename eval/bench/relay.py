"""The yardstick: the least that a Python gateway can do.

One ASGI function reads the body, parses the JSON, sends the body on through one pooled client, and
returns the answer. What Composer's gateway takes beyond this is its own.
"""

import argparse
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import uvicorn

from eval.bench.listening import announce

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_DEADLINE = aiohttp.ClientTimeout(total=30)


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/v1/chat/completions"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._relay(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_DEADLINE) as self._session:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _relay(self, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        streams = orjson.loads(body).get("stream", False)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            if streams:
                await self._start(send, answer, [])
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body"})
            else:
                content = await answer.read()
                await self._start(send, answer, [(b"content-length", b"%d" % len(content))])
                await send({"type": "http.response.body", "body": content})

    async def _start(
        self, send: Send, answer: aiohttp.ClientResponse, headers: list[tuple[bytes, bytes]]
    ) -> None:
        headers.append((b"content-type", answer.content_type.encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})


def main() -> None:
    """Run the bare relay: uvicorn, one worker, uvloop and httptools, no access log."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.relay", description=main.__doc__)
    parser.add_argument("upstream", help="URL of the upstream")
    config = uvicorn.Config(
        Relay(parser.parse_args().upstream),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
    )
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        announce(listener)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
