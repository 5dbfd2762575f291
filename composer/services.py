"""Keeping a local process alive: start, wait until it is healthy, watch, start again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from composer.logs import get_logger
from composer.processes import Command, ManagedProcess, start_process
from composer.state import EndpointState
from experts.errors import ProcessError

BACKOFF_S = (0.2, 1.0, 3.0, 10.0, 30.0)
STEADY_S = 60.0
"""A process that ran this long starts again without delay when it dies."""

PROBE_S = 2.0
PROBE_TIMEOUT_S = 3.0
PROBES_FAILED = 4
"""So many failed probes in a row are a hang: the process is killed and started again."""

START_POLL_S = 0.1

Probe = Callable[[], Awaitable[bool]]
OnState = Callable[[EndpointState, str], None]


def http_probe(url: str) -> Probe:
    """Whether `url` answers 200 in time."""

    async def probe() -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    return probe


async def always_healthy() -> bool:
    """The probe of a process that is healthy as long as it runs."""
    return True


@asynccontextmanager
async def together(services: Iterable["Service"]) -> AsyncIterator[None]:
    """Start services, and stop them all at the same time."""
    started = []
    try:
        for service in services:
            started.append(await service.__aenter__())
        yield
    finally:
        await asyncio.gather(*(service.__aexit__(None, None, None) for service in started))


class Service:
    """One process that should always run. `async with` starts and stops it.

    `on_state` hears of every change with a reason; it must neither block nor raise.
    """

    def __init__(
        self,
        command: Command,
        records: Path,
        *,
        probe: Probe = always_healthy,
        on_state: OnState = lambda state, reason: None,
        start_s: float = 60.0,
        drain_s: float = 10.0,
    ) -> None:
        self._command = command
        self._records = records
        self._probe = probe
        self._on_state = on_state
        self._start_s = start_s
        self._drain_s = drain_s
        self._process: ManagedProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._log = get_logger("services")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name=self._command.name)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        if self._process is not None:
            await self._process.stop(self._drain_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None:
            await self._process.stop(self._drain_s)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        reason = ""
        while not self._stopping:
            started = loop.time()
            self._on_state("starting", reason)
            try:
                self._process = await start_process(self._command, self._records)
                await self._until_healthy(self._process)
                self._on_state("ready", "")
                self._log.info("ready", name=self._command.name, pid=self._process.pid)
                reason = await self._watch(self._process)
            except ProcessError as error:
                reason = error.message
            except Exception as error:
                # Whatever it is, the process must be kept: a task that ended would keep nothing.
                reason = repr(error)
                if self._process is not None:
                    await self._process.stop(0)
            if self._stopping:
                return
            failures = 0 if loop.time() - started > STEADY_S else failures + 1
            delay = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            self._log.error("ended", name=self._command.name, reason=reason, again_in_s=delay)
            self._on_state("failed", reason)
            await asyncio.sleep(delay)

    async def _until_healthy(self, process: ManagedProcess) -> None:
        """
        Raises:
            ProcessError: it ended, or was not healthy in time; with its last words.
        """
        try:
            async with asyncio.timeout(self._start_s):
                while not await self._probe():
                    if process.returncode is not None:
                        await process.wait()
                        raise ProcessError(self._words(process, f"ended ({process.returncode})"))
                    await asyncio.sleep(START_POLL_S)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            words = self._words(process, f"not healthy after {self._start_s:g} s")
            raise ProcessError(words) from error

    async def _watch(self, process: ManagedProcess) -> str:
        """Wait until the process ends or hangs; returns why."""
        end = asyncio.create_task(process.wait())
        failed = 0
        try:
            while failed < PROBES_FAILED:
                with contextlib.suppress(TimeoutError):
                    code = await asyncio.wait_for(asyncio.shield(end), PROBE_S)
                    return self._words(process, f"ended ({code})")
                healthy = await self._probe()
                if healthy and failed:
                    self._on_state("ready", "")
                elif not healthy and not failed:
                    self._on_state("unresponsive", "its health is not answered")
                failed = 0 if healthy else failed + 1
            process.kill()
            await end
            return f"its process hung: {PROBES_FAILED} probes in a row failed"
        finally:
            end.cancel()

    def _words(self, process: ManagedProcess, what: str) -> str:
        last = process.last_words()
        return f"{self._command.name} {what}" + (f"; it said last:\n{last}" if last else "")
