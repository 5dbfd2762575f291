"""The model thread: it alone touches the model; requests come to it through a queue."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable

import torch

from experts.engines.embedded.metrics import Metrics
from experts.engines.embedded.requests import Generation, Progress
from experts.engines.embedded.scheduler import Delivery, Scheduler, count_tokens

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.5
_REST_AFTER_S = 10.0


class Runner:
    """Steps a scheduler on its own thread, and brings progress back to the event loop.

    All methods are for the event loop. `on_death` is called there once when the thread ends for any
    reason but `stop`.
    """

    def __init__(
        self, scheduler: Scheduler, metrics: Metrics, *, threads: int, stuck_after_s: float = 30.0
    ) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._threads = threads
        self._stuck_after_s = stuck_after_s
        self._inbox: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_death: Callable[[], None] | None = None
        self._in_flight: set[Generation] = set()
        self._last_beat = time.monotonic()
        self._stopping = False

    @property
    def in_flight(self) -> int:
        """Requests submitted whose end has not been heard yet."""
        return len(self._in_flight)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and has come to a token boundary lately."""
        beat = time.monotonic() - self._last_beat
        return self._thread.is_alive() and beat < self._stuck_after_s

    def start(self, on_death: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_death = on_death
        self._last_beat = time.monotonic()
        self._thread.start()

    def submit(self, request: Generation) -> None:
        """Hand a request to the model thread; its progress comes back by `on_progress`."""
        self._in_flight.add(request)
        self._inbox.put(request)

    async def stop(self, within_s: float) -> bool:
        """End the thread at its next token boundary; whether it ended in time."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # The size of OpenMP's pool is a property of the thread that starts it.
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                self._loop_until_stopped()
        except BaseException:
            log.critical("the model thread died", exc_info=True)
        finally:
            if not self._stopping:
                self._call_loop(self._die)

    def _loop_until_stopped(self) -> None:
        last_work = time.monotonic()
        while not self._stopping:
            self._last_beat = time.monotonic()
            self._take_in(block=self._scheduler.idle)
            if self._scheduler.idle:
                if time.monotonic() - last_work > _REST_AFTER_S:
                    self._scheduler.rest()
                continue
            last_work = time.monotonic()
            started = time.perf_counter()
            deliveries = self._scheduler.step()
            self._metrics.step(
                seconds=time.perf_counter() - started,
                tokens=count_tokens(deliveries),
                running=self._scheduler.running,
                waiting=self._scheduler.waiting,
                cache_bytes=self._scheduler.cache_bytes,
            )
            if deliveries:
                self._call_loop(self._deliver, deliveries)

    def _take_in(self, block: bool) -> None:
        try:
            request = self._inbox.get(block, _IDLE_WAIT_S)
            while True:
                if request is not None:
                    self._scheduler.add(request)
                request = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _call_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if self._loop is None:
            raise RuntimeError("the runner was not started")
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.warning("the event loop is closed; progress is lost")

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for request, progress in deliveries:
            if progress.finish is not None:
                self._in_flight.discard(request)
                self._metrics.finished(progress.finish)
            request.on_progress(progress)

    def _die(self) -> None:
        log.error("%d requests in flight are lost", len(self._in_flight))
        lost = Progress("", 0, "error", "the engine's model thread died")
        self._deliver([(request, lost) for request in list(self._in_flight)])
        if self._on_death is not None:
            self._on_death()
