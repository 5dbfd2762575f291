"""`coe up` whole, with remote engines alone so that it starts fast: workers, losses, restarts."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from composer.redis_server import socket_path
from composer.state import State
from composer.workers import live_workers
from tests.controlled import EXPERTS, ask, register, show, until_state
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import write_artefact

READY = re.compile(r"Composer answers at (http://\S+)/v1")
START_S = 90
GREETING = "hello there, how are you"


@dataclass(frozen=True)
class Up:
    """A running `coe up`."""

    url: str
    process: asyncio.subprocess.Process
    folder: Path

    def child(self, name: str) -> psutil.Process:
        record = self.folder / "processes" / f"{name}.json"
        return psutil.Process(json.loads(record.read_text())["pid"])

    def kill_all(self) -> None:
        """Kill -9 of the supervisor and all that it started."""
        supervisor = psutil.Process(self.process.pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            process.kill()


@asynccontextmanager
async def up(folder: Path, workers: int = 1) -> AsyncIterator[Up]:
    """Start on what `configure` wrote; stop it by SIGTERM unless it is gone."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "composer.cli", "up", "--config", str(folder / "composer.yaml")],
        *["--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("a"),
        env={k: v for k, v in os.environ.items() if k != "COMPOSER_STATE_DIR"},
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            async for line in process.stdout:
                lines.append(line.decode())
                if found := READY.search(lines[-1]):
                    yield Up(found[1], process, folder)
                    return
        pytest.fail("coe up ended:\n" + "".join(lines) + (folder / "stderr").read_text()[-2000:])
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def configure(folder: Path, cache_dir: Path, server: FaultyServer) -> None:
    """Two experts on one server, each the better one for one kind of prompt."""
    quality = {"greeting": {"one": 1.0, "two": 0.5}, "weather": {"one": 0.5, "two": 1.0}}
    write_artefact(folder / "artefact", cache_dir, quality)
    expert = {"kind": "remote", "engine": "far"}
    settings = {
        "port": 0,
        "state_dir": str(folder),
        "cache_dir": str(cache_dir),
        "engines": [{"kind": "remote", "name": "far", "url": server.url}],
        "experts": [{"id": "one", **expert}, {"id": "two", **expert}],
        "composition": {"artefact": str(folder / "artefact")},
    }
    (folder / "composer.yaml").write_text(yaml.safe_dump(settings))


def remote(name: str, server: FaultyServer) -> dict[str, Any]:
    return {"id": name, "kind": "remote", "url": server.url, "served_name": "good"}


async def readiness(session: aiohttp.ClientSession) -> str:
    async with session.get("/health/ready") as reply:
        return str((await reply.json())["status"])


async def test_both_workers_take_a_new_expert_over_within_a_second(
    tmp_path: Path, cache_dir: Path
) -> None:
    async with faulty_server() as server:
        configure(tmp_path, cache_dir, server)
        async with (
            up(tmp_path, workers=2) as running,
            aiohttp.ClientSession(running.url) as session,
            State(f"unix://{socket_path(tmp_path)}") as state,
        ):
            assert len(await live_workers(state)) == 2
            began = time.monotonic()
            await register(session, **remote("mine", server))
            generation = await state.generation()
            async with asyncio.timeout(10):
                while any(w.generation < generation for w in await live_workers(state)):
                    await asyncio.sleep(0.02)
            assert time.monotonic() - began < 1.5
            await until_state(session, "mine", "ready")
            await asyncio.sleep(1)
            for _ in range(20):
                async with aiohttp.ClientSession(running.url) as fresh:
                    assert (await ask(fresh, "mine"))[:2] == (200, "mine")
            killed = running.child("gateway-1")
            killed.kill()
            async with asyncio.timeout(30):
                while not await replaced(running, killed):
                    async with aiohttp.ClientSession(running.url) as fresh:
                        assert (await ask(fresh, "mine"))[:2] == (200, "mine")
            pids = {worker.pid for worker in await live_workers(state)}
            assert running.child("gateway-2").pid in pids


async def replaced(running: Up, former: psutil.Process) -> bool:
    """Whether another process serves in the place of the first worker."""
    try:
        return running.child("gateway-1").pid != former.pid
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


async def test_answers_go_on_and_registration_recovers_when_redis_is_killed(
    tmp_path: Path, cache_dir: Path
) -> None:
    async with faulty_server() as server:
        configure(tmp_path, cache_dir, server)
        async with (
            up(tmp_path) as running,
            aiohttp.ClientSession(running.url) as session,
        ):
            assert await readiness(session) == "ready"
            redis = running.child("redis")
            supervisor = psutil.Process(running.process.pid)
            # The supervisor would bring it back at once.
            supervisor.suspend()
            redis.kill()
            async with asyncio.timeout(5):
                while await readiness(session) != "degraded":
                    await asyncio.sleep(0.05)
            assert (await ask(session, "auto", GREETING))[:2] == (200, "one")
            async with session.post(EXPERTS, json=remote("mine", server)) as reply:
                assert reply.status == 503
                assert "Redis" in (await reply.json())["error"]["message"]
            supervisor.resume()
            async with asyncio.timeout(20):
                while await readiness(session) != "ready":
                    assert (await ask(session, "auto", GREETING))[:2] == (200, "one")
                    await asyncio.sleep(0.05)
            await register(session, **remote("mine", server))
            await until_state(session, "mine", "ready")


async def test_registered_expert_is_there_and_answers_after_everything_was_killed(
    tmp_path: Path, cache_dir: Path
) -> None:
    async with faulty_server() as server:
        configure(tmp_path, cache_dir, server)
        for life in range(3):
            async with (
                up(tmp_path, workers=2) as running,
                aiohttp.ClientSession(running.url) as session,
            ):
                for earlier in range(life):
                    view = await until_state(session, f"expert-{earlier}", "ready")
                    assert view["source"] == "api"
                    assert (await ask(session, f"expert-{earlier}"))[0] == 200
                await register(session, **remote(f"expert-{life}", server))
                running.kill_all()
                await running.process.wait()


async def test_lost_state_is_written_again_with_what_was_registered(
    tmp_path: Path, cache_dir: Path
) -> None:
    async with faulty_server() as server:
        configure(tmp_path, cache_dir, server)
        async with (
            up(tmp_path) as running,
            aiohttp.ClientSession(running.url) as session,
            State(f"unix://{socket_path(tmp_path)}") as state,
        ):
            await register(session, **remote("mine", server))
            await until_state(session, "mine", "ready")
            await asyncio.sleep(1)
            await state.connection.redis.flushall()
            async with asyncio.timeout(20):
                while await show(session, "mine") is None:
                    assert (await ask(session, "auto", GREETING))[:2] == (200, "one")
                    await asyncio.sleep(0.05)
            await until_state(session, "mine", "ready")
            assert (await ask(session, "mine"))[0] == 200
