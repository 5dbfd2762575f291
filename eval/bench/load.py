"""A closed-loop load generator: every connection sends its next request when it has its answer.

It runs in a process of its own and prints a `Load` as JSON. With two cores the generator takes its
share of the machine from what it measures, as every generator on the same machine does.
"""

import argparse
import asyncio
import dataclasses
import json
import re
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

_WARM_UP_S = 0.3
_DRAIN_S = 5.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_DONE = b"data: [DONE]"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What came of a run; latencies in milliseconds, from sending to the last byte.

    `requests` counts the measured ones, `sent` the warm-up too; `errors` are answers other than a
    whole 200, broken connections and answers that never came, at any time of the run.
    """

    requests: int
    sent: int
    errors: int
    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def request_body(stream: bool) -> bytes:
    """The one request that is sent, as JSON."""
    message = {"role": "user", "content": "What is the capital of France?"}
    return json.dumps(
        {"model": "auto", "messages": [message], "max_tokens": 16, "stream": stream},
        separators=(",", ":"),
    ).encode()


def request(url: str, stream: bool) -> bytes:
    """The same with its HTTP head."""
    content = request_body(stream)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Run:
    """The state that all connections share."""

    def __init__(self, request: bytes, stream: bool, seconds: float) -> None:
        self.request = request
        self.stream = stream
        self.measure_from = time.perf_counter() + _WARM_UP_S
        self.stop_at = self.measure_from + seconds
        self.latencies: list[float] = []
        self.sent = 0
        self.errors = 0

    def answered(self, started: float, whole: bool) -> bool:
        """Record an answer; True if its connection is to send again."""
        now = time.perf_counter()
        self.errors += not whole
        if whole and started >= self.measure_from and now <= self.stop_at:
            self.latencies.append(now - started)
        return now < self.stop_at


class Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._under_way = False
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._is_complete():
            return
        whole = self._buffer.startswith(b"HTTP/1.1 200") and (
            not self._run.stream or _DONE in self._buffer
        )
        self._buffer = b""
        self._under_way = False
        if self._run.answered(self._started, whole):
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.errors += self._under_way
        self.closed.set_result(None)

    def abort(self) -> None:
        """Give up an answer that does not come."""
        self._transport.abort()

    def _send(self) -> None:
        self._run.sent += 1
        self._under_way = True
        self._started = time.perf_counter()
        self._transport.write(self._run.request)

    def _is_complete(self) -> bool:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        length = _LENGTH.search(self._buffer, 0, head_end)
        if length:
            return len(self._buffer) >= head_end + 4 + int(length[1])
        return self._buffer.endswith(_LAST_CHUNK)


async def _connection(run: Run, host: str, port: int) -> None:
    """Keep one connection at work, opened anew if the server closes it."""
    loop = asyncio.get_running_loop()
    while time.perf_counter() < run.stop_at:
        try:
            _, client = await loop.create_connection(lambda: Client(run), host, port)
        except OSError:
            run.sent += 1
            run.errors += 1
            await asyncio.sleep(0.05)
            continue
        try:
            async with asyncio.timeout(run.stop_at - time.perf_counter() + _DRAIN_S):
                await asyncio.shield(client.closed)
        except TimeoutError:
            client.abort()
            await client.closed


async def generate(url: str, connections: int, seconds: float, stream: bool) -> Load:
    """Load the URL; a warm-up of 0.3 s before `seconds` is not measured."""
    target = urlsplit(url)
    host, port = target.hostname, target.port
    if host is None or port is None:
        raise ValueError(f"'{url}' is not a URL with a host and a port")
    run = Run(request(url, stream), stream, seconds)
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_connection(run, host, port))
    measured = np.array(run.latencies or [float("nan")]) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(measured, (50, 95, 99)))
    count = len(run.latencies)
    return Load(count, run.sent, run.errors, count / seconds, p50, p95, p99)


def main() -> None:
    """Load one server and print what came of it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.load", description=main.__doc__)
    parser.add_argument("url", help="URL of the server, such as http://127.0.0.1:8080")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--stream", action="store_true", help="ask for streamed answers")
    options = parser.parse_args()
    load = uvloop.run(generate(options.url, options.connections, options.seconds, options.stream))
    print(json.dumps(dataclasses.asdict(load)))


if __name__ == "__main__":
    main()
