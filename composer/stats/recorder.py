"""Committing what a worker has counted: each batch once, however often it had to be sent."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from composer.config import StatsConfig
from composer.logs import get_logger
from composer.state import State
from composer.stats.collector import Collector, Taken
from composer.stats.decisions import stored_form
from composer.stats.keys import DECISIONS, FEEDBACK, INDEX, SEQUENCE
from composer.stats.scripts import COMMIT
from experts.errors import StateUnavailable

LAST_FLUSH_S = 3.0
MAX_PROMPT = 20_000
"""Characters of a prompt that are stored, where prompts are."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not committed yet, what was dropped for good, and requests that were not counted."""

    decisions: int
    dropped: int
    faults: int


class Recorder:
    """Owns the collector of a worker and the task that commits it. `async with` starts it; leaving
    commits what is left, if Redis can be reached in time.

    A batch that was sent keeps its number until Redis has confirmed it. Should the confirmation
    have been lost, the batch is sent again under the same number, and refused as known.
    """

    def __init__(self, state: State, config: StatsConfig) -> None:
        self.collector = Collector(config.decisions_kept)
        self.on_flush: Callable[[Backlog], None] = lambda backlog: None
        self._connection = state.connection
        self._config = config
        self._commit = state.connection.redis.register_script(COMMIT)
        self._sequence = f"{SEQUENCE}{secrets.token_hex(8)}"
        self._number = 0
        self._sent: list[str] | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("stats")

    @property
    def backlog(self) -> Backlog:
        collector = self.collector
        return Backlog(collector.pending, collector.dropped, collector.faults)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_flushing(), name="stats")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._task is not None:
            try:
                await asyncio.wait_for(self._task, LAST_FLUSH_S)
            except TimeoutError:
                self._log.warning("the last statistics were not committed in time")

    async def _keep_flushing(self) -> None:
        away = False
        while True:
            stopping = self._stopping.is_set()
            try:
                try:
                    await self.flush()
                finally:
                    self.on_flush(self.backlog)
                away = False
            except StateUnavailable as error:
                if not away or stopping:
                    self._log.warning("statistics wait to be committed", reason=error.message)
                away = True
            except Exception:
                # Whatever it is, counting must go on: a task that ended would commit nothing.
                self._log.exception("statistics could not be committed")
            if stopping:
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), self._config.flush_s)
            except TimeoutError:
                continue

    async def flush(self) -> None:
        """Commit all that was counted up to now. What comes meanwhile waits for the next time:
        each commit is synced to the disk.

        Raises:
            StateUnavailable: what could not be committed is kept.
        """
        await self._send()
        while (taken := self.collector.take()) is not None:
            last = self.collector.empty
            self._number += 1
            self._sent = self._arguments(taken)
            await self._send()
            if last:
                return

    async def _send(self) -> None:
        """Commit the batch under way, if there is one."""
        if self._sent is not None:
            keys = [self._sequence, DECISIONS, INDEX, FEEDBACK]
            await self._connection.call(self._commit(keys=keys, args=self._sent))
            self._sent = None

    def _arguments(self, taken: Taken) -> list[str]:
        config = self._config
        cells = {str(minute): groups for minute, groups in taken.cells.items()}
        arguments = [
            str(self._number),
            str(config.decisions_kept),
            str(int(config.prompt_retention_s * 1000)),
            orjson.dumps(cells).decode(),
        ]
        for recent in taken.decisions:
            prompt = recent.outcome.prompt if config.store_prompts else ""
            try:
                arguments += [recent.decision.id, stored_form(recent), prompt[:MAX_PROMPT]]
            except Exception:
                self.collector.faults += 1
        return arguments
