"""Heartbeats of the gateway workers: who lives, what each serves, what each has in flight."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from composer.conditions import ConditionsTracker
from composer.logs import get_logger
from composer.snapshots import SnapshotKeeper
from composer.state import State, WorkerRecord
from experts.errors import StateUnavailable

HEARTBEAT_S = 1.0
LOOK_S = 0.1
"""How often a worker looks whether it serves a new generation, which it tells at once."""

STALE_S = 5.0
"""A worker that was silent for so long is gone."""

NAME_VARIABLE = "COMPOSER_WORKER"
"""The environment variable in which the supervisor names a worker."""

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder in which several workers sum up their metrics."""


def worker_name() -> str:
    """The name that the supervisor gave this worker; it outlives the process."""
    return os.environ.get(NAME_VARIABLE, "gateway")


class Heartbeat:
    """Owns the task that tells the shared state of this worker, about once a second."""

    def __init__(
        self,
        state: State,
        keeper: SnapshotKeeper,
        conditions: ConditionsTracker,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._id = f"{worker_name()}@{socket.gethostname()}:{os.getpid()}"
        self._state = state
        self._keeper = keeper
        self._conditions = conditions
        self._clock = clock
        self._started_at = clock()
        self._told = -1
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("workers")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat(), name="heartbeat")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._state.workers.put({self._id: None})
        except StateUnavailable as away:
            self._log.info("heartbeat not withdrawn", error=str(away))

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() >= due or self._keeper.view.snapshot.generation != self._told:
                due = loop.time() + HEARTBEAT_S
                await self._tell()
            await asyncio.sleep(LOOK_S)

    async def _tell(self) -> None:
        generation = self._keeper.view.snapshot.generation
        record = WorkerRecord(
            id=self._id,
            pid=os.getpid(),
            started_at=self._started_at,
            at=self._clock(),
            generation=generation,
            in_flight=dict(self._conditions.in_flight()),
        )
        try:
            await self._state.workers.put({self._id: record})
            self._told = generation
        except StateUnavailable:
            # The keeper logs that the state is away; the next beat tells what is true then.
            self._told = generation


async def live_workers(
    state: State, clock: Callable[[], float] = time.time
) -> tuple[WorkerRecord, ...]:
    """The workers that were heard of lately."""
    now = clock()
    return tuple(w for w in (await state.workers.all()).values() if now - w.at < STALE_S)


async def prune_workers(state: State, clock: Callable[[], float] = time.time) -> None:
    """Forget the workers that are gone."""
    now = clock()
    gone = {w.id: None for w in (await state.workers.all()).values() if now - w.at >= STALE_S}
    if gone:
        await state.workers.put(gone)


async def wait_for_generation(
    state: State, generation: int, timeout_s: float = 5.0
) -> tuple[int, int]:
    """Wait until every live worker serves `generation` or a later one.

    Returns:
        How many do, and how many there are; less than all when the time was over.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        workers = await live_workers(state)
        current = sum(worker.generation >= generation for worker in workers)
        over = asyncio.get_running_loop().time() >= deadline
        if current == len(workers) or over:
            return current, len(workers)
        await asyncio.sleep(LOOK_S / 2)


def has_let_go(workers: Iterable[WorkerRecord], expert: str, generation: int) -> bool:
    """Whether every worker knows `generation`, and none has a request of the expert in flight."""
    return all(
        worker.generation >= generation and not worker.in_flight.get(expert) for worker in workers
    )
