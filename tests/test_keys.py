"""API keys: who may do what with them, who may not, and where their secrets never appear."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from composer.config import load_config
from composer.keys import create_key, digest_of
from composer.state import Endpoint, State
from experts.errors import ConfigError, NotReady, Unauthenticated
from experts.spec import ExpertSpec
from gateway.auth import Authenticator
from tests.faulty import faulty_server
from tests.small_composition import SENTENCES, Running, redis_service, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
KEYS = "/admin/v1/keys"
BODY = {"messages": [{"role": "user", "content": SENTENCES["greeting"]}]}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    """A gateway bound beyond loopback, as far as its rules go."""
    specs = [ExpertSpec(id="good", kind="remote", engine="one")]
    quality = {"greeting": {"good": 0.5}, "weather": {"good": 0.5}}
    folder = tmp_path_factory.mktemp("gateway")
    async with faulty_server() as upstream:
        endpoints = [Endpoint(engine="one", base_url=upstream.url, state="ready")]
        async with small_gateway(
            folder, cache_dir, specs, endpoints, quality, host="0.0.0.0"
        ) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def admin(gateway: Running) -> str:
    """The secret of the first key, made without a gateway."""
    _, secret = await create_key(gateway.state, "operator", ["admin", "user"])
    await until(gateway, secret, 200)
    return secret


async def ask(
    gateway: Running, method: str, path: str, secret: str | None = None, body: Any = None
) -> tuple[int, dict[str, Any], str]:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    async with gateway.session.request(method, path, json=body, headers=headers) as reply:
        text = await reply.text()
        answer = json.loads(text) if "json" in reply.headers["content-type"] else {}
        return reply.status, answer, text + json.dumps(dict(reply.headers))


async def until(gateway: Running, secret: str, status: int) -> None:
    """A key's fate reaches every worker within a second."""
    async with asyncio.timeout(1):
        while (await ask(gateway, "GET", "/v1/models", secret))[0] != status:
            await asyncio.sleep(0.02)


async def make(gateway: Running, admin: str, *scopes: str) -> dict[str, Any]:
    body = {"name": "someone", "scopes": list(scopes)}
    status, key, _ = await ask(gateway, "POST", KEYS, admin, body)
    assert status == 201
    return key


class TestScopes:
    async def test_user_key_may_send_prompts_and_nothing_else(
        self, gateway: Running, admin: str
    ) -> None:
        key = await make(gateway, admin, "user")
        assert (await ask(gateway, "POST", CHAT, key["secret"], BODY))[0] == 200
        for path in (KEYS, "/admin/v1/experts", "/metrics", "/openapi.json"):
            status, answer, _ = await ask(gateway, "GET", path, key["secret"])
            assert (status, answer["error"]["code"]) == (403, "insufficient_scope"), path

    async def test_admin_key_may_do_both(self, gateway: Running, admin: str) -> None:
        assert (await ask(gateway, "POST", CHAT, admin, BODY))[0] == 200
        assert (await ask(gateway, "GET", "/metrics", admin))[0] == 200

    @pytest.mark.parametrize("secret", [None, "", "sk-wrong", "cmp-" + "x" * 43, "x" * 10_000, "é"])
    async def test_stranger_is_refused_in_the_openai_shape(
        self, gateway: Running, admin: str, secret: str | None
    ) -> None:
        for method, path in (("POST", CHAT), ("GET", KEYS), ("GET", "/metrics"), ("GET", "/x")):
            status, answer, _ = await ask(gateway, method, path, secret)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert answer["error"]["type"] == "invalid_request_error"

    async def test_readiness_tells_a_stranger_the_status_only(
        self, gateway: Running, admin: str
    ) -> None:
        status, answer, _ = await ask(gateway, "GET", "/health/ready")
        assert (status, answer) == (200, {"status": "ready"})
        _, answer, _ = await ask(gateway, "GET", "/health/ready", admin)
        assert answer["experts"] == {"good": "ready"}

    async def test_host_and_origin_are_any_beyond_loopback(
        self, gateway: Running, admin: str
    ) -> None:
        headers = {
            "host": "composer.example",
            "origin": "https://page.example",
            "authorization": f"Bearer {admin}",
        }
        async with gateway.session.get("/v1/models", headers=headers) as reply:
            assert reply.status == 200


