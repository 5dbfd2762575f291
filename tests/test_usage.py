"""Tokens and cost: read from answers as they pass, which pass unchanged."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from composer.sse import split_whole
from composer.state import Endpoint
from composer.usage import Meter, usage_in
from experts.spec import ExpertSpec
from tests.metered import TEXT, USAGE, MeteredServer, events, metered_server
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODELS = ("counting", "inline", "silent", "strict")
SPEC = ExpertSpec(id="a", kind="remote", engine="e", price_in=3.0, price_out=15.0)
ASKED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
NOT_ASKED: dict[str, Any] = {
    "stream": True,
    "messages": [
        {"role": "user", "content": "x" * 40},
        {"role": "user", "content": [{"type": "text", "text": "y" * 8}, {"type": "image_url"}]},
    ],
}


@given(st.lists(st.integers(1, 200), max_size=30))
async def test_a_client_gets_what_it_would_have_got_however_the_stream_is_cut(
    cuts: list[int],
) -> None:
    for model in ("counting", "silent"):
        stream = b"".join(events(model, asked=True))
        meter = Meter(SPEC, NOT_ASKED)
        passed, pending = b"", b""
        for size in [*cuts, len(stream)]:
            whole, pending = split_whole(pending + stream[:size])
            stream = stream[size:]
            passed += meter.pass_on(whole)
        assert passed + pending == b"".join(events(model, asked=False))


async def test_a_client_gets_every_byte_when_it_asked_for_usage_itself() -> None:
    for model in MODELS:
        stream = b"".join(events(model, asked=True))
        meter = Meter(SPEC, ASKED)
        assert meter.pass_on(stream) == stream


async def test_usage_is_the_engine_s_when_it_tells_it_and_a_guess_when_not() -> None:
    for model in ("counting", "inline"):
        meter = Meter(SPEC, NOT_ASKED)
        meter.pass_on(b"".join(events(model, asked=True)))
        usage = meter.read()
        assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (120, 30, False)
        assert usage.cost_usd == pytest.approx((120 * 3 + 30 * 15) / 1e6)
    meter = Meter(SPEC, NOT_ASKED)
    meter.pass_on(b"".join(events("silent", asked=True)))
    usage = meter.read()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (12, len(TEXT), True)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}', (3, 4)),
        (b'{"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}', (3, 0)),
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"choices":["usage"]}', (1, 2)),
        (b'{"usage":{"prompt_tokens":1,"x":{"y":{}},"completion_tokens":2}}', (1, 2)),
        (b'{"usage":{"prompt_tokens":1},"meta":{"usage":{"cpu":7}}}', (1, 0)),
        (b'{"usage":{"prompt_tokens":-5,"completion_tokens":2}}', (0, 2)),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":"3"}}', None),
        (b'{"usage":{"prompt_tokens":3', None),
        (b'{"usage":{]}', None),
        (b'"usage"', None),
        (b"", None),
    ],
)
async def test_usage_is_found_wherever_it_stands_and_only_if_it_is_one(
    answer: bytes, found: tuple[int, int] | None
) -> None:
    assert usage_in(answer) == found


@given(st.text(), st.integers(0, 2**40), st.integers(0, 2**40))
async def test_usage_is_never_taken_from_the_text_of_an_answer(
    text: str, prompt: int, completion: int
) -> None:
    tempting = text + '"usage":{"prompt_tokens":7,"completion_tokens":7}'
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    message = {"message": {"content": tempting.encode("utf-8", "replace").decode()}}
    assert usage_in(orjson.dumps({"choices": [message]})) is None
    assert usage_in(orjson.dumps({"usage": usage, "choices": [message]})) == (prompt, completion)


# Through a gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[MeteredServer]:
    async with metered_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: MeteredServer, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    specs = [
        ExpertSpec(id=model, kind="remote", engine=model, price_in=3.0, price_out=15.0)
        for model in MODELS
    ]
    specs.append(ExpertSpec(id="canned", kind="null", text="No.", price_out=5.0))
    endpoints = [Endpoint(engine=model, base_url=upstream.url, state="ready") for model in MODELS]
    quality = {category: {spec.id: 0.5 for spec in specs} for category in SENTENCES}
    folder = tmp_path_factory.mktemp("usage")
    async with small_gateway(folder, cache_dir, specs, endpoints, quality) as running:
        yield running


async def ask(gateway: Running, model: str, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    """The answer of an expert, and the outcome as it was recorded."""
    message = {"role": "user", "content": SENTENCES["greeting"]}
    body = {"model": model, "messages": [message], **fields}
    async with gateway.session.post("/v1/chat/completions", json=body) as reply:
        assert reply.status == 200
        answer = await reply.read()
        decision = reply.headers["x-composer-decision"]
    feedback = {"decision": decision, "score": 1}
    async with gateway.session.post("/v1/feedback", json=feedback) as reply:
        assert reply.status == 200
    async with gateway.session.get(f"/admin/v1/decisions/{decision}") as reply:
        return answer, (await reply.json())["outcome"]


@pytest.mark.parametrize(
    ("model", "asked"),
    [*((model, False) for model in MODELS), ("counting", True), ("inline", True), ("silent", True)],
)
async def test_a_stream_is_counted_and_relayed_byte_for_byte(
    gateway: Running, model: str, asked: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}
    answer, outcome = await ask(gateway, model, stream=True, **options)
    assert answer == b"".join(events(model, asked=asked))
    told = model in ("counting", "inline")
    assert outcome["estimated"] is not told
    assert outcome["completion_tokens"] == (USAGE["completion_tokens"] if told else len(TEXT))
    assert outcome["cost_usd"] > 0
    assert outcome["streamed"] is True


@pytest.mark.parametrize("model", MODELS)
async def test_a_whole_answer_is_counted(gateway: Running, model: str) -> None:
    answer, outcome = await ask(gateway, model)
    assert json.loads(answer)["choices"][0]["message"]["content"] == "".join(TEXT)
    if model == "silent":
        assert (outcome["estimated"], outcome["prompt_tokens"]) == (True, 6)
        assert outcome["completion_tokens"] == -(-len("".join(TEXT)) // 4)
    else:
        assert (outcome["prompt_tokens"], outcome["completion_tokens"]) == (120, 30)
        assert outcome["cost_usd"] == pytest.approx((120 * 3 + 30 * 15) / 1e6)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_canned_answer_costs_nothing(gateway: Running, stream: bool) -> None:
    answer, outcome = await ask(gateway, "canned", stream=stream)
    assert b"No." in answer
    assert b"usage" not in answer or not stream
    found = [outcome[k] for k in ("prompt_tokens", "completion_tokens", "estimated", "cost_usd")]
    assert found == [0, 0, False, 0]


async def test_an_engine_is_asked_only_once_for_what_it_refuses(
    gateway: Running, upstream: MeteredServer
) -> None:
    await ask(gateway, "strict", stream=True)
    before = len(upstream.requests)
    await ask(gateway, "strict", stream=True)
    sent = upstream.requests[before:]
    assert [("stream_options" in body) for body in sent] == [False]
