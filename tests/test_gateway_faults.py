"""The gateway when experts misbehave, clients misbehave, or the shared state goes away."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from composer.sse import split_whole
from composer.state import Endpoint
from experts.spec import ExpertSpec
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import SENTENCES, Running, small_gateway

KEY = "sk-very-secret-value"
FAULTS = [
    "error-500",
    "busy",
    "hang",
    "garbage",
    "cut-early",
    "cut-late",
    "no-done",
    "error-event",
    "bad-request",
    "too-long",
    "leaky",
    "leaky-500",
    "endless",
    "crlf",
    "flood",
    "cut-inside",
    "bare-400",
]
PATH = "/v1/chat/completions"
ANY = "any field"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: FaultyServer, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    """Experts named for their faults, each ranked above `good`, and a canned one for weather."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PROVIDER_KEY", KEY)
    names = [*FAULTS, "good", "dead"]
    specs = [
        ExpertSpec(id=name, kind="remote", engine=f"engine-{name}", context_length=1000)
        for name in names
    ]
    specs.append(ExpertSpec(id="renamed", kind="remote", engine="engine-good", served_name="their"))
    specs.append(ExpertSpec(id="prompted", kind="prompt", base="good", system_prompt="Be brief."))
    specs.append(ExpertSpec(id="canned", kind="null", text="I can't know that."))
    endpoints = [
        Endpoint(
            engine=f"engine-{name}",
            base_url="http://127.0.0.1:9" if name == "dead" else upstream.url,
            state="ready",
            api_key_env="PROVIDER_KEY",
        )
        for name in names
    ]
    quality = {
        "greeting": {s.id: 0.5 for s in specs} | {"good": 0.4, "canned": 0.0},
        "weather": {s.id: 0.5 for s in specs} | {"canned": 1.0},
    }
    async with small_gateway(
        tmp_path_factory.mktemp("gateway"),
        cache_dir,
        specs,
        endpoints,
        quality,
        timeouts={"idle_s": 0.4, "body_s": 0.5},
        limits={"max_body_bytes": 1 << 20},
    ) as running:
        yield running
    patch.undo()


def body(*experts: str, **fields: object) -> dict[str, Any]:
    """A request for which only `experts` and, behind them, `good` may be asked."""
    return {
        "messages": [{"role": "user", "content": SENTENCES["greeting"]}],
        "composer": {"experts": [*experts, "good"]},
        **fields,
    }


async def post(
    gateway: Running, payload: object, path: str = PATH, **kwargs: Any
) -> tuple[int, dict[str, str], bytes]:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    async with gateway.session.post(path, data=data, **kwargs) as reply:
        return reply.status, {k.lower(): v for k, v in reply.headers.items()}, await reply.read()


