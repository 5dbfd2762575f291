"""The bridge to other providers: the real LiteLLM, in its own environment, before a real server."""

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from composer.state import Endpoint
from experts.registry import own_engine_name
from experts.spec import ExpertSpec
from tests.conftest import REPOSITORY
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import small_gateway

KEY = "sk-given-with-the-call"
STRAY_KEY = "sk-from-the-environment"
START_S = 60
MAX_BODY = 200_000


@dataclass(frozen=True)
class Bridge:
    url: str
    log: Path


@pytest.fixture(scope="module")
def bridge(
    need_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bridge]:
    """The process, with a key in its environment that it must not use."""
    python = need_program(str(REPOSITORY / ".venv-litellm" / "bin" / "python"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("bridge") / "bridge.log"
    argv = [python, "-m", "experts.engines.bridge", "--port", str(port)]
    argv += ["--log-level", "debug", "--max-body-bytes", str(MAX_BODY)]
    environ = {**os.environ, "OPENAI_API_KEY": STRAY_KEY, "PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=environ, stdout=output, stderr=output)
    try:
        _until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield Bridge(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    gone_by = time.monotonic() + START_S
    while time.monotonic() < gone_by and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                assert reply.status == 200
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the bridge did not start: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Client:
    """Asks the bridge for models of a provider that is our faulty server."""

    session: aiohttp.ClientSession
    provider: FaultyServer

    def post(self, model: str, path: str = "chat/completions", **fields: Any) -> Any:
        body: dict[str, Any] = {"model": model, **fields}
        if path == "chat/completions":
            body.setdefault("messages", [{"role": "user", "content": "Hello?"}])
        return self.session.post(f"/v1/{path}", json=body)


@pytest.fixture
async def client(bridge: Bridge) -> AsyncIterator[Client]:
    async with faulty_server() as provider:
        headers = {
            "authorization": f"Bearer {KEY}",
            "x-composer-api-base": f"{provider.url}/v1",
        }
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(bridge.url, headers=headers, timeout=timeout) as session:
            yield Client(session, provider)


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
async def test_answer_comes_whole_or_streamed_when_the_provider_answers(
    client: Client, provider: str
) -> None:
    async with client.post(f"{provider}/clever") as reply:
        answer = await reply.json()
        assert reply.status == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "I am clever"
    assert answer["usage"]["total_tokens"] == 2
    async with client.post(f"{provider}/clever", stream=True) as reply:
        assert reply.content_type == "text/event-stream"
        events = (await reply.text()).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert text == "Hello"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    seen = {authorization for _, authorization in client.provider.requests}
    assert seen == {f"Bearer {KEY}"}


async def test_completions_and_embeddings_are_relayed_when_asked_for(client: Client) -> None:
    async with client.post("openai/clever", "completions", prompt="One, two") as reply:
        answer = await reply.json()
    assert answer["choices"][0]["text"].startswith("One, two")
    assert "usage" not in answer, "the provider told none"
    async with client.post("openai/clever", "embeddings", input=["a"]) as reply:
        assert (await reply.json())["data"][0]["embedding"] == [0.0, 1.0]


async def test_only_known_fields_reach_litellm_when_a_client_sends_others(client: Client) -> None:
    fields = {
        "temperature": 0.5,
        "seed": 7,
        "api_base": "http://127.0.0.1:9/v1",
        "api_key": "sk-other",
        "num_retries": 5,
        "success_callback": ["langfuse"],
        "mock_response": "mocked",
        "extra_headers": {"x-evil": "1"},
        "fallbacks": ["openai/other"],
    }
    async with client.post("openai/clever", **fields) as reply:
        assert (await reply.json())["choices"][0]["message"]["content"] == "I am clever"
    body, authorization = client.provider.requests[-1]
    assert set(body) == {"model", "messages", "temperature", "seed"}
    assert authorization == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("openai/busy", 429, "rate_limited"),
        ("openai/error-500", 502, "provider_error"),
        ("openai/leaky", 401, "invalid_api_key"),
        ("openai/bad-request", 400, "invalid_request"),
        ("openai/too-long", 400, "context_length_exceeded"),
        ("hosted_vllm/too-long", 400, "context_length_exceeded"),
        ("nobody/model", 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_has_its_status_and_shape_when_the_provider_fails(
    client: Client, model: str, status: int, code: str, stream: bool
) -> None:
    async with client.post(model, stream=stream) as reply:
        error = (await reply.json())["error"]
        assert (reply.status, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.headers.get("retry-after") == ("7" if status == 429 else None)
    if "bad-request" in model:
        assert error["param"] == "temperature"
    assert len(client.provider.requests) <= 1, "the bridge must leave retries to the gateway"


async def test_answer_is_refused_when_it_is_no_json(client: Client) -> None:
    async with client.post("openai/garbage") as reply:
        assert reply.status == 502
        assert (await reply.json())["error"]["code"] == "provider_error"


async def test_client_is_told_when_the_stream_breaks_off(client: Client) -> None:
    async with client.post("openai/cut-late", stream=True) as reply:
        assert reply.status == 200
        events = (await reply.text()).strip().split("\n\n")
    assert "Hello" in events[1]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"


async def test_request_is_refused_when_it_is_malformed(client: Client) -> None:
    bodies: list[tuple[bytes, int, str | None]] = [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"model": "gpt"}', 400, "model"),
        (b'{"model": "openai/x", "messages": "hi"}', 400, "messages"),
        (b'{"model": "openai/x", "messages": [], "stream": "yes"}', 400, "stream"),
        (b" " * (MAX_BODY + 1), 413, None),
    ]
    json_type = {"content-type": "application/json"}
    for body, status, param in bodies:
        async with client.session.post(
            "/v1/chat/completions", data=body, headers=json_type
        ) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["param"]) == (status, param), body[:60]
    async with client.session.post("/v1/chat/completions", data="{}") as reply:
        assert reply.status == 415
    for headers in ({"x-composer-api-base": "file:///etc/passwd"}, {"host": "evil.example"}):
        message = {"model": "openai/x", "messages": [{"role": "user", "content": "x"}]}
        async with client.session.post(
            "/v1/chat/completions", json=message, headers=headers
        ) as reply:
            assert reply.status in (400, 403), headers
    assert client.provider.requests == []


@pytest.mark.parametrize(
    ("model", "stream"), [("openai/hang", False), ("openai/hang", True), ("openai/endless", True)]
)
async def test_work_at_the_provider_ends_when_the_client_hangs_up(
    client: Client, model: str, stream: bool
) -> None:
    asked = asyncio.create_task(_first_bytes(client, model, stream))
    async with asyncio.timeout(10):
        while not client.provider.requests:
            await asyncio.sleep(0.02)
    if "endless" in model:
        await asked
    else:
        asked.cancel()
    async with asyncio.timeout(10):
        while not client.provider.dropped:
            await asyncio.sleep(0.02)


async def _first_bytes(client: Client, model: str, stream: bool) -> None:
    async with client.post(model, stream=stream) as reply:
        await reply.content.readany()
        reply.close()


async def test_no_key_is_used_or_logged_when_keys_are_around(
    client: Client, bridge: Bridge
) -> None:
    for model in ("openai/leaky", "openai/leaky-500", "hosted_vllm/leaky-500", "openai/hang-up"):
        async with client.post(model) as reply:
            assert KEY not in await reply.text()
    async with (
        aiohttp.ClientSession(bridge.url) as stranger,
        stranger.post(
            "/v1/chat/completions",
            json={"model": "openai/clever", "messages": [{"role": "user", "content": "Hi"}]},
            headers={"x-composer-api-base": f"{client.provider.url}/v1"},
        ) as reply,
    ):
        assert reply.status == 200
    assert STRAY_KEY not in str(client.provider.requests[-1][1])
    log = bridge.log.read_text()
    assert "status 502" in log
    for secret in (KEY, STRAY_KEY, "Hello?"):
        assert secret not in log


async def test_gateway_reaches_a_provider_when_an_expert_names_one(
    client: Client,
    bridge: Bridge,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    spec = ExpertSpec(
        id="elsewhere",
        kind="remote",
        provider="openai",
        served_name="clever",
        api_key_env="PROVIDER_KEY",
    )
    endpoint = Endpoint(
        engine=own_engine_name(spec.id),
        base_url=bridge.url,
        state="ready",
        api_key_env="PROVIDER_KEY",
        api_base=f"{client.provider.url}/v1",
    )
    quality = {"greeting": {"elsewhere": 0.9}, "weather": {"elsewhere": 0.9}}
    async with small_gateway(tmp_path, cache_dir, [spec], [endpoint], quality) as running:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}
        async with running.session.post("/v1/chat/completions", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "I am clever"
    assert answer["model"] == "elsewhere"
    assert client.provider.requests[-1] == (
        {"messages": body["messages"], "model": "clever"},
        f"Bearer {KEY}",
    )
