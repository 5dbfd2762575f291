"""The load benchmark: its parts together for a moment, and what it makes of numbers."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from eval.bench import servers
from eval.bench.gateway import start_gateway
from eval.bench.generators import own
from eval.bench.load import Load, generate
from eval.bench.report import failures, rows, table
from eval.bench.rounds import Round, Sample, Scenario, measure
from eval.bench.servers import DIRECT, GATEWAY, RELAY, Server


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    with servers.upstream() as server:
        yield server


@pytest.fixture(scope="module")
def relay(upstream: Server) -> Iterator[Server]:
    with servers.relay(upstream.url) as server:
        yield server


def post(server: Server, body: dict[str, object]) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers["content-type"], content


@pytest.mark.parametrize("stream", [False, True])
def test_the_relay_gives_the_upstreams_answer(
    upstream: Server, relay: Server, stream: bool
) -> None:
    direct = post(upstream, {"stream": stream})

    assert direct[0] == 200
    assert post(relay, {"stream": stream}) == direct
    assert direct[2].endswith(b"data: [DONE]\n\n") == stream


def test_rounds_without_errors_give_sensible_numbers(upstream: Server, relay: Server) -> None:
    scenarios = [Scenario(4, False), Scenario(1, True)]
    rounds = measure([upstream, relay], scenarios, 1, 0.25, own, lambda message: None)
    results = rows(rounds)

    assert [(row.target, row.errors) for row in results] == [(DIRECT, 0), (RELAY, 0)] * 2
    for row in results:
        assert row.rps > 50
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.cpu_us > 0
    assert results[1].of_relay == 1
    assert results[1].added_p50_to_direct_ms > 0
    assert not failures(results, scenarios[0], min_ratio=0.4)


async def serve_raw(answer: bytes, seconds: float) -> Load:
    """Load a server that sends these bytes to whatever it reads, and then hangs up."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await generate(f"http://127.0.0.1:{port}", 1, seconds, stream=False)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oh no\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\ncut short",
        b"",
    ],
    ids=["not 200", "cut short", "no answer"],
)
async def test_every_request_is_an_error_when_none_is_answered_whole(answer: bytes) -> None:
    load = await serve_raw(answer, seconds=0.05)

    assert load.requests == 0
    assert load.errors == load.sent > 0


async def test_errors_are_counted_when_nothing_listens(unused_tcp_port: int) -> None:
    load = await generate(f"http://127.0.0.1:{unused_tcp_port}", 2, 0.05, stream=False)

    assert load.errors == load.sent > 0


def one_round(gateway_rps: float, relay_rps: float, errors: int = 0) -> Round:
    load = Load(100, 120, 0, 1000.0, 1.0, 2.0, 3.0)
    return Round(
        Scenario(16, False),
        {
            DIRECT: Sample(load, 5.0),
            RELAY: Sample(replace(load, rps=relay_rps, p50_ms=2.0), 100.0),
            GATEWAY: Sample(replace(load, rps=gateway_rps, p50_ms=4.5, errors=errors), 200.0),
        },
    )


def test_targets_are_compared_within_their_round() -> None:
    results = rows([one_round(50, 100), one_round(500, 1000), one_round(60, 100)])
    gateway = results[2]

    assert gateway.of_relay == 0.5
    assert (gateway.rps, gateway.rps_min, gateway.rps_max) == (60, 50, 500)
    assert gateway.added_p50_to_relay_ms == 2.5
    assert gateway.added_p50_to_direct_ms == 3.5
    assert "0.50" in table(results)


@pytest.mark.parametrize(
    ("taken", "reasons"),
    [
        (one_round(41, 100), 0),
        (one_round(39, 100), 1),
        (one_round(41, 100, errors=1), 1),
        (one_round(0, 0), 1),
    ],
    ids=["fast enough", "too slow", "failed requests", "no answers"],
)
def test_the_verdict_fails_when_the_gateway_is_slow_or_a_request_failed(
    taken: Round, reasons: int
) -> None:
    assert len(failures(rows([taken]), Scenario(16, False), min_ratio=0.4)) == reasons


def test_the_gateway_answers_from_its_cache_when_the_bench_has_started_it(upstream: Server) -> None:
    with start_gateway(upstream.url) as gateway:
        load = own(gateway.url, 2, 0.2, False)
        streamed = own(gateway.url, 2, 0.2, True)

    assert load.errors == streamed.errors == 0
    assert min(load.requests, streamed.requests) > 10
    assert gateway.process.returncode is not None
