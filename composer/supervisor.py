"""The supervisor of a host: owns the embedded Redis server, the engines and the gateway worker.

It starts them in order, watches them, starts again what died, says in the shared state which
engine can be asked, and stops them in the opposite order.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from composer.commands import engine_command, free_port, setup_argv, worker_command
from composer.config import Config, configured_specs, find_missing, resolve_experts
from composer.declared import declare
from composer.keys import require_admin_key
from composer.listening import listen
from composer.local_state import REDIS_START_S, answers, hold_folder, local_redis_url, until_up
from composer.processes import Command, child_environment, clean_stale, start_process
from composer.redis_server import redis_command
from composer.services import Service, http_probe
from composer.setup import artefact_folder, encoder_identity, needs_setup
from composer.state import CompositionVersion, Endpoint, EndpointState, ExpertStatus, State
from experts.engine_spec import EmbeddedEngineSpec
from experts.errors import (
    ArtefactError,
    ComposerError,
    ConfigError,
    NotReady,
    SetupError,
    StateUnavailable,
)
from routers.artefact import Artefact, load_artefact, summary_of

RETRY_S = 0.2
MAX_REASON = 200
"""Characters of a failure's reason that clients may see: the log has the rest."""

READY_POLL_S = 0.1
FOLLOW_S = 0.2


