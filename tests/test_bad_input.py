"""Bad input of every kind, on every path: a 4xx in the OpenAI shape, fast, and nothing is lost."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from composer.state import Endpoint
from experts.spec import ExpertSpec
from gateway.openapi import document
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_BODY = 1 << 20
FAST_S = 2.0
GREETING = SENTENCES["greeting"]
MESSAGES = [{"role": "user", "content": GREETING}]

PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": GREETING},
    "/v1/embeddings": {"input": GREETING},
    "/v1/route": {"prompt": GREETING},
}
"""A good body for each path that takes a prompt."""


def operations() -> Iterator[tuple[str, str, bool]]:
    """Method, path with its parameters filled in, and whether it takes JSON, of every operation."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            filled = re.sub(r"\{[a-z_]+\}", "absent", path)
            yield method.upper(), filled, "application/json" in content


OPERATIONS = list(operations())
TAKE_JSON = [(method, path) for method, path, takes_json in OPERATIONS if takes_json]
PATHS = sorted({path for _, path, _ in OPERATIONS})

NESTED = {depth: b'{"x": ' + b"[" * depth + b"]" * depth + b"}" for depth in (300, 5000, 100_000)}
NOT_A_REQUEST = {
    "not JSON": b"{not json",
    "empty": b"",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "a list": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "a number": b"1",
    "NaN": b'{"x": NaN}',
    "an infinite number": b'{"x": 1e999}',
    "a number of 5000 digits": b'{"x": ' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"x": "\\ud800"}',
    "a NUL in a name": b'{"\\u0000": 1}',
    "half an object": b'{"messages": [{"role": "us',
    "two objects": b"{} {}",
    "open brackets": b"[" * 100_000,
    "open braces": b'{"a":' * 100_000,
    "10,000 fields": json.dumps({str(n): n for n in range(10_000)}).encode(),
    **{f"{depth} levels": body for depth, body in NESTED.items()},
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: FaultyServer, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    specs = [ExpertSpec(id="good", kind="remote", engine="one", context_length=1000)]
    quality = {"greeting": {"good": 0.5}, "weather": {"good": 0.5}}
    endpoints = [Endpoint(engine="one", base_url=upstream.url, state="ready")]
    folder = tmp_path_factory.mktemp("gateway")
    limits = {"max_body_bytes": MAX_BODY}
    async with small_gateway(folder, cache_dir, specs, endpoints, quality, limits=limits) as one:
        yield one


