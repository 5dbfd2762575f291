"""The OpenAPI document: valid, complete, true to what is answered, and the page made from it."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from openapi_spec_validator import validate

from composer.keys import create_key
from composer.state import Endpoint
from experts.spec import ExpertSpec
from gateway.app import PATHS, Gateway
from gateway.openapi import document
from gateway.openapi.markdown import markdown
from tests.conftest import REPOSITORY
from tests.faulty import faulty_server
from tests.small_composition import Running, small_gateway

SPEC = ExpertSpec(id="speaker", kind="remote", engine="elsewhere")
QUALITY = {"greeting": {"speaker": 0.9}, "weather": {"speaker": 0.9}}
CHAT = {
    "messages": [{"role": "user", "content": "hello there, how are you"}],
    "composer": {"explain": True},
}


@dataclass(frozen=True)
class Served:
    """A gateway that wants keys; `user` and `admin` are headers that carry one."""

    session: aiohttp.ClientSession
    user: dict[str, str]
    admin: dict[str, str]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    async with faulty_server() as server:
        engine = Endpoint(engine="elsewhere", base_url=server.url, state="ready")
        async with small_gateway(
            folder, cache_dir, [SPEC], [engine], QUALITY, auth={"required": True}
        ) as gateway:
            user, admin = [await key(gateway, scope) for scope in ("user", "admin")]
            async with asyncio.timeout(5):
                while (await gateway.session.get("/v1/models", headers=user)).status != 200:
                    await asyncio.sleep(0.05)
            yield Served(gateway.session, user, admin)


async def key(gateway: Running, scope: Any) -> dict[str, str]:
    _, secret = await create_key(gateway.state, scope, [scope])
    return {"authorization": f"Bearer {secret}"}


def fields(schema: str) -> set[str]:
    return set(document()["components"]["schemas"][schema]["properties"])


def test_document_is_valid() -> None:
    validate(document())


def test_every_operation_says_what_it_does() -> None:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path}"
            assert operation["tags"][0] in {tag["name"] for tag in document()["tags"]}


def test_every_tag_is_described() -> None:
    assert [tag["name"] for tag in document()["tags"] if not tag["description"]] == []


def test_page_is_what_make_api_docs_writes() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text()
    assert page == markdown(document()), "docs/api.md is stale: run `make api-docs`"


def test_links_of_the_page_lead_somewhere() -> None:
    page = markdown(document())
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= headings


@pytest.mark.asyncio(loop_scope="module")
class TestRunningGateway:
    async def test_document_is_served_to_admins_only(self, served: Served) -> None:
        for headers, status in ((served.admin, 200), (served.user, 403)):
            async with served.session.get("/openapi.json", headers=headers) as reply:
                assert reply.status == status
                if status == 200:
                    assert await reply.json() == document()
        async with served.session.get("/openapi.json") as reply:
            assert reply.status == 401

    async def test_answers_have_the_headers_that_are_documented(self, served: Served) -> None:
        async with served.session.post(
            "/v1/chat/completions", json=CHAT, headers=served.user
        ) as reply:
            assert reply.status == 200
            told = {name.lower() for name in reply.headers if name.lower().startswith("x-composer")}
            assert told == set(document()["components"]["headers"])
            assert set(await reply.json()) <= fields("Completion")

    async def test_decisions_have_the_fields_that_are_documented(self, served: Served) -> None:
        body = {"prompt": "hello there", "composer": {"explain": True}}
        async with served.session.post("/v1/route", json=body, headers=served.user) as reply:
            found: dict[str, Any] = await reply.json()
        assert set(found) - {"object", "encoder"} == fields("Decision")

    async def test_errors_have_the_fields_that_are_documented(self, served: Served) -> None:
        async with served.session.post(
            "/v1/chat/completions", json={}, headers=served.user
        ) as reply:
            found = await reply.json()
        error = document()["components"]["schemas"]["Error"]["properties"]["error"]
        assert set(found["error"]) == set(error["properties"])

    async def test_every_example_is_accepted(self, served: Served) -> None:
        for path, methods in document()["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example")
            if example is None or not path.startswith("/v1"):
                continue
            body = {**example, **({"model": "speaker"} if example.get("model") else {})}
            async with served.session.post(path, json=body, headers=served.user) as reply:
                assert reply.status in (200, 404), (path, await reply.text())


def test_every_route_of_the_data_plane_is_documented() -> None:
    parts: Any = None
    gateway = Gateway(
        dict.fromkeys(PATHS, parts), *[parts] * (len(signature(Gateway).parameters) - 1)
    )
    routes = {path.removesuffix("/") for path in gateway._routes}
    documented = {path.partition("/{")[0] for path in document()["paths"]}
    assert routes - documented == {"/dashboard"}
