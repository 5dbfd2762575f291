"""Clients that go before they have their answer."""

import asyncio
from typing import Any

from gateway.asgi import Receive

WATCH_AFTER_S = 0.02
"""Requests that are answered sooner are spared the task that watches for a hang-up."""


class Hangup:
    """Cancels the request's task when its client goes, so that the engine stops working for it."""

    def __init__(self, receive: Receive) -> None:
        self.happened = False
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Hangup":
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
        if self.happened and isinstance(error, asyncio.CancelledError) and self._task is not None:
            return self._task.uncancel() == 0
        return False

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        if self._task is not None:
            self._task.cancel()
