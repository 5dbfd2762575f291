"""The supervisor of a host: owns the embedded Redis server, the engines and the gateway workers.

It starts them in order, watches them, starts again what died, cares for the life of experts, and
stops everything in the opposite order.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from composer.commands import metrics_folder, setup_argv, worker_command
from composer.config import Config, configured_specs, find_missing, resolve_experts
from composer.declared import declare, restore
from composer.keys import require_admin_key
from composer.lease import Lease
from composer.lifecycle import Controller, EndpointBoard, Fleet, Verifier
from composer.listening import listen
from composer.local_state import REDIS_START_S, answers, hold_folder, local_redis_url, until_up
from composer.processes import Command, child_environment, clean_stale, start_process
from composer.redis_server import redis_command
from composer.services import Service, http_probe, together
from composer.setup import artefact_folder, encoder_identity, needs_setup
from composer.state import CompositionVersion, EndpointState, State
from composer.trainings.runner import TrainingRunner
from composer.upstream import UpstreamClient
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
READY_POLL_S = 0.1
FOLLOW_S = 0.2


class Supervisor:
    """`async with Supervisor(config, announce)` starts everything; leaving stops everything.

    `announce` takes a line for a person at each step. `url` is where the gateway listens, and
    `worker_urls` reach each of its workers.
    """

    def __init__(self, config: Config, announce: Callable[[str], None]) -> None:
        self.url = ""
        self.worker_urls: list[str] = []
        self._config = config
        self._announce = announce
        self._records = config.state_dir / "processes"
        self._stack = AsyncExitStack()
        self._doubtful = asyncio.Event()

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
                    reports = [await _readiness(session, url) for url in self.worker_urls]
                    report = next((r for r in reports if r != "ready"), "ready")
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
        enter = self._stack.enter_async_context
        self._announce("starting the engines")
        board = await enter(EndpointBoard(state))
        fleet = await enter(Fleet(config, state, board, self._announce))
        lease = await enter(Lease(state.connection, "experts", config.state_dir))
        client = await enter(UpstreamClient(config.limits, config.timeouts))
        controller = await enter(
            Controller(
                state,
                fleet,
                board,
                lease,
                Verifier(client),
                drain_s=config.timeouts.request_s,
                on_lost=self._doubtful.set,
            )
        )
        await enter(_owned(self._keep_state(state, board, controller)))
        await enter(TrainingRunner(state, config, lease))
        await self._start_workers(redis_url, listener)

    async def _start_workers(self, redis_url: str, listener: socket.socket) -> None:
        """Gateway workers share the public socket; each has one of its own to be probed on."""
        config = self._config
        shutil.rmtree(metrics_folder(config), ignore_errors=True)
        workers = []
        for number in range(1, config.workers + 1):
            name = f"gateway-{number}"
            private = self._stack.enter_context(listen("127.0.0.1", 0))
            url = f"http://127.0.0.1:{private.getsockname()[1]}"
            self.worker_urls.append(url)
            workers.append(
                Service(
                    worker_command(config, redis_url, name, [listener, private]),
                    self._records,
                    probe=http_probe(f"{url}/health/live"),
                    on_state=partial(self._tell, name),
                    start_s=config.timeouts.start_s,
                    drain_s=config.timeouts.drain_s + 2,
                )
            )
        await self._stack.enter_async_context(together(workers))

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
        """A server that comes back may have lost what was in it: look, and write it again."""
        self._tell("redis", state, reason)
        if state == "ready":
            self._doubtful.set()

    async def _keep_state(self, state: State, board: EndpointBoard, controller: Controller) -> None:
        """Whenever the state has lost what was in it, write it again."""
        while True:
            await self._doubtful.wait()
            self._doubtful.clear()
            try:
                last = await controller.lost()
                if last is None:
                    continue
                self._announce("the state has lost what was in it: writing it again")
                await restore(state, last)
                board.show_again()
                await self._register(state)
                controller.forget()
            except StateUnavailable:
                self._doubtful.set()
                await asyncio.sleep(RETRY_S)
            except ComposerError as error:
                self._announce(f"the state can't be written again: {error.message}")

    def _tell(self, name: str, state: EndpointState, reason: str) -> None:
        """A person wants to hear of what fails, at once."""
        if state == "failed":
            self._announce(f"{name} failed, starting it again: {reason}")


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