class TestFallback:
    @pytest.mark.parametrize(
        "fault", ["error-500", "busy", "hang", "dead", "too-long", "leaky", "garbage"]
    )
    async def test_next_expert_answers_when_the_first_fails(
        self, gateway: Running, fault: str
    ) -> None:
        status, headers, answer = await post(gateway, body(fault))
        assert status == 200
        assert headers["x-composer-expert"] == "good"
        assert headers["x-composer-attempts"] == "2"
        assert json.loads(answer)["model"] == "good"

    @pytest.mark.parametrize("fault", ["error-500", "cut-early", "error-event", "hang", "dead"])
    async def test_next_expert_answers_when_a_stream_fails_before_its_first_token(
        self, gateway: Running, fault: str
    ) -> None:
        status, headers, answer = await post(gateway, body(fault, stream=True))
        assert status == 200
        assert headers["x-composer-expert"] == "good"
        assert b"Hello" in answer
        assert answer.endswith(b"data: [DONE]\n\n")
        assert b"error" not in answer

    @pytest.mark.parametrize("fault", ["cut-late", "cut-inside", "no-done"])
    async def test_client_gets_an_error_event_when_a_stream_breaks_after_its_first_token(
        self, gateway: Running, fault: str
    ) -> None:
        status, headers, answer = await post(gateway, body(fault, stream=True))
        assert (status, headers["x-composer-expert"]) == (200, fault)
        assert b"Hello" in answer
        last = answer.rstrip().rsplit(b"data: ", 1)[1]
        assert json.loads(last)["error"]["code"] == "expert_stream_broken"
        events = [event for event in answer.split(b"\n\n") if event]
        assert all(json.loads(event.removeprefix(b"data: ")) for event in events)

    async def test_stream_is_relayed_when_its_lines_end_in_crlf(self, gateway: Running) -> None:
        status, headers, answer = await post(gateway, body("crlf", stream=True))
        assert (status, headers["x-composer-expert"]) == (200, "crlf")
        assert b"Hello" in answer
        assert b"[DONE]" in answer
        assert b"error" not in answer

    async def test_answer_says_retry_when_every_expert_is_busy(self, gateway: Running) -> None:
        payload = body("busy")
        payload["composer"]["experts"] = ["busy"]
        status, headers, answer = await post(gateway, payload)
        assert (status, headers["retry-after"]) == (429, "7")
        assert json.loads(answer)["error"]["code"] == "overloaded"

    async def test_refusal_of_the_request_is_relayed_and_no_other_expert_is_asked(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        before = len(upstream.requests)
        status, _, answer = await post(gateway, body("bad-request"))
        assert status == 400
        assert json.loads(answer)["error"]["param"] == "temperature"
        assert len(upstream.requests) == before + 1

    async def test_refusal_without_a_message_is_told_in_our_words(self, gateway: Running) -> None:
        status, headers, answer = await post(gateway, body("bare-400"))
        assert (status, headers["content-type"]) == (400, "application/json")
        assert "status 400" in json.loads(answer)["error"]["message"]

    async def test_answer_says_retry_when_only_some_experts_refused_the_length(
        self, gateway: Running
    ) -> None:
        for experts in (["too-long", "error-500"], ["error-500", "too-long"]):
            status, _, _ = await post(gateway, body(composer={"experts": experts}))
            assert status == 503
        status, _, answer = await post(gateway, body(composer={"experts": ["too-long"]}))
        assert (status, json.loads(answer)["error"]["code"]) == (400, "context_length_exceeded")

    async def test_failed_engine_is_passed_over_for_a_moment(self, gateway: Running) -> None:
        await post(gateway, body("dead"))
        _, headers, _ = await post(gateway, body("dead"))
        assert headers["x-composer-attempts"] == "1"

    async def test_provider_key_is_sent_upstream_and_appears_nowhere_else(
        self, gateway: Running, upstream: FaultyServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for fault in ("leaky", "leaky-500"):
            payload = body(fault)
            payload["composer"]["experts"] = [fault]
            _, headers, answer = await post(gateway, payload)
            assert KEY not in answer.decode() + json.dumps(headers)
        assert upstream.requests[-1][1] == f"Bearer {KEY}"
        output = capfd.readouterr()
        assert KEY not in output.out + output.err
        async with gateway.session.get("/metrics") as reply:
            assert KEY not in await reply.text()


class TestRelay:
    async def test_unknown_fields_reach_the_expert_and_our_own_do_not(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await post(gateway, body(temperature=0.5, vendor_option={"a": 1}))
        sent, _ = upstream.requests[-1]
        assert sent["vendor_option"] == {"a": 1}
        assert sent["temperature"] == 0.5
        assert sent["model"] == "good"
        assert "composer" not in sent

    async def test_answer_carries_the_experts_id_when_it_is_served_under_another_name(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        _, _, answer = await post(gateway, body(model="renamed", composer={}))
        assert json.loads(answer)["model"] == "renamed"
        assert upstream.requests[-1][0]["model"] == "their"
        _, _, stream = await post(gateway, body(model="renamed", composer={}, stream=True))
        assert b'"renamed"' in stream
        assert b'"their"' not in stream

    async def test_prompt_expert_puts_its_prompt_before_the_conversation(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await post(gateway, body(model="prompted", composer={}))
        sent = upstream.requests[-1][0]["messages"]
        assert sent[0] == {"role": "system", "content": "Be brief."}
        own = [{"role": "system", "content": "Be kind."}, *sent[1:]]
        await post(gateway, body(model="prompted", composer={}, messages=own))
        sent = upstream.requests[-1][0]["messages"]
        assert sent[0]["content"] == "Be brief.\n\nBe kind."
        assert len(sent) == 2

    async def test_upstream_work_is_cancelled_when_the_client_hangs_up(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        before = upstream.dropped
        payload = body(model="endless", stream=True, composer={})
        async with gateway.session.post(PATH, json=payload) as reply:
            await reply.content.readany()
        async with asyncio.timeout(5):
            while upstream.dropped == before:
                await asyncio.sleep(0.02)

    async def test_canned_answer_comes_whole_and_streamed(self, gateway: Running) -> None:
        messages = [{"role": "user", "content": SENTENCES["weather"]}]
        _, headers, answer = await post(gateway, {"messages": messages})
        assert headers["x-composer-expert"] == "canned"
        assert json.loads(answer)["choices"][0]["message"]["content"] == "I can't know that."
        options = {"stream": True, "stream_options": {"include_usage": True}}
        _, headers, stream = await post(gateway, {"messages": messages, **options})
        assert headers["content-type"].startswith("text/event-stream")
        events = [json.loads(e[6:]) for e in stream.split(b"\n\n") if e.startswith(b"data: {")]
        assert events[0]["choices"][0]["delta"]["content"] == "I can't know that."
        assert events[-1]["usage"]["total_tokens"] == 0

    async def test_second_decision_on_the_same_text_comes_from_the_cache(
        self, gateway: Running
    ) -> None:
        text = "hello there, how are you this fine morning"
        messages = [{"role": "user", "content": text}]
        _, first, _ = await post(gateway, body("good", messages=messages))
        spaced = [{"role": "user", "content": f"  {text.replace(' ', '   ')}\n"}]
        _, second, _ = await post(gateway, body("good", messages=spaced))
        assert (first["x-composer-cache"], second["x-composer-cache"]) == ("miss", "hit")
        assert first["x-composer-decision"] != second["x-composer-decision"]

    async def test_explained_decision_tells_scores_and_who_was_ruled_out(
        self, gateway: Running
    ) -> None:
        payload = {
            "prompt": SENTENCES["greeting"],
            "composer": {"experts": ["good"], "explain": True},
        }
        status, _, answer = await post(gateway, payload, "/v1/route")
        decision = json.loads(answer)
        assert status == 200
        assert decision["expert"] == "good"
        assert decision["category"] == "greeting"
        assert decision["scores"]["good"]["quality"] == pytest.approx(0.4, abs=0.1)
        assert "not among" in decision["ruled_out"]["busy"]
        assert decision["probabilities"]["greeting"] > 0.6

    async def test_unsure_prompt_goes_to_general(self, gateway: Running) -> None:
        payload = {"prompt": "SELECT id FROM t; xq zz 0x7f"}
        _, _, answer = await post(gateway, payload, "/v1/route")
        decision = json.loads(answer)
        assert decision["category"] == "general"
        assert decision["general"] is True
        assert "unsure" in decision["reason"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("payload", "param"),
        [
            (b"{not json", None),
            (b"\xff\xfe{}", None),
            (b"[]", None),
            (b"null", None),
            (b"", None),
            (b"[" * 100_000, None),
            ({}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": [{"role": "alien", "content": "x"}]}, "messages.0.role"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
            ({"messages": [{"content": "x"}]}, "messages.0.role"),
            (body(max_tokens=-1), "max_tokens"),
            (body(max_tokens="5"), "max_tokens"),
            (body(temperature=3), "temperature"),
            (body(stream="yes"), "stream"),
            (body(stop=["a"] * 17), "stop"),
            (body(composer={"max_params": 1}), "composer.max_params"),
            (body(composer={"quality_weight": 2}), "composer.quality_weight"),
            (body(composer={"experts": []}), "composer.experts"),
            (body(stream_options={"include_usage": True}), "stream_options"),
            (body(composer={str(i): i for i in range(10_000)}), None),
            ({"messages": [{"role": "user", "content": [{"type": 1}] * 1000}] * 60}, ANY),
            (body(messages=None), "messages"),
            (
                b'{"messages": [{"role": "user", "content": "x"}], "x": '
                + b"[" * 300
                + b"]" * 300
                + b"}",
                None,
            ),
        ],
    )
    async def test_request_is_refused_and_the_field_is_named(
        self, gateway: Running, payload: object, param: str | None
    ) -> None:
        start = time.perf_counter()
        status, headers, answer = await post(gateway, payload)
        error = json.loads(answer)["error"]
        assert status == 400
        assert error["type"] == "invalid_request_error"
        assert param is ANY or error["param"] == param
        assert error["request_id"] == headers["x-request-id"]
        assert time.perf_counter() - start < 1

    async def test_unknown_model_is_404_and_known_ones_are_named(self, gateway: Running) -> None:
        status, _, answer = await post(gateway, body(model="gpt-9"))
        error = json.loads(answer)["error"]
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "auto" in error["message"]

    async def test_need_that_no_expert_meets_is_a_400_that_says_which(
        self, gateway: Running
    ) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        status, _, answer = await post(gateway, body(tools=tools))
        assert status == 400
        assert "it lacks: tools" in json.loads(answer)["error"]["message"]

    async def test_prompt_longer_than_every_context_is_a_400(self, gateway: Running) -> None:
        messages = [{"role": "user", "content": "word " * 20_000}]
        status, _, answer = await post(gateway, body(messages=messages))
        assert status == 400
        assert "context" in json.loads(answer)["error"]["message"]

    async def test_huge_body_is_refused_before_it_is_read(self, gateway: Running) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b" " * (1 << 20)

        start = time.perf_counter()
        declared, _, _ = await post(gateway, b" " * (50 << 20))
        assert declared == 413
        try:
            async with gateway.session.post(PATH, data=endless()) as reply:
                assert reply.status == 413
        except aiohttp.ClientError:
            pass  # The gateway closed the connection while we were still sending.
        assert time.perf_counter() - start < 5
        status, _, _ = await post(gateway, body("good"))
        assert status == 200

    async def test_body_that_never_arrives_is_given_up(self, gateway: Running) -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{"
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        assert b" 408 " in answer
        assert b"did not arrive" in answer
        writer.close()

    async def test_endless_head_is_given_up(self, gateway: Running) -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
        sent = 0
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                while sent < 64 << 20 and not reader.at_eof():
                    writer.write(b"a" * 65536)
                    await writer.drain()
                    sent += 65536
                    await asyncio.sleep(0)
        assert sent < 16 << 20
        writer.close()

    async def test_silent_connection_is_given_up(
        self, gateway: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.connection.HEAD_S", 0.2)
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health/live HTTP/1.1\r\n")
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    async def test_client_that_does_not_read_its_stream_is_given_up(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        before = upstream.dropped
        host, port = gateway.url.removeprefix("http://").split(":")
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect((host, int(port)))
        narrow.setblocking(False)
        payload = json.dumps(body(model="flood", stream=True, composer={})).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: "
        narrow.send(request + str(len(payload)).encode() + b"\r\n\r\n" + payload)
        async with asyncio.timeout(20):
            while upstream.dropped == before:
                await asyncio.sleep(0.05)
        narrow.close()

    @pytest.mark.parametrize(
        "headers",
        [
            {"host": "evil.example"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
        ],
    )
    async def test_web_page_of_another_host_is_refused(
        self, gateway: Running, headers: dict[str, str]
    ) -> None:
        status, _, _ = await post(gateway, body("good"), headers=headers)
        assert status == 403

    async def test_local_page_is_served(self, gateway: Running) -> None:
        headers = {"origin": "http://localhost:3000", "host": "localhost:1234"}
        status, _, _ = await post(gateway, body("good"), headers=headers)
        assert status == 200

    async def test_unknown_path_and_wrong_method_are_told(self, gateway: Running) -> None:
        status, _, _ = await post(gateway, {}, "/v1/nothing")
        assert status == 404
        async with gateway.session.get(PATH) as reply:
            assert (reply.status, reply.headers["allow"]) == (405, "POST")

    async def test_request_id_of_the_client_is_kept_when_it_is_sane(self, gateway: Running) -> None:
        _, headers, _ = await post(gateway, body("good"), headers={"x-request-id": "mine-1"})
        assert headers["x-request-id"] == "mine-1"
        _, headers, _ = await post(gateway, body("good"), headers={"x-request-id": "a b{}"})
        assert headers["x-request-id"].startswith("req-")


class TestObservation:
    async def test_failed_attempts_are_counted_when_nobody_answers(self, gateway: Running) -> None:
        async def fallbacks() -> float:
            async with gateway.session.get("/metrics") as reply:
                lines = (await reply.text()).splitlines()
            name = 'composer_fallbacks_total{expert="leaky-500"} '
            return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

        before = await fallbacks()
        status, _, _ = await post(gateway, body(composer={"experts": ["leaky-500"]}))
        assert status == 503
        assert await fallbacks() == before + 1

    async def test_metrics_count_experts_categories_and_fallbacks(self, gateway: Running) -> None:
        await post(gateway, body("error-500"))
        async with gateway.session.get("/metrics") as reply:
            text = await reply.text()
        assert 'composer_requests_total{category="greeting",expert="good",status="ok"}' in text
        assert 'composer_fallbacks_total{expert="error-500"}' in text
        assert "composer_state_connected 1.0" in text

    async def test_models_lists_compositions_and_experts(self, gateway: Running) -> None:
        async with gateway.session.get("/v1/models") as reply:
            models = {entry["id"]: entry["composer"] for entry in (await reply.json())["data"]}
        assert models["auto"]["kind"] == "composition"
        assert models["canned"]["kind"] == "null"
        async with gateway.session.get("/v1/models/canned") as reply:
            assert (await reply.json())["composer"]["kind"] == "null"
        async with gateway.session.get("/v1/models/absent") as reply:
            assert reply.status == 404

    async def test_answers_go_on_and_readiness_says_degraded_when_the_state_is_away(
        self, gateway: Running
    ) -> None:
        async def readiness() -> tuple[int, str]:
            async with gateway.session.get("/health/ready") as reply:
                report = await reply.json()
                return reply.status, report["state"]

        process = gateway.redis._process
        assert process is not None
        process.kill()
        async with asyncio.timeout(10):
            while await readiness() != (200, "away"):
                status, _, _ = await post(gateway, body("good"))
                assert status == 200
                await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            while (await readiness())[1] != "connected":
                await asyncio.sleep(0.05)
        status, _, _ = await post(gateway, body("good"))
        assert status == 200


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", b""),
        (b"da", b""),
        (b"data: 1\n\n", b"data: 1\n\n"),
        (b"data: 1\n\ndata: 2", b"data: 1\n\n"),
        (b"data: 1\r\n\r\ndata: 2\r\n", b"data: 1\r\n\r\n"),
        (b"\n\n", b"\n\n"),
    ],
)
async def test_whole_events_are_split_from_the_beginning_of_the_next(
    data: bytes, whole: bytes
) -> None:
    assert split_whole(data) == (whole, data[len(whole) :])