class TestLife:
    async def test_removed_key_is_refused_within_a_second(
        self, gateway: Running, admin: str
    ) -> None:
        key = await make(gateway, admin, "user")
        assert (await ask(gateway, "GET", "/v1/models", key["secret"]))[0] == 200
        # Removed in the state itself, as another worker would do it.
        await gateway.state.keys.put({key["id"]: None})
        await until(gateway, key["secret"], 401)

    async def test_key_works_and_is_gone_at_once_in_the_worker_that_was_asked(
        self, gateway: Running, admin: str
    ) -> None:
        key = await make(gateway, admin, "user")
        assert (await ask(gateway, "GET", "/v1/models", key["secret"]))[0] == 200
        status, answer, _ = await ask(gateway, "DELETE", f"{KEYS}/{key['id']}", admin)
        assert (status, answer["deleted"]) == (200, True)
        assert (await ask(gateway, "GET", "/v1/models", key["secret"]))[0] == 401
        assert (await ask(gateway, "DELETE", f"{KEYS}/{key['id']}", admin))[0] == 404

    async def test_last_admin_key_stays(self, gateway: Running, admin: str) -> None:
        (mine,) = [
            key["id"]
            for key in (await ask(gateway, "GET", KEYS, admin))[1]["data"]
            if "admin" in key["scopes"]
        ]
        status, answer, _ = await ask(gateway, "DELETE", f"{KEYS}/{mine}", admin)
        assert (status, answer["error"]["code"]) == (409, "conflict")
        other = await make(gateway, admin, "admin", "user")
        status, _, _ = await ask(gateway, "DELETE", f"{KEYS}/{other['id']}", admin)
        assert status == 200

    async def test_secret_is_shown_once_and_kept_nowhere(
        self, gateway: Running, admin: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        key = await make(gateway, admin, "user")
        secret = key["secret"]
        assert secret.startswith("cmp-")
        assert len(secret) == 47
        stored = await gateway.state.keys.get(key["id"])
        assert stored.digest == digest_of(secret)
        assert secret not in stored.model_dump_json()
        assert secret[4 + 4 :] not in stored.hint
        seen = [(await ask(gateway, "GET", KEYS, admin))[2]]
        for path in ("/x", KEYS, CHAT):
            seen.append((await ask(gateway, "POST", path, secret, {"messages": []}))[2])
        seen += capfd.readouterr()
        assert all(secret not in text and admin not in text for text in seen)
        assert all(digest_of(secret) not in text for text in seen)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "x" * 201}, "name"),
            ({"name": "\ud800"}, None),
            ({"name": "x", "scopes": []}, "scopes"),
            ({"name": "x", "scopes": ["root"]}, "scopes.0"),
            ({"name": "x", "secret": "mine"}, "secret"),
        ],
    )
    async def test_bad_key_is_refused_and_the_field_named(
        self, gateway: Running, admin: str, body: dict[str, Any], param: str | None
    ) -> None:
        status, answer, _ = await ask(gateway, "POST", KEYS, admin, body)
        assert (status, answer["error"]["param"]) == (400, param)


