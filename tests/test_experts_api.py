"""Experts over HTTP: registered, refused, verified, drained, removed; the controller is real."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from composer.state import ExpertRecord
from experts.spec import ExpertSpec
from tests.controlled import (
    CHAT,
    EXPERTS,
    ask,
    controlled_gateway,
    refused,
    register,
    show,
    until_adopted,
    until_state,
)
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import Running

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "experts" / "demo" / "adapters"
MODEL = "SmolLM2-135M-Instruct"
Need = Callable[[str], str]
GREETING = "hello there, how are you"


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture
async def gateway(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setattr("composer.lifecycle.remote.PROBE_S", 0.2)
    monkeypatch.setattr("composer.lifecycle.remote.AGAIN_S", 0.1)
    monkeypatch.setattr("composer.lifecycle.transitions.RETRY_S", (0.3, 0.5))
    roots = [str(tmp_path / "weights")]
    async with controlled_gateway(tmp_path, cache_dir, model_roots=roots) as running:
        yield running


def remote(name: str, server: FaultyServer, served: str = "good") -> dict[str, Any]:
    return {"id": name, "kind": "remote", "url": f"{server.url}/v1", "served_name": served}


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("kind", {"id": "x", "kind": "magic"}),
    ("id", {"id": "no spaces", "kind": "null", "text": "No."}),
    ("text", {"id": "x", "kind": "null"}),
    ("url", {"id": "x", "kind": "null", "text": "No.", "url": "http://127.0.0.1"}),
    ("url", {"id": "x", "kind": "remote", "url": "ftp://127.0.0.1"}),
    ("url", {"id": "x", "kind": "remote", "url": "http://me:hush@127.0.0.1"}),
    ("url", {"id": "x", "kind": "remote", "url": "http://127.0.0.1/v1?key=hush"}),
    ("engine", {"id": "x", "kind": "model", "engine": "unknown"}),
    ("engine", {"id": "x", "kind": "remote"}),
    ("base", {"id": "x", "kind": "prompt", "base": "unknown", "system_prompt": "Be."}),
    ("base", {"id": "x", "kind": "lora", "base": "far", "adapter": str(DEMO / "sql")}),
    ("api_key_env", {"id": "x", "kind": "remote", "provider": "openai",
                     "api_key_env": "SURELY_NOT_SET"}),
    ("api_key_env", {"id": "x", "kind": "remote", "provider": "openai",
                     "api_key_env": "COMPOSER_REDIS_URL"}),
    ("adapter", {"id": "x", "kind": "lora", "base": "near", "adapter": "adapters/sql"}),
    ("adapter", {"id": "x", "kind": "lora", "base": "near", "adapter": "/etc"}),
    ("adapter", {"id": "x", "kind": "lora", "base": "near",
                 "adapter": str(DEMO / ".." / ".." / "..")}),
    ("adapter", {"id": "x", "kind": "lora", "base": "near",
                 "adapter": str(DEMO / "missing")}),
    ("path", {"id": "x", "kind": "model", "path": "/"}),
    ("path", {"id": "x", "kind": "model", "path": str(DEMO / "sql")}),
    ("price_in", {"id": "x", "kind": "null", "text": "No.", "price_in": -1}),
    ("colour", {"id": "x", "kind": "null", "text": "No.", "colour": "red"}),
]  # fmt: skip


class TestRegistration:
    async def test_server_takes_traffic_by_name_once_it_was_verified(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        view = await register(gateway.session, **remote("org/mine", upstream))
        assert (view["state"], view["source"]) == ("registered", "api")
        view = await until_state(gateway.session, "org/mine", "ready")
        assert view["runs_on"]["base_url"] == upstream.url
        probe, _ = upstream.requests[0]
        assert probe["model"] == "good"
        assert probe["max_tokens"] <= 4
        await until_adopted(gateway)
        status, expert, answer = await ask(gateway.session, "org/mine")
        assert (status, expert, answer["model"]) == (200, "org/mine", "org/mine")

    async def test_prompt_on_it_is_verified_with_its_own_system_prompt(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream))
        prompt = {"id": "terse", "kind": "prompt", "base": "mine", "system_prompt": "Be terse."}
        await register(gateway.session, **prompt)
        await until_state(gateway.session, "terse", "ready")
        assert any(
            body["messages"][0] == {"role": "system", "content": "Be terse."}
            for body, _ in upstream.requests
        )

    async def test_null_expert_is_ready_without_being_asked(self, gateway: Running) -> None:
        await register(gateway.session, id="no", kind="null", text="No.")
        await until_state(gateway.session, "no", "ready")

    async def test_server_that_makes_embeddings_alone_is_verified_by_one(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("vectors", upstream, "bad-request"))
        await until_state(gateway.session, "vectors", "ready")

    async def test_dead_url_is_refused_fast_and_nothing_is_registered(
        self, gateway: Running
    ) -> None:
        async with faulty_server() as server:
            spec = remote("mine", server)
        began = time.monotonic()
        status, error = await refused(gateway.session, **spec)
        assert time.monotonic() - began < 3
        assert (status, error["param"]) == (400, "url")
        assert "can't be reached" in error["message"]
        assert await show(gateway.session, "mine") is None

    async def test_url_that_never_answers_is_refused_within_its_deadline(
        self, gateway: Running
    ) -> None:
        silent = await asyncio.start_server(lambda r, w: asyncio.sleep(60), "127.0.0.1", 0)
        async with silent:
            port = silent.sockets[0].getsockname()[1]
            began = time.monotonic()
            url = f"http://127.0.0.1:{port}"
            status, error = await refused(gateway.session, id="mine", kind="remote", url=url)
            assert 1 < time.monotonic() - began < 4
            assert (status, error["param"]) == (400, "url")

    async def test_refusal_names_the_field(self, gateway: Running) -> None:
        far = ExpertSpec(id="far", kind="remote", engine="nothing")
        near = ExpertSpec(id="near", kind="model", engine="nothing")
        await gateway.state.experts.put({e.id: ExpertRecord(spec=e) for e in (far, near)})
        for param, spec in WRONG:
            status, error = await refused(gateway.session, **spec)
            assert (status, error["param"]) == (400, param), (spec, error)
            assert "hush" not in json.dumps(error)
        assert set(await gateway.state.experts.all()) == {"far", "near"}

    async def test_adapter_that_the_engine_would_get_wrong_is_refused(
        self, gateway: Running, tmp_path: Path, cache_dir: Path
    ) -> None:
        weights = tmp_path / "weights"
        weights.mkdir()
        base = ExpertSpec(id="base", kind="model", path=cache_dir / "models" / MODEL)
        await gateway.state.experts.put({"base": ExpertRecord(spec=base)})

        def changed(name: str, **fields: object) -> None:
            file = shutil.copytree(DEMO / "sql", weights / name) / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | fields))

        changed("use_dora", use_dora=True)
        changed("not the rank 4", r=4)
        changed("could run code")
        tensors = weights / "could run code" / "adapter_model.safetensors"
        tensors.rename(tensors.with_suffix(".bin"))
        changed("has no module")
        tensors = weights / "has no module" / "adapter_model.safetensors"
        tensors.write_bytes(tensors.read_bytes().replace(b"layers.0.", b"layers.x."))
        for folder in weights.iterdir():
            spec = {"id": "x", "kind": "lora", "base": "base", "adapter": str(folder)}
            status, error = await refused(gateway.session, **spec)
            assert (status, error["param"]) == (400, "adapter")
            assert folder.name in error["message"]

    async def test_taken_names_are_a_conflict(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream))
        assert (await refused(gateway.session, **remote("mine", upstream)))[0] == 409
        status, error = await refused(gateway.session, **remote("auto", upstream))
        assert (status, error["param"]) == (409, "id")

    async def test_one_of_many_wins_when_all_register_one_id_at_once(
        self, gateway: Running
    ) -> None:
        async def add(text: str) -> int:
            spec = {"id": "no", "kind": "null", "text": text}
            async with gateway.session.post(EXPERTS, json=spec) as reply:
                return reply.status

        statuses = await asyncio.gather(*(add(f"No {i}.") for i in range(8)))
        assert sorted(statuses) == [201] + [409] * 7


async def test_provider_is_reached_by_the_bridge_which_comes_with_its_first_expert(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, need_program: Need
) -> None:
    monkeypatch.setenv("THE_KEY", "hush-hush")
    python = need_program(str(REPOSITORY / ".venv-litellm" / "bin" / "python"))
    async with (
        faulty_server() as upstream,
        controlled_gateway(tmp_path, cache_dir, litellm_python=python) as gateway,
    ):
        spec = remote("far", upstream) | {"provider": "openai", "api_key_env": "THE_KEY"}
        await register(gateway.session, **spec)
        await until_state(gateway.session, "far", "ready", 90)
        await until_adopted(gateway)
        status, expert, answer = await ask(gateway.session, "far")
        assert (status, expert, answer["model"]) == (200, "far", "far")
        assert {key for _, key in upstream.requests} == {"Bearer hush-hush"}
        assert "hush" not in (tmp_path / "logs" / "bridge.log").read_text()


class TestFailing:
    async def test_expert_fails_with_the_reason_and_recovers_by_itself(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        upstream.broken.add("good")
        await register(gateway.session, **remote("mine", upstream))
        view = await until_state(gateway.session, "mine", "failed")
        assert view["reason"] == "status 500: internal trouble"
        assert view["retry_at"] > view["since"]
        async with asyncio.timeout(10):
            while (await show(gateway.session, "mine") or {})["failures"] < 2:
                await asyncio.sleep(0.05)
        status, _, answer = await ask(gateway.session, "mine")
        assert status == 503
        assert "internal trouble" in answer["error"]["message"]
        upstream.broken.clear()
        view = await until_state(gateway.session, "mine", "ready")
        assert (view["failures"], view["retry_at"], view["reason"]) == (0, None, "")

    @pytest.mark.parametrize("served", ["garbage", "leaky", "cut"])
    async def test_key_and_garbage_are_not_shown_in_the_reason(
        self, gateway: Running, upstream: FaultyServer, monkeypatch: pytest.MonkeyPatch, served: str
    ) -> None:
        monkeypatch.setenv("THE_KEY", "hush-hush")
        spec = remote("mine", upstream, served) | {"api_key_env": "THE_KEY"}
        await register(gateway.session, **spec)
        expected = "ready" if served == "cut" else "failed"
        view = await until_state(gateway.session, "mine", expected)
        assert "hush" not in json.dumps(view)
        assert upstream.requests[0][1] == "Bearer hush-hush"

    async def test_server_that_dies_fails_its_expert_and_comes_back(self, gateway: Running) -> None:
        async with faulty_server() as server:
            await register(gateway.session, **remote("mine", server))
            await until_state(gateway.session, "mine", "ready")
        view = await until_state(gateway.session, "mine", "failed")
        assert "can't be reached" in view["reason"]
        async with faulty_server(int(server.url.rsplit(":", 1)[1])):
            await until_state(gateway.session, "mine", "ready")

    async def test_ready_expert_goes_on_answering_while_it_is_verified_again(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream))
        await until_state(gateway.session, "mine", "ready")
        asked = len(upstream.requests)
        async with gateway.session.post(f"{EXPERTS}/mine/verify") as reply:
            assert (await reply.json())["state"] == "ready"
        async with asyncio.timeout(5):
            while len(upstream.requests) == asked:
                assert (await show(gateway.session, "mine") or {})["state"] == "ready"
                await asyncio.sleep(0.02)

    async def test_expert_whose_base_is_gone_is_left_out_and_the_others_answer(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        orphan = ExpertSpec(id="orphan", kind="prompt", base="gone", system_prompt="Be.")
        await gateway.state.experts.put({"orphan": ExpertRecord(spec=orphan, source="api")})
        await register(gateway.session, **remote("mine", upstream))
        await until_state(gateway.session, "mine", "ready")
        view = await until_state(gateway.session, "orphan", "failed")
        assert "'gone', which is not registered" in view["reason"]
        await until_adopted(gateway)
        assert (await ask(gateway.session, "mine"))[0] == 200
        assert (await ask(gateway.session, "orphan"))[0] == 404


class TestRotation:
    async def both(self, gateway: Running, upstream: FaultyServer) -> None:
        for name in ("one", "two"):
            await register(gateway.session, **remote(name, upstream))
        for name in ("one", "two"):
            await until_state(gateway.session, name, "ready")
        await until_adopted(gateway)

    async def test_expert_of_a_live_composition_is_protected_and_ranked_out_when_forced(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await self.both(gateway, upstream)
        assert (await ask(gateway.session, "auto", GREETING))[1] == "one"
        async with gateway.session.delete(f"{EXPERTS}/one") as reply:
            assert reply.status == 409
            assert "live composition 'auto'" in (await reply.json())["error"]["message"]
        async with gateway.session.delete(f"{EXPERTS}/one?force=true") as reply:
            assert reply.status == 202
            assert (await reply.json())["removing"]
        async with asyncio.timeout(10):
            while await show(gateway.session, "one") is not None:
                status, _, _ = await ask(gateway.session, "auto", GREETING)
                assert status == 200
                await asyncio.sleep(0.02)
        await until_adopted(gateway)
        assert (await ask(gateway.session, "auto", GREETING))[:2] == (200, "two")
        assert "one" not in await gateway.state.statuses.all()
        async with asyncio.timeout(5):
            while "own-one" in await gateway.state.endpoints.all():
                await asyncio.sleep(0.05)

    async def test_removal_waits_for_the_answer_that_is_being_given(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream, "endless"))
        await until_state(gateway.session, "mine", "ready")
        await until_adopted(gateway)
        body = {"model": "mine", "messages": [{"role": "user", "content": "Go."}], "stream": True}
        async with gateway.session.post(CHAT, json=body) as answer:
            await answer.content.readany()
            async with gateway.session.delete(f"{EXPERTS}/mine") as reply:
                assert reply.status == 202
            await until_state(gateway.session, "mine", "draining")
            await asyncio.sleep(2)
            view = await show(gateway.session, "mine")
            assert view is not None
            assert view["state"] == "draining"
            assert b"again" in await answer.content.readany()
            assert (await ask(gateway.session, "mine"))[0] == 503
        async with asyncio.timeout(10):
            while await show(gateway.session, "mine") is not None:
                await asyncio.sleep(0.05)

    async def test_engine_of_the_last_expert_goes_with_it(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream))
        await until_state(gateway.session, "mine", "ready")
        await gateway.session.delete(f"{EXPERTS}/mine")
        async with asyncio.timeout(15):
            while "own-mine" in await gateway.state.endpoints.all():
                await asyncio.sleep(0.05)

    async def test_expert_that_others_stand_on_is_not_removed(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await register(gateway.session, **remote("mine", upstream))
        await register(
            gateway.session, id="terse", kind="prompt", base="mine", system_prompt="Be terse."
        )
        async with gateway.session.delete(f"{EXPERTS}/mine?force=true") as reply:
            assert reply.status == 409
            assert "'terse' stands on 'mine'" in (await reply.json())["error"]["message"]

    async def test_configured_expert_can_be_drained_and_resumed_but_not_removed(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        await self.both(gateway, upstream)

        def configured(record: ExpertRecord) -> ExpertRecord:
            return record.model_copy(update={"source": "config"})

        await gateway.state.experts.update("one", configured)
        async with gateway.session.delete(f"{EXPERTS}/one?force=true") as reply:
            assert reply.status == 409
            assert "configuration" in (await reply.json())["error"]["message"]
        async with gateway.session.post(f"{EXPERTS}/one/drain") as reply:
            assert (await reply.json())["drained"]
        await until_state(gateway.session, "one", "parked")
        assert (await ask(gateway.session, "auto", GREETING))[:2] == (200, "two")
        await gateway.session.post(f"{EXPERTS}/one/resume")
        await until_state(gateway.session, "one", "ready")
        await until_adopted(gateway)
        assert (await ask(gateway.session, "auto", GREETING))[:2] == (200, "one")

    async def test_what_is_not_there_is_a_404(self, gateway: Running) -> None:
        for method, path in (
            ("GET", "/x"),
            ("DELETE", "/x"),
            ("POST", "/x/drain"),
            ("POST", "/x/resume"),
            ("POST", "/x/verify"),
        ):
            async with gateway.session.request(method, EXPERTS + path) as reply:
                assert reply.status == 404, path


class TestCommands:
    async def test_experts_are_added_listed_and_removed_by_the_command_line(
        self, gateway: Running, upstream: FaultyServer, tmp_path: Path
    ) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(
            f"- {{id: mine, kind: remote, url: '{upstream.url}', served_name: good}}\n"
            "- {id: terse, kind: prompt, base: mine, system_prompt: Be terse.}\n"
        )
        added = await coe(gateway, "add", "--file", str(file))
        assert added.returncode == 0, added.stderr
        assert "mine: ready" in added.stdout
        listed = await coe(gateway, "list")
        assert "terse" in listed.stdout
        shown = await coe(gateway, "show", "terse", "--json")
        assert json.loads(shown.stdout)["state"] == "ready"
        bad = [
            *["add", "--id", "bad", "--kind", "remote", "--served-name", "error-500", "--url"],
            upstream.url,
        ]
        failed = await coe(gateway, *bad)
        assert failed.returncode == 1
        assert "internal trouble" in failed.stderr
        dead = await coe(
            gateway, *["add", "--id", "d", "--kind", "remote", "--url", "http://127.0.0.1:9"]
        )
        assert dead.returncode == 1
        assert "can't be reached" in dead.stderr
        assert (await coe(gateway, "rm", "mine")).returncode == 1
        for name in ("terse", "mine"):
            removed = await coe(gateway, "rm", name)
            assert removed.returncode == 0, removed.stderr
        assert await show(gateway.session, "mine") is None


async def coe(gateway: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "composer.cli", "experts", *arguments],
        env={**os.environ, "COMPOSER_URL": gateway.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
