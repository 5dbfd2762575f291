"""Nothing acknowledged is lost, whenever everything is killed."""

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from routers.artefact import load_artefact
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import SENTENCES, write_artefact

ROUNDS = 10
START_S = 60

pytestmark = pytest.mark.timeout(400)


@dataclass
class Acknowledged:
    """What the service said it has: ids by resource, the live version, answers given."""

    experts: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    live: str = ""
    answered: int = 0
    promoting: str = ""


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    url: str

    def kill_everything(self) -> None:
        """SIGKILL to the supervisor and all that it started, in random order."""
        if self.process.poll() is not None:
            return
        tree = [psutil.Process(self.process.pid)]
        tree += tree[0].children(recursive=True)
        random.shuffle(tree)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


def spawn(config: Path, port: int) -> Service:
    argv = [sys.executable, "-m", "composer.cli", "up", "--config", str(config)]
    process = subprocess.Popen(
        [*argv, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k != "COMPOSER_STATE_DIR"},
    )
    return Service(process, f"http://127.0.0.1:{port}")


async def start(config: Path, port: int) -> Service:
    service = spawn(config, port)
    process = service.process
    async with aiohttp.ClientSession(service.url) as session, asyncio.timeout(START_S):
        while True:
            assert process.poll() is None, "coe up ended"
            with suppress(aiohttp.ClientError, OSError):
                async with session.get("/health/ready") as reply:
                    if reply.status == 200 and (await reply.json())["state"] == "connected":
                        return service
            await asyncio.sleep(0.05)


@pytest.fixture
def port() -> int:
    from composer.commands import free_port

    return free_port()


async def test_everything_acknowledged_is_there_after_each_of_ten_kills_under_traffic(
    tmp_path: Path, cache_dir: Path, port: int
) -> None:
    randomness = random.Random(20261125)
    async with faulty_server() as upstream:
        config = write_config(tmp_path, cache_dir, upstream)
        known = Acknowledged()
        tars = [artefact_tar(tmp_path, cache_dir, i) for i in range(3)]
        for number in range(ROUNDS):
            service = await start(config, port)
            try:
                async with aiohttp.ClientSession(service.url) as session:
                    await check(session, known)
                    async with asyncio.TaskGroup() as group:
                        traffic = [
                            group.create_task(forever(step))
                            for step in steps(session, known, upstream, number, tars)
                        ]
                        # Uploads are checked in a process of their own and take longest.
                        await until(lambda least=number: len(known.datasets) > least)  # type: ignore[misc]
                        await asyncio.sleep(randomness.uniform(0, 1.5))
                        await asyncio.to_thread(service.kill_everything)
                        for task in traffic:
                            task.cancel()
            finally:
                service.kill_everything()
        service = await start(config, port)
        try:
            async with aiohttp.ClientSession(service.url) as session:
                await check(session, known)
        finally:
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.process.wait, 30) == 0
    assert known.answered > ROUNDS
    assert len(known.experts) > ROUNDS
    assert len(known.keys) > ROUNDS
    assert len(known.datasets) >= ROUNDS
    assert known.versions


def write_config(folder: Path, cache_dir: Path, upstream: FaultyServer) -> Path:
    quality = {"greeting": {"good": 1.0, "canned": 0.0}, "weather": {"good": 0.0, "canned": 1.0}}
    write_artefact(folder / "artefact", cache_dir, quality)
    config = {
        "state_dir": str(folder / "state"),
        "cache_dir": str(cache_dir),
        "workers": 2,
        "engines": [{"name": "there", "kind": "remote", "url": upstream.url}],
        "experts": [
            {"id": "good", "kind": "remote", "engine": "there"},
            {"id": "canned", "kind": "null", "text": "I can't know that."},
        ],
        "composition": {"artefact": str(folder / "artefact")},
    }
    file = folder / "composer.json"
    file.write_text(json.dumps(config))
    return file


def artefact_tar(folder: Path, cache_dir: Path, number: int) -> tuple[str, bytes]:
    """Another version of the composition: its id and the archive that is uploaded."""
    quality = {
        "greeting": {"good": 1.0, "canned": 0.01 * number},
        "weather": {"good": 0.02, "canned": 1.0},
    }
    source = folder / f"version-{number}"
    write_artefact(source, cache_dir, quality)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(source.iterdir()):
            archive.add(file, file.name)
    return load_artefact(source).version, buffer.getvalue()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


async def forever(step: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled; what a killed service does not answer is not acknowledged."""
    while True:
        try:
            await step()
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.02)


def steps(
    session: aiohttp.ClientSession,
    known: Acknowledged,
    upstream: FaultyServer,
    number: int,
    tars: list[tuple[str, bytes]],
) -> list[Callable[[], Awaitable[None]]]:
    """Each is one request after another of a kind."""
    count = iter(range(10**6))

    async def chat() -> None:
        text = SENTENCES["greeting"]
        status, _ = await send(
            session,
            "POST",
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": text}]},
        )
        known.answered += status == 200

    async def register() -> None:
        name = f"expert-{number}-{next(count)}"
        spec = {"id": name, "kind": "remote", "url": f"{upstream.url}/v1", "served_name": "good"}
        status, _ = await send(session, "POST", "/admin/v1/experts", json=spec)
        if status == 201:
            known.experts.add(name)
        await asyncio.sleep(0.02)

    async def make_key() -> None:
        body = {"name": f"key {next(count)}", "scopes": ["user"]}
        status, answer = await send(session, "POST", "/admin/v1/keys", json=body)
        if status == 201:
            known.keys.add(answer["id"])
        await asyncio.sleep(0.02)

    async def upload() -> None:
        name = f"data {next(count)}"
        line = json.dumps({"prompt": name, "category": "greeting", "expert": "good", "score": 1.0})
        path = "/admin/v1/datasets"
        status, answer = await send(
            session, "POST", path, data=line.encode(), params={"name": name, "source": "a test"}
        )
        if status == 201:
            known.datasets.add(answer["id"])
        await asyncio.sleep(0.02)

    async def promote() -> None:
        version, archive = tars[next(count) % len(tars)]
        path = "/admin/v1/compositions"
        status, answer = await send(
            session, "POST", f"{path}/import", data=archive, params={"name": "auto"}
        )
        if status in (200, 201):
            known.versions.add(answer["version"])
        known.promoting = version
        status, _ = await send(session, "POST", f"{path}/auto/promote", json={"version": version})
        if status == 200:
            known.live, known.promoting = version, ""
        await asyncio.sleep(0.1)

    return [chat, chat, register, make_key, upload, promote]


async def check(session: aiohttp.ClientSession, known: Acknowledged) -> None:
    """All that was acknowledged is there, and the promoted version is live."""
    for path, wanted in (
        ("/admin/v1/experts", known.experts),
        ("/admin/v1/keys", known.keys),
        ("/admin/v1/datasets", known.datasets),
    ):
        status, answer = await send(session, "GET", path)
        assert status == 200
        assert wanted <= {entry["id"] for entry in answer["data"]}, path
    status, answer = await send(session, "GET", "/admin/v1/compositions/auto")
    assert status == 200
    assert known.versions <= {version["version"] for version in answer["versions"]}
    if known.live:
        # A promotion that was under way when everything died may have happened or not.
        assert answer["live"]["version"] in {known.live, known.promoting}
        known.live, known.promoting = answer["live"]["version"], ""


async def send(
    session: aiohttp.ClientSession, method: str, path: str, **options: Any
) -> tuple[int, Any]:
    async with session.request(
        method, path, timeout=aiohttp.ClientTimeout(total=10), **options
    ) as reply:
        return reply.status, await reply.json()