class Supervisor:
    """`async with Supervisor(config, announce)` starts everything; leaving stops everything.

    `announce` takes a line for a person at each step. `url` is where the gateway listens.
    """

    def __init__(self, config: Config, announce: Callable[[str], None]) -> None:
        self.url = ""
        self._config = config
        self._announce = announce
        self._records = config.state_dir / "processes"
        self._stack = AsyncExitStack()
        self._endpoints: dict[str, Endpoint] = {}
        self._pending: set[str] = set()
        self._registered = False
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._announce("stopping")
        await self._stack.aclose()

    async def wait_ready(self) -> None:
        """Wait until every expert can be asked; at the deadline, until some can.

        Raises:
            NotReady: nothing can be answered within the configured start time.
        """
        report = "nothing answers yet"
        limit = self._config.timeouts.start_s
        try:
            async with asyncio.timeout(limit), aiohttp.ClientSession() as session:
                while True:
                    report = await _readiness(session, self.url)
                    if report == "ready":
                        return
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as error:
            logs = self._config.state_dir / "logs"
            if report == "degraded":
                self._announce(f"some experts can't be asked; {self.url}/health/ready says why")
                return
            raise NotReady(f"not ready after {limit:g} s ({report}); logs: {logs}") from error

    async def _start(self) -> None:
        config = self._config
        self._stack.enter_context(hold_folder(config.state_dir))
        for name in await asyncio.to_thread(clean_stale, self._records):
            self._announce(f"cleaned a process that was left behind: {name}")
        listener = self._stack.enter_context(listen(config.host, config.port))
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if missing := await asyncio.to_thread(find_missing, config, os.environ):
            raise ConfigError("\n".join(missing))
        redis_url = await self._redis()
        state = await self._stack.enter_async_context(State(redis_url))
        await until_up(state)
        await require_admin_key(config, state)
        if await asyncio.to_thread(needs_setup, config):
            await self._set_up()
        await self._register(state)
        await self._stack.enter_async_context(_owned(self._publish(state)))
        self._announce("starting the engines")
        for service in self._engines():
            await self._stack.enter_async_context(service)
        worker = Service(
            worker_command(config, redis_url, listener),
            self._records,
            probe=http_probe(f"{self.url}/health/live"),
            on_state=partial(self._tell, "gateway"),
            start_s=config.timeouts.start_s,
            drain_s=config.timeouts.drain_s + 2,
        )
        await self._stack.enter_async_context(worker)

    async def _set_up(self) -> None:
        """Run `coe setup` in a process of its own: what it loads is gone again afterwards."""
        self._announce("first start: preparing models and training the router")
        log = self._config.state_dir / "logs" / "setup.log"
        log.unlink(missing_ok=True)
        command = Command("setup", setup_argv(self._config), env=child_environment(), log=log)
        process = await start_process(command, self._records)
        try:
            async with _owned(_follow(log, self._announce)):
                code = await process.wait()
        finally:
            await process.stop(0)
        if code != 0:
            raise SetupError(f"set-up failed: {process.last_words()}")

    async def _redis(self) -> str:
        """URL of the shared state; starts the embedded server if none is configured."""
        config = self._config
        if config.redis_url is not None:
            return config.redis_url.get_secret_value()
        url = local_redis_url(config)
        client = await self._stack.enter_async_context(State(url))
        log = config.state_dir / "logs" / "redis.log"
        command = Command("redis", redis_command(config.state_dir), log=log)
        service = Service(
            command,
            self._records,
            probe=partial(answers, client),
            on_state=self._on_redis,
            start_s=REDIS_START_S,
            drain_s=config.timeouts.drain_s,
        )
        await self._stack.enter_async_context(service)
        return url

    async def _register(self, state: State) -> None:
        """Write the configured experts and composition to the shared state."""
        config = self._config
        await until_up(state)
        await state.migrate()
        experts = resolve_experts(config)
        folder = artefact_folder(config, experts)
        artefact = await self._load_artefact(folder)
        artefact.require_encoder(*await asyncio.to_thread(encoder_identity, config))
        strangers = sorted(set(artefact.manifest.experts) - set(experts))
        if strangers:
            raise ConfigError(
                f"the artefact {folder} routes to '{strangers[0]}', which is not among the "
                "experts: add it, or train again with `coe train --experts`",
                param="composition.artefact",
            )
        version = CompositionVersion(
            name=config.composition.name,
            version=artefact.version,
            artefact=str(folder.resolve()),
            quality_weight=config.composition.quality_weight,
            experts=artefact.manifest.experts,
            categories=artefact.manifest.categories,
            summary=summary_of(artefact.manifest.report),
        )
        await declare(state, configured_specs(config), version)
        await state.statuses.put({expert: ExpertStatus(state="ready") for expert in experts})
        self._registered = True

    async def _load_artefact(self, folder: Path) -> Artefact:
        """Load the router; one of our own making that is damaged is made again."""
        try:
            return await asyncio.to_thread(load_artefact, folder)
        except ArtefactError as error:
            if self._config.composition.artefact is not None:
                raise
            self._announce(f"training again: {error.message}")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            await self._set_up()
            return await asyncio.to_thread(load_artefact, folder)

    def _on_redis(self, state: EndpointState, reason: str) -> None:
        """A server that comes back may have lost what was in it: write all of it again."""
        self._tell("redis", state, reason)
        if state == "ready" and self._registered:
            self._registered = False
            self._changed.set()

    def _engines(self) -> Iterator[Service]:
        """Services of the embedded engines; remote ones are ready as they are."""
        config = self._config
        experts = resolve_experts(config)
        for engine in config.engines:
            if isinstance(engine, EmbeddedEngineSpec):
                port = free_port()
                url = f"http://127.0.0.1:{port}"
                yield Service(
                    engine_command(config, engine, experts, port),
                    self._records,
                    probe=http_probe(f"{url}/health"),
                    on_state=partial(self._set_endpoint, engine.name, url, None),
                    start_s=config.timeouts.start_s,
                    drain_s=config.timeouts.drain_s,
                )
            else:
                url = str(engine.url).rstrip("/").removesuffix("/v1")
                self._set_endpoint(engine.name, url, engine.api_key_env, "ready", "")

    def _set_endpoint(
        self, engine: str, url: str, key_env: str | None, state: EndpointState, reason: str
    ) -> None:
        self._tell(engine, state, reason)
        first_line = reason.partition("\n")[0][:MAX_REASON]
        self._endpoints[engine] = Endpoint(
            engine=engine, base_url=url, state=state, reason=first_line, api_key_env=key_env
        )
        self._pending.add(engine)
        self._changed.set()

    def _tell(self, name: str, state: EndpointState, reason: str) -> None:
        """A person wants to hear of what fails, at once."""
        if state == "failed":
            self._announce(f"{name} failed, starting it again: {reason}")

    async def _publish(self, state: State) -> None:
        """Write endpoints to the shared state; while it is away, keep the newest of each."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                if not self._registered:
                    self._pending |= set(self._endpoints)
                for engine in sorted(self._pending):
                    endpoint = self._endpoints[engine]
                    await state.endpoints.put({engine: endpoint})
                    if self._endpoints[engine] is endpoint:
                        self._pending.discard(engine)
                if not self._registered:
                    await self._register(state)
            except StateUnavailable:
                self._changed.set()
                await asyncio.sleep(RETRY_S)
            except ComposerError as error:
                self._announce(f"the state can't be written again: {error.message}")


@asynccontextmanager
async def _owned(coroutine: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a coroutine as a task for as long as the context lasts."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(log: Path, announce: Callable[[str], None]) -> None:
    """Announce the lines of a growing log; what is left is announced when cancelled."""
    shown = 0

    def show(*, to_the_end: bool = False) -> None:
        nonlocal shown
        text = log.read_text("utf-8", "replace") if log.exists() else ""
        lines = (text if to_the_end else text[: text.rfind("\n") + 1]).splitlines()
        for line in lines[shown:]:
            announce(f"  {line}")
        shown = len(lines)

    try:
        while True:
            show()
            await asyncio.sleep(FOLLOW_S)
    finally:
        show(to_the_end=True)


async def _readiness(session: aiohttp.ClientSession, url: str) -> str:
    """The status that the gateway gives of itself, or why there is none."""
    try:
        async with session.get(
            f"{url}/health/ready", timeout=aiohttp.ClientTimeout(total=2)
        ) as reply:
            report = await reply.json()
            return str(report.get("status"))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return f"the gateway does not answer yet: {type(error).__name__}"
