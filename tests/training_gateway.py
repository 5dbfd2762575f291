"""A gateway over the demo's kinds of prompts, the loop that runs trainings, and calls to both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AnyHttpUrl

from composer.config import Config
from composer.state import Endpoint, State
from composer.state.store import version_key
from composer.trainings.runner import TrainingRunner
from experts.registry import own_engine_name
from experts.spec import ExpertSpec
from tests.faulty import faulty_server
from tests.small_composition import Running, gateway_config, small_gateway
from tests.task_data import jsonl

ADMIN = "/admin/v1"
INCUMBENT, NEWCOMER = "incumbent", "newcomer"


@dataclass(frozen=True)
class Trained:
    """`config` is of the gateway and of the runner."""

    gateway: Running
    config: Config

    @property
    def state(self) -> State:
        return self.gateway.state

    async def call(
        self, method: str, path: str, body: Any = None, *, data: Any = None, expect: int = 200
    ) -> Any:
        """A call to the admin API that must be answered with the status `expect`."""
        session = self.gateway.session
        async with session.request(method, ADMIN + path, json=body, data=data) as reply:
            text = await reply.text()
            assert reply.status == expect, text
            return await reply.json() if text else None

    async def upload(self, rows: list[dict[str, Any]], name: str = "rows") -> str:
        """Id of a new dataset."""
        record = await self.call("POST", f"/datasets?name={name}", data=jsonl(rows), expect=201)
        return str(record["id"])

    async def train(self, *datasets: str, **more: Any) -> dict[str, Any]:
        """Queue a training and wait for its end."""
        body = {"datasets": list(datasets), **more}
        record = await self.call("POST", "/trainings", body, expect=201)
        return await self.ended(record["id"])

    async def ended(self, training: str, timeout_s: float = 60) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while True:
                record: dict[str, Any] = await self.call("GET", f"/trainings/{training}")
                if record["state"] not in ("queued", "running"):
                    return record
                await asyncio.sleep(0.05)


@asynccontextmanager
async def training_gateway(
    folder: Path, cache_dir: Path, *, run: bool = True, **settings: object
) -> AsyncIterator[Trained]:
    """Two experts that answer; the incumbent alone takes part in the live composition. Without
    `run` nobody runs trainings."""
    specs = [
        ExpertSpec(id=INCUMBENT, kind="remote", engine="up"),
        ExpertSpec(id=NEWCOMER, kind="remote", url=AnyHttpUrl("http://127.0.0.1:9/v1")),
    ]
    quality = {"greeting": {INCUMBENT: 0.5}, "weather": {INCUMBENT: 0.5}}
    async with faulty_server() as upstream:
        endpoints = [
            Endpoint(engine=engine, base_url=upstream.url, state="ready")
            for engine in ("up", own_engine_name(NEWCOMER))
        ]
        async with small_gateway(folder, cache_dir, specs, endpoints, quality, **settings) as g:
            live = (await g.state.live.get("auto")).current
            await g.state.versions.put({version_key("auto", live.version): live})
            config = gateway_config(folder, cache_dir, **settings)
            if not run:
                yield Trained(g, config)
                return
            async with TrainingRunner(g.state, config):
                yield Trained(g, config)
