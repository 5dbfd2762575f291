"""Statistics over HTTP: prompts go through a gateway, and the figures say what happened to them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from composer.state import Endpoint
from composer.stats.schema import DecisionView, StatsView
from experts.spec import ExpertSpec
from tests.faulty import faulty_server
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    """`broken` and then `good` for greetings, a canned answer for the weather."""
    async with faulty_server() as upstream:
        specs = [
            ExpertSpec(id=name, kind="remote", engine=name, price_in=2.0, price_out=4.0)
            for name in ("error-500", "good")
        ]
        specs.append(ExpertSpec(id="canned", kind="null", text="I can't know that."))
        endpoints = [
            Endpoint(engine=spec.id, base_url=upstream.url, state="ready") for spec in specs[:2]
        ]
        quality = {
            "greeting": {"error-500": 0.9, "good": 0.8, "canned": 0.0},
            "weather": {"error-500": 0.1, "good": 0.2, "canned": 0.9},
        }
        folder = tmp_path_factory.mktemp("stats-api")
        async with small_gateway(folder, cache_dir, specs, endpoints, quality) as running:
            yield running


async def get(gateway: Running, path: str, **params: Any) -> Any:
    async with gateway.session.get(path, params=params) as reply:
        return await reply.json()


async def ask(gateway: Running, sentence: str, **fields: Any) -> str:
    """Send a chat; returns the id of its decision."""
    payload = {"messages": [{"role": "user", "content": SENTENCES[sentence]}], **fields}
    async with gateway.session.post(CHAT, json=payload) as reply:
        await reply.read()
        return reply.headers.get("x-composer-decision", "")


async def settled(gateway: Running, requests: int) -> Any:
    async with asyncio.timeout(5):
        while True:
            found = await get(gateway, "/admin/v1/stats")
            if "totals" in found and found["totals"]["requests"] >= requests:
                return found
            await asyncio.sleep(0.05)


async def test_figures_match_when_twenty_prompts_were_answered(gateway: Running) -> None:
    before = (await get(gateway, "/admin/v1/stats"))["totals"]["requests"]
    assert before == 0
    for index in range(20):
        await ask(gateway, "greeting" if index % 4 else "weather", stream=index % 2 == 0)
    found = await settled(gateway, 20)
    StatsView.model_validate(found)
    whole = found["totals"]
    assert (whole["requests"], whole["ok"], whole["fallbacks"]) == (20, 20, 15)
    assert {name: f["requests"] for name, f in found["by_category"].items()} == {
        "greeting": 15,
        "weather": 5,
    }
    assert {name: f["requests"] for name, f in found["by_expert"].items()} == {
        "good": 15,
        "canned": 5,
        "error-500": 0,
    }
    assert found["by_expert"]["error-500"]["fallbacks"] == 15
    assert list(found["by_composition"]) == ["auto"]
    assert (whole["cache"]["hit"], whole["cache"]["miss"]) == (18, 2)
    assert whole["cache"]["hit_rate"] == 0.9
    assert whole["latency_ms"]["total"]["n"] == 20
    assert sum(point["requests"] for point in found["series"]) == 20

    listed = (await get(gateway, "/admin/v1/decisions", limit=7))["data"]
    assert len(listed) == 7
    older = await get(gateway, "/admin/v1/decisions", limit=50, before=listed[-1]["cursor"])
    assert len(older["data"]) == 13
    for view in listed:
        DecisionView.model_validate(view, strict=False)
        assert view["reason"].startswith(f"category '{view['category']}'")
        assert view == await get(gateway, f"/admin/v1/decisions/{view['id']}")
    schema = await get(gateway, "/admin/v1/decisions/schema")
    assert set(schema["required"]) <= set(listed[0])
    greeting = (await get(gateway, "/admin/v1/decisions", category="greeting"))["data"]
    assert len(greeting) == 15
    assert greeting[0]["outcome"]["failed"][0][0] == "error-500"


async def test_an_export_goes_on_from_its_cursor(gateway: Running) -> None:
    ids = [await ask(gateway, "weather") for _ in range(3)]
    await settled(gateway, 3)
    read: list[str] = []
    cursor = ""
    while True:
        async with gateway.session.get(
            "/admin/v1/decisions/export", params={"cursor": cursor, "limit": "2"}
        ) as reply:
            assert reply.content_type == "application/x-ndjson"
            *lines, last = [json.loads(line) for line in (await reply.read()).splitlines()]
        assert list(last) == ["cursor"]
        if not lines:
            assert last["cursor"] == cursor
            break
        read += [line["id"] for line in lines]
        cursor = last["cursor"]
    assert len(set(read)) == len(read)
    assert [i for i in read if i in ids] == ids


async def test_feedback_shows_in_the_figures_at_once_when_it_is_acknowledged(
    gateway: Running,
) -> None:
    decision = await ask(gateway, "greeting")
    for score in (0.25, 1):
        body = {"decision": decision, "score": score, "comment": "so"}
        async with gateway.session.post("/v1/feedback", json=body) as reply:
            assert reply.status == 200
            answer = await reply.json()
            assert (answer["object"], answer["expert"]) == ("composer.feedback", "good")
        found = await get(gateway, "/admin/v1/stats")
        assert found["by_expert"]["good"]["feedback"] == {"n": 1, "mean": score}
    view = await get(gateway, f"/admin/v1/decisions/{decision}")
    assert view["feedback"]["score"] == 1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"decision": "dec-x", "score": 1.5}, 400, "score"),
        ({"decision": "dec-x", "score": -0.1}, 400, "score"),
        ({"decision": "dec-x", "score": "1"}, 400, "score"),
        ({"decision": "dec-x"}, 400, "score"),
        ({"score": 1}, 400, "decision"),
        ({"decision": "dec-x", "score": 1, "comment": "x" * 2001}, 400, "comment"),
        ({"decision": "dec-x", "score": 1, "stars": 5}, 400, "stars"),
        ({"decision": "dec-x", "score": 1}, 404, None),
    ],
)
async def test_feedback_is_refused_when_it_is_malformed_or_of_an_unknown_decision(
    gateway: Running, body: dict[str, Any], status: int, param: str | None
) -> None:
    async with gateway.session.post("/v1/feedback", json=body) as reply:
        assert reply.status == status
        assert (await reply.json())["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("stats?from=-10&to=-20", "from"),
        ("stats?step=7", "step"),
        ("stats?from=nan", "from"),
        ("stats?from=yesterday", "from"),
        ("decisions?limit=0", "limit"),
        ("decisions?limit=100000", "limit"),
        ("decisions?before=x", "before"),
        ("decisions/export?cursor=1-x", "cursor"),
        ("decisions/export?limit=-1", "limit"),
    ],
)
async def test_a_query_is_refused_when_it_makes_no_sense(
    gateway: Running, path: str, param: str
) -> None:
    async with gateway.session.get(f"/admin/v1/{path}") as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == param


async def test_nothing_is_lost_when_the_state_was_away_while_prompts_were_answered(
    gateway: Running,
) -> None:
    before = (await settled(gateway, 0))["totals"]["requests"]
    process = gateway.redis._process
    assert process is not None
    process.kill()
    sent = 0
    away = False
    async with asyncio.timeout(20):
        while not away or sent < 10:
            decision = await ask(gateway, "weather")
            assert decision
            sent += 1
            async with gateway.session.get("/admin/v1/stats") as reply:
                if reply.status == 503:
                    away = True
                    assert (await reply.json())["error"]["code"] == "not_ready"
                    body = {"decision": decision, "score": 1}
                    async with gateway.session.post("/v1/feedback", json=body) as refused:
                        assert refused.status in (200, 503)
        found = await settled(gateway, before + sent)
    assert found["totals"]["requests"] == before + sent
