"""Micro-batching: concurrent requests share the encoder's forward passes.

The encoder runs in one worker thread. While it is busy, texts wait; what waits when it becomes free
is its next batch. Nobody waits for a batch to fill, so a lone request pays only for its own pass.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from experts.errors import NotReady, Overloaded
from routers.encoders import Encoder

Vector = NDArray[np.float32]


@dataclass(slots=True)
class _Job:
    """One text that is to be encoded, for everyone who waits for it."""

    text: str
    vector: asyncio.Future[Vector]
    waiters: int = 0
    started: float = math.inf


class Encoded(NamedTuple):
    """A text's vector, and how long the text waited before its batch began."""

    vector: Vector
    queue_ms: float


class MicroBatcher:
    """Owns the worker thread; used as an async context manager, from one event loop."""

    def __init__(self, encoder: Encoder, *, max_batch: int = 32, max_waiting: int = 1024) -> None:
        self._encoder = encoder
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._waiting: dict[str, _Job] = {}
        self._running: dict[str, _Job] = {}
        self._waiters = 0
        self._batch_s = 0.0
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def encode(self, text: str) -> Vector:
        """The text's vector (d,); see `submit`."""
        return (await self.submit(text)).vector

    async def submit(self, text: str) -> Encoded:
        """The text's vector (d,), read-only, since all who asked for this text share it.

        Raises `Overloaded` when `max_waiting` callers wait already, `NotReady` after `close`, and
        whatever the encoder raised for the batch that the text was in.
        """
        if self._closed:
            raise NotReady("The encoder is shutting down; send the request again")
        if self._waiters >= self._max_waiting:
            raise Overloaded(
                f"{self._waiters} requests wait for the encoder; try again later",
                retry_after_s=self._backlog_s(),
            )
        job = self._running.get(text) or self._waiting.get(text) or self._enqueue(text)
        job.waiters += 1
        self._waiters += 1
        came = time.perf_counter()
        try:
            # The shield keeps one caller's cancellation from the others.
            vector = await asyncio.shield(job.vector)
            return Encoded(vector, max(0.0, job.started - came) * 1000)
        finally:
            self._waiters -= 1
            job.waiters -= 1
            if not job.waiters and self._waiting.get(text) is job:
                del self._waiting[text]

    async def close(self) -> None:
        """Refuse new texts, finish those that wait, and join the thread."""
        self._closed = True
        await self._idle.wait()
        await asyncio.to_thread(self._executor.shutdown)

    def _enqueue(self, text: str) -> _Job:
        loop = asyncio.get_running_loop()
        job = self._waiting[text] = _Job(text, loop.create_future())
        if not self._running and not self._scheduled:
            # After the callbacks that are ready now: requests read together start together.
            self._scheduled = True
            self._idle.clear()
            loop.call_soon(self._start)
        return job

    def _start(self) -> None:
        self._scheduled = False
        batch = [self._waiting.pop(text) for text in list(self._waiting)[: self._max_batch]]
        if not batch:
            self._idle.set()
            return
        self._running = {job.text: job for job in batch}
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        for job in batch:
            job.started = started

        def finished(result: Future[Vector]) -> None:
            loop.call_soon_threadsafe(self._finish, batch, result, started)

        self._executor.submit(self._encode, list(self._running)).add_done_callback(finished)

    def _encode(self, texts: Sequence[str]) -> Vector:
        vectors = self._encoder.encode(texts)
        if vectors.shape != (len(texts), self._encoder.dimension):
            raise ValueError(f"The encoder gave {vectors.shape} for {len(texts)} texts")
        vectors.flags.writeable = False
        return vectors

    def _finish(self, batch: list[_Job], result: Future[Vector], started: float) -> None:
        self._batch_s = time.perf_counter() - started
        error = result.exception()
        for row, job in enumerate(batch):
            if not job.waiters:
                job.vector.cancel()
            elif error is None:
                job.vector.set_result(result.result()[row])
            else:
                job.vector.set_exception(error)
        self._running = {}
        self._start()

    def _backlog_s(self) -> float:
        """Seconds until all that waits is done, if every batch takes as long as the last; >= 1."""
        return max(1.0, math.ceil(len(self._waiting) / self._max_batch) * self._batch_s)
