"""A mock OpenAI server, so fast that it is not what is measured.

This is the one place where a mock stands for a real part: the benchmark measures the gateway, and
an engine would hide it behind its own time. It speaks just enough HTTP/1.1 for a well-behaved
client: keep-alive, pipelining, bodies with a `Content-Length`. `POST` gets one fixed chat
completion, or a fixed stream of events if the body asks for one; `GET` gets a list of one model.
"""

import argparse
import asyncio
import re
from typing import cast

import orjson
import uvloop

from eval.bench.listening import announce, until_terminated

MODEL = "upstream"

_WORDS = ("The", " capital", " of", " France", " is", " Paris", ".")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WANTS_STREAM = re.compile(rb'"stream": *true')
_COMMON = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": MODEL}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


def _json_response(value: object) -> bytes:
    body = orjson.dumps(value)
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _stream_response() -> list[bytes]:
    events = [
        _event({"role": "assistant", "content": ""}),
        *(_event({"content": word}) for word in _WORDS),
        _event({}, "stop"),
        b"data: [DONE]\n\n",
    ]
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return [head, *(b"%x\r\n%s\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]


COMPLETION = _json_response(
    {
        **_COMMON,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(_WORDS)},
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
)
STREAM = _stream_response()
MODELS = _json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head_end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head_end)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            self._answer(self._buffer[:end], head_end)
            self._buffer = self._buffer[end:]

    def _answer(self, request: bytes, head_end: int) -> None:
        if request.startswith(b"GET"):
            self._transport.write(MODELS)
        elif _WANTS_STREAM.search(request, head_end):
            for part in STREAM:
                self._transport.write(part)
        else:
            self._transport.write(COMPLETION)


async def serve(port: int) -> None:
    """Answer on loopback until SIGTERM or SIGINT."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    async with server:
        announce(server.sockets[0])
        await until_terminated()


def main() -> None:
    """Run the mock upstream."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.upstream", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for any free one, which is printed")
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