async def test_keys_can_be_left_out_on_loopback_and_unknown_ones_are_taken(
    tmp_path: Path, cache_dir: Path
) -> None:
    specs = [
        ExpertSpec(id="canned", kind="null", text="x"),
        ExpertSpec(id="r", kind="remote", engine="o"),
    ]
    quality = {"greeting": {"canned": 1, "r": 0}, "weather": {"canned": 1, "r": 0}}
    endpoints = [Endpoint(engine="o", base_url="http://127.0.0.1:9", state="ready")]
    async with small_gateway(tmp_path, cache_dir, specs, endpoints, quality) as running:
        for secret in (None, "sk-anything"):
            assert (await ask(running, "POST", CHAT, secret, BODY))[0] == 200
            assert (await ask(running, "GET", KEYS, secret))[0] == 200
        _, key, _ = await ask(running, "POST", KEYS, None, {"name": "x"})
        assert (await ask(running, "GET", KEYS, key["secret"]))[0] == 403
        # Where nobody needs a key, the last one may go.
        assert (await ask(running, "DELETE", f"{KEYS}/{key['id']}"))[0] == 200


async def test_keys_are_needed_beyond_loopback_whatever_the_configuration_says() -> None:
    assert load_config(None, flags={"host": "0.0.0.0"}, environ={}).keys_required
    assert not load_config(None, flags={}, environ={}).keys_required
    assert load_config(None, flags={"auth": {"required": True}}, environ={}).keys_required
    with pytest.raises(ConfigError, match=r"leave out auth\.required"):
        load_config(None, flags={"host": "0.0.0.0", "auth": {"required": False}}, environ={})


def coe(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "composer.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_first_key_is_made_by_command_before_anything_runs(
    tmp_path: Path, cache_dir: Path
) -> None:
    environment = {
        "COMPOSER_STATE_DIR": str(tmp_path),
        "COMPOSER_CACHE_DIR": str(cache_dir),
    }
    refused = await asyncio.to_thread(coe, environment, "up", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 1
    assert "coe keys create --admin" in refused.stderr
    made = await asyncio.to_thread(coe, environment, "keys", "create", "--admin", "--direct")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("cmp-")
    assert secret not in made.stderr
    listed = await asyncio.to_thread(coe, environment, "keys", "list", "--direct", "--json")
    (key,) = json.loads(listed.stdout)
    assert key["scopes"] == ["admin", "user"]
    assert secret not in listed.stdout
    async with redis_service(tmp_path) as (_, url), State(url) as state:
        assert digest_of(secret) in {k.digest for k in (await state.keys.all()).values()}
        await state.keys.put({key["id"]: None})
        environment["COMPOSER_REDIS_URL"] = url
        alone = await asyncio.to_thread(
            coe, environment, "serve", "--host", "0.0.0.0", "--port", "0"
        )
        assert alone.returncode == 1
        assert "coe keys create --admin" in alone.stderr


async def test_commands_make_list_and_remove_keys_through_the_gateway(
    gateway: Running, admin: str
) -> None:
    environment = {"COMPOSER_URL": gateway.url, "COMPOSER_API_KEY": admin}
    made = await asyncio.to_thread(coe, environment, "keys", "create", "--name", "site", "--json")
    key = json.loads(made.stdout)
    assert key["scopes"] == ["user"]
    listed = await asyncio.to_thread(coe, environment, "keys", "list")
    assert key["id"] in listed.stdout
    removed = await asyncio.to_thread(coe, environment, "keys", "rm", key["id"])
    assert removed.returncode == 0
    async with (
        aiohttp.ClientSession(
            gateway.url, headers={"authorization": f"Bearer {key['secret']}"}
        ) as session,
        session.get("/v1/models") as reply,
    ):
        assert reply.status == 401
    stranger = {**environment, "COMPOSER_API_KEY": ""}
    refused = await asyncio.to_thread(coe, stranger, "keys", "create", "--admin")
    assert refused.returncode == 1
    assert "401" in refused.stderr


async def test_no_key_is_taken_before_the_keys_are_known() -> None:
    def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
        return {"path": "/v1/models", "headers": list(headers)}

    unread = Authenticator(lambda: None, required=True)
    with pytest.raises(NotReady):
        unread.check(scope((b"authorization", b"Bearer cmp-anything")))
    with pytest.raises(Unauthenticated):
        unread.check(scope())