async def refused(
    gateway: Running, method: str, path: str, data: bytes, **options: Any
) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer that must be a 4xx, OpenAI-shaped, fast and traceable."""
    options.setdefault("headers", {"content-type": "application/json"})
    start = time.perf_counter()
    async with gateway.session.request(method, path, data=data, **options) as reply:
        status, headers, raw = reply.status, reply.headers, await reply.read()
    took = time.perf_counter() - start
    assert 400 <= status < 500, (status, raw[:300])
    assert headers["content-type"] == "application/json"
    error = json.loads(raw)["error"]
    assert error["message"]
    assert len(error["message"]) <= 4000
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["request_id"] == headers["x-request-id"]
    assert took < FAST_S
    return status, error


async def post(gateway: Running, path: str, body: object) -> tuple[int, dict[str, Any]]:
    return await refused(gateway, "POST", path, json.dumps(body).encode())


class TestEveryPath:
    @pytest.mark.parametrize(("method", "path"), TAKE_JSON)
    async def test_what_is_no_request_is_refused(
        self, gateway: Running, method: str, path: str
    ) -> None:
        for kind, data in NOT_A_REQUEST.items():
            status, _ = await refused(gateway, method, path, data)
            assert status == 400, kind

    @pytest.mark.parametrize(("method", "path"), TAKE_JSON)
    async def test_missing_field_is_named(self, gateway: Running, method: str, path: str) -> None:
        status, error = await refused(gateway, method, path, b"{}")
        assert status == 400
        assert error["param"]

    @pytest.mark.parametrize(("method", "path"), TAKE_JSON)
    async def test_body_of_50_mb_is_refused(self, gateway: Running, method: str, path: str) -> None:
        status, error = await refused(gateway, method, path, b" " * (50 << 20))
        assert (status, error["code"]) == (413, "request_too_large")

    @pytest.mark.parametrize("path", PATHS)
    async def test_method_that_nothing_takes_is_405(self, gateway: Running, path: str) -> None:
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            status, error = await refused(gateway, method, path, b"")
            assert (status, error["code"]) == (405, "method_not_allowed"), method

    @pytest.mark.parametrize(
        "path",
        ["/", "/v1", "/v1/", "/v1/chat", "/v2/models", "/admin/v1/", "/admin/v1/absent"],
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    async def test_path_where_nothing_is_is_404(
        self, gateway: Running, path: str, method: str
    ) -> None:
        status, _ = await refused(gateway, method, path, b"{}")
        assert status in (404, 405)

    @pytest.mark.parametrize(
        "path", ["/v1/models/" + "x" * 5000, "/v1/models/%00%ff", "/admin/v1/keys/%2e%2e%2f"]
    )
    async def test_odd_id_is_not_found(self, gateway: Running, path: str) -> None:
        method = "DELETE" if "keys" in path else "GET"
        status, _ = await refused(gateway, method, path, b"")
        assert status == 404

    @pytest.mark.parametrize(
        "head",
        [
            b"GARBAGE\r\n\r\n",
            b"GET /v1/models HTTP/9.9\r\n\r\n",
            b"BREW /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
            b"POST /v1/route HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n",
            b"POST /v1/route HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n"
            b"transfer-encoding: chunked\r\n\r\n{}",
        ],
    )
    async def test_what_is_no_http_is_told_so_in_the_same_shape(
        self, gateway: Running, head: bytes
    ) -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert re.match(rb"HTTP/1.1 4\d\d ", answer)
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "invalid_request_error"

    async def test_head_gets_the_head_of_a_get(self, gateway: Running) -> None:
        for path in ("/health/live", "/v1/models"):
            async with gateway.session.head(path) as reply:
                assert (reply.status, await reply.read()) == (200, b"")
        async with gateway.session.head("/v1/route") as reply:
            assert reply.status == 405


class TestFields:
    @pytest.mark.parametrize("path", PLAIN)
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"model": ""}, "model"),
            ({"model": 5}, "model"),
            ({"model": ["auto"]}, "model"),
            ({"model": "x" * 300}, "model"),
            ({"composer": "cheap"}, "composer"),
            ({"composer": {"max_params": 1}}, "composer.max_params"),
            ({"composer": {"max_price": -1}}, "composer.max_price"),
            ({"composer": {"experts": ["no such"]}}, "composer.experts.0"),
            ({"composer": {"explain": "yes"}}, "composer.explain"),
            ({"composer": {"session": ""}}, "composer.session"),
            ({"composer": {"switch_gain": 2}}, "composer.switch_gain"),
        ],
    )
    async def test_wrong_field_of_all_prompts_is_named(
        self, gateway: Running, path: str, fields: dict[str, Any], param: str
    ) -> None:
        status, error = await post(gateway, path, {**PLAIN[path], **fields})
        assert (status, error["param"]) == (400, param)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"max_tokens": "5"}, "max_tokens"),
            ({"max_tokens": 10**30}, "max_tokens"),
            ({"max_tokens": 2**40}, "max_tokens"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": True}, "temperature"),
            ({"top_p": 2}, "top_p"),
            ({"n": 0}, "n"),
            ({"n": 129}, "n"),
            ({"seed": 2**70}, "seed"),
            ({"stop": 5}, "stop"),
            ({"stop": ["a"] * 17}, "stop"),
            ({"stop": ["a", 5]}, "stop"),
            ({"stream": "yes"}, "stream"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"stream": True, "stream_options": 5}, "stream_options"),
            ({"frequency_penalty": 3}, "frequency_penalty"),
        ],
    )
    async def test_wrong_field_of_a_generation_is_named(
        self, gateway: Running, path: str, fields: dict[str, Any], param: str
    ) -> None:
        status, error = await post(gateway, path, {**PLAIN[path], **fields})
        assert (status, error["param"]) == (400, param)

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/v1/completions", {"prompt": None}, "prompt"),
            ("/v1/completions", {"prompt": []}, "prompt"),
            ("/v1/completions", {"prompt": 5}, "prompt"),
            ("/v1/completions", {"prompt": [1, 2, 3]}, "prompt"),
            ("/v1/completions", {"prompt": [[1, 2], [3]]}, "prompt"),
            ("/v1/completions", {"prompt": ["a"] * 200}, "prompt"),
            ("/v1/completions", {"prompt": "x", "logprobs": -1}, "logprobs"),
            ("/v1/completions", {"prompt": "x", "best_of": 0}, "best_of"),
            ("/v1/embeddings", {"input": ""}, "input"),
            ("/v1/embeddings", {"input": []}, "input"),
            ("/v1/embeddings", {"input": ["a", ""]}, "input"),
            ("/v1/embeddings", {"input": [1, 2, 3]}, "input"),
            ("/v1/embeddings", {"input": [[1], [2]]}, "input"),
            ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
            ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
            ("/v1/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
            ("/v1/embeddings", {"input": "x", "dimensions": 128}, "dimensions"),
            ("/v1/embeddings", {"input": "x", "stream": True}, "stream"),
            ("/v1/route", {"prompt": "x", "messages": MESSAGES}, "prompt"),
            ("/v1/route", {"prompt": "x", "max_tokens": 5}, "max_tokens"),
            ("/v1/route", {"messages": []}, "messages"),
            ("/v1/chat/completions", {"messages": []}, "messages"),
            ("/v1/chat/completions", {"messages": {}}, "messages"),
            ("/v1/chat/completions", {"messages": [None]}, "messages.0"),
            ("/v1/chat/completions", {"messages": [[]]}, "messages.0"),
            ("/v1/chat/completions", {"messages": MESSAGES * 5000}, "messages"),
            ("/v1/chat/completions", {"messages": MESSAGES, "tools": "all"}, "tools"),
            (
                "/v1/chat/completions",
                {"messages": MESSAGES, "response_format": 1},
                "response_format",
            ),
        ],
    )
    async def test_wrong_field_of_one_path_is_named(
        self, gateway: Running, path: str, body: dict[str, Any], param: str
    ) -> None:
        status, error = await post(gateway, path, body)
        assert status == 400
        assert error["param"].split(".")[: len(param.split("."))] == param.split(".")

    @pytest.mark.parametrize("path", PLAIN)
    async def test_field_that_is_given_twice_is_refused(self, gateway: Running, path: str) -> None:
        good = json.dumps(PLAIN[path])
        name = next(iter(PLAIN[path]))
        for extra in (f'"{name}": {json.dumps(PLAIN[path][name])}', '"model": "a", "model": "b"'):
            data = f"{good[:-1]}, {extra}}}".encode()
            status, error = await refused(gateway, "POST", path, data)
            assert status == 400
            assert error["param"] in (name, "model")
        # The name of a field may stand in a text, and in an object of its own.
        inside = {**PLAIN[path], "user": '"model": "model" "messages" "prompt" "input"'}
        if path != "/v1/route":
            async with gateway.session.post(path, json=inside) as reply:
                assert reply.status == 200

    @pytest.mark.parametrize("path", PLAIN)
    async def test_unknown_model_is_404(self, gateway: Running, path: str) -> None:
        status, error = await post(gateway, path, {**PLAIN[path], "model": "gpt-9"})
        assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")

    @pytest.mark.parametrize(
        ("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]
    )
    async def test_prompt_longer_than_every_context_says_so(
        self, gateway: Running, path: str, field: str
    ) -> None:
        text = "word " * 20_000
        value = text if field == "prompt" else [{"role": "user", "content": text}]
        status, error = await post(gateway, path, {field: value})
        assert status == 400
        assert "its context holds 1000" in error["message"]


class TestControlPlane:
    @pytest.mark.parametrize(
        ("path", "param"),
        [
            ("/admin/v1/decisions?limit=-1", "limit"),
            ("/admin/v1/decisions?limit=x", "limit"),
            ("/admin/v1/decisions?limit=1000000000", "limit"),
            ("/admin/v1/decisions/export?cursor=garbage", "cursor"),
            ("/admin/v1/stats?from=x", "from"),
            ("/admin/v1/stats?step=7", "step"),
            ("/admin/v1/cache?version=", "version"),
        ],
    )
    async def test_wrong_query_is_named(self, gateway: Running, path: str, param: str) -> None:
        method = "DELETE" if "cache" in path else "GET"
        status, error = await refused(gateway, method, path, b"")
        assert (status, error["param"]) == (400, param)

    async def test_garbage_is_no_backup(self, gateway: Running) -> None:
        status, _ = await refused(gateway, "POST", "/admin/v1/import", b"\x1f\x8bgarbage" * 1000)
        assert status == 400


async def test_nothing_was_lost_and_the_gateway_answers(
    gateway: Running, upstream: FaultyServer
) -> None:
    async with gateway.session.get("/admin/v1/experts") as reply:
        assert [expert["id"] for expert in (await reply.json())["data"]] == ["good"]
    async with gateway.session.get("/admin/v1/keys") as reply:
        assert (await reply.json())["data"] == []
    for path, body in PLAIN.items():
        async with gateway.session.post(path, json=body) as reply:
            assert reply.status == 200
    assert all("composer" not in body for body, _ in upstream.requests)
